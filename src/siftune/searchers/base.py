"""The interface of a searcher.

A searcher is a pure function: `propose(number)` depends only on the space, the seed, the number and
the events so far. No random state is carried from one proposal to the next. A searcher is therefore
restored by replaying the events of the journal, in order, to a new one. Nothing is pickled.
"""

from abc import ABC, abstractmethod

import numpy as np

from siftune.space import Config, Space


class SpaceExhausted(Exception):
    """Raised when every config of the space has been proposed."""


class Searcher(ABC):
    """Proposes configs. Scores are always minimised; the caller changes the sign if necessary.

    `processes` is the number of processes that compute proposals ahead. It is 0 for a searcher
    whose proposals are fast enough to be computed when a slot needs one. With more than one
    process, proposals that are computed at the same time do not know of each other.
    """

    processes = 0

    def __init__(self, space: Space, *, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.running: dict[str, Config] = {}

    @abstractmethod
    def propose(self, number: int, attempt: int = 0) -> Config:
        """Returns the canonical config of trial `number` (0, 1, 2, …).

        `attempt` counts the proposals for this number that were refused because the config had
        already been trained. Each attempt should propose a different config.
        """

    def is_slow(self) -> bool:
        """Returns whether the next proposal will take long, given the events so far."""
        return False

    def begin(self, trial: str, config: Config) -> None:
        """Records that a trial of this config has begun; its score is not known yet."""
        self.running[trial] = config

    def report(self, trial: str, epoch: int, score: float) -> None:
        """Records the score of a running trial at an epoch. Most searchers ignore it."""

    def end(self, trial: str, score: float | None) -> None:
        """Records that a trial has ended with its best score; None: it failed."""
        self.learn(self.running.pop(trial), score)

    def learn(self, config: Config, score: float | None) -> None:
        """Learns from the result of one config; None: it failed."""

    def rng(self, number: int, attempt: int) -> np.random.Generator:
        """Returns the random generator of one proposal."""
        return np.random.default_rng([self.seed, number, attempt])
