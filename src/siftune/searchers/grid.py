"""Grid search: every config of a finite space, in order."""

import itertools

from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config, Space


class Grid(Searcher):
    """Proposes the configs of `space.grid()`. The seed has no effect.

    Raises UsageError for a space with a continuous domain.
    """

    def __init__(self, space: Space, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._rest = space.grid()
        # Computed only as far as needed, because a finite space may have more configs than fit into
        # memory. The first is computed here, so that a continuous domain is refused at once.
        self._configs = list(itertools.islice(self._rest, 1))

    def propose(self, number: int, attempt: int = 0) -> Config:
        """Returns the config at index `number` + `attempt` of the grid.

        Raises SpaceExhausted if the grid has no such config.
        """
        index = number + attempt
        self._configs += itertools.islice(self._rest, max(0, index + 1 - len(self._configs)))
        if index >= len(self._configs):
            raise SpaceExhausted(f"the grid has {len(self._configs)} configs")
        return self.space.draw(self._configs[index], self.rng(index, 0))
