"""The interface of a searcher.

A searcher is a function of what it has been told: `propose(number)` depends on the space, the
seed, the number, and the events before it, and on nothing else - no random state is carried from
one proposal to the next. So a searcher is restored by telling a new one the events of the
journal again, in their order; there is nothing to pickle and nothing to forget.
"""

from abc import ABC, abstractmethod

import numpy as np

from siftune.space import Config, Space


class SpaceExhausted(Exception):
    """Every config of the space has been proposed."""


class Searcher(ABC):
    """Proposes configs. Scores are always to be minimised; the caller turns signs.

    `processes`: in how many its proposals are to be computed ahead, since one takes longer than a
    slot should wait; 0 if it does not. With more than one, proposals that are computed at the same
    time do not know of each other.
    """

    processes = 0

    def __init__(self, space: Space, *, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.running: dict[str, Config] = {}

    @abstractmethod
    def propose(self, number: int, attempt: int = 0) -> Config:
        """The canonical config of trial `number` (0, 1, 2, …).

        `attempt` counts the proposals for this number that were refused because the config had
        been trained already; a further attempt should propose another.
        """

    def is_slow(self) -> bool:
        """Whether a proposal would take long, after what has been told so far."""
        return False

    def begin(self, trial: str, config: Config) -> None:
        """A trial of this config has begun; its score is not known yet."""
        self.running[trial] = config

    def report(self, trial: str, epoch: int, score: float) -> None:
        """The running trial reached this score at this epoch. Most searchers do not care."""

    def end(self, trial: str, score: float | None) -> None:
        """The trial is over with this score, the best of its epochs; None: it failed."""
        self.learn(self.running.pop(trial), score)

    def learn(self, config: Config, score: float | None) -> None:
        """Takes in the result of one config; None: it failed."""

    def rng(self, number: int, attempt: int) -> np.random.Generator:
        """Randomness of one proposal."""
        return np.random.default_rng([self.seed, number, attempt])
