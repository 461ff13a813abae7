"""Every config of a finite space, in order."""

import itertools

from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config, Space


class Grid(Searcher):
    """The configs of `space.grid()`; the seed does not matter.

    Raises UsageError for a space with a continuous domain.
    """

    def __init__(self, space: Space, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._rest = space.grid()
        # Only as far as needed: a finite space may have more configs than memory holds. The first
        # one now, so that a continuous domain is refused here.
        self._configs = list(itertools.islice(self._rest, 1))

    def propose(self, number: int, attempt: int = 0) -> Config:
        """The config `number`, or the one `attempt` places further.

        Raises SpaceExhausted where the grid has no such config.
        """
        index = number + attempt
        self._configs += itertools.islice(self._rest, max(0, index + 1 - len(self._configs)))
        if index >= len(self._configs):
            raise SpaceExhausted(f"the grid has {len(self._configs)} configs")
        return dict(self._configs[index])
