"""The interface of a searcher.

A searcher is a pure function: `propose(number)` depends only on the space, the seed, the number and
the events so far. No random state is carried from one proposal to the next. A searcher is therefore
restored by replaying the events of the journal, in order, to a new one. Nothing is pickled.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from siftune.space import Config, Space


class SpaceExhausted(Exception):
    """Raised when every config of the space has been proposed."""


class Searcher(ABC):
    """Proposes configs. Scores are always minimised; the caller changes the sign if necessary.

    `processes` is the number of processes that compute proposals ahead. It is 0 for a searcher
    whose proposals are fast enough to be computed when a slot needs one; an event may raise it.
    With more than one process, proposals that are computed at the same time do not know of each
    other. `say` prints a message for the user; whoever uses the searcher sets it.
    """

    processes = 0

    def __init__(self, space: Space, *, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.running: dict[str, Config] = {}
        self.say: Callable[[str], None] = lambda message: None

    @classmethod
    def resolve(cls, options: dict[str, Any], *, slots: int) -> dict[str, Any]:
        """Returns the options with those that follow from the number of slots, for study.yaml."""
        return options

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

    def report(self, trial: str, epoch: int, score: float, seconds: float = 0.0) -> None:
        """Records the score of a running trial at an epoch, which took so many seconds to train.
        Most searchers ignore it."""

    def end(self, trial: str, score: float | None) -> None:
        """Records that a trial has ended with its best score; None: it failed."""
        self.learn(self.running.pop(trial), score)

    def learn(self, config: Config, score: float | None) -> None:
        """Learns from the result of one config; None: it failed."""

    def rng(self, number: int, attempt: int) -> np.random.Generator:
        """Returns the random generator of one proposal."""
        return np.random.default_rng([self.seed, number, attempt])
