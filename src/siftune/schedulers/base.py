"""The interface of a scheduler.

A scheduler is told what happened, in the order of the journal, and decides from that alone: told
the same events again it is in the same state. It starts nothing and stops nothing itself; what
is to be done is what it answers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TypedDict

from siftune.space import Config, Space


class Decision(Enum):
    """What becomes of a trial that has reported an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"  # it waits, with its checkpoint, for an order


@dataclass(frozen=True, slots=True)
class Resume:
    """The paused trial goes on from its checkpoint."""

    trial: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The paused trial is stopped for good."""

    trial: str


@dataclass(frozen=True, slots=True)
class Clone:
    """The paused trial goes on from the donor's checkpoint, with this config. The checkpoint is
    the one of the epoch at which the trial paused: the donor may have gone on since."""

    trial: str
    donor: str
    config: Config


Order = Resume | Stop | Clone


class Needs(TypedDict):
    """What every scheduler is built with, beside its options: one call builds any of them."""

    max_epochs: int  # the largest number of epochs that a trial may train
    seed: int
    space: Space
    trials: int  # the planned number of trials


class Scheduler(ABC):
    """Decides which trials go on. Scores are always to be minimised, and never NaN.

    A scheduler ends no trial for having trained `max_epochs`: that is not a judgement on it.
    """

    def __init__(self, *, max_epochs: int, seed: int, space: Space, trials: int) -> None:
        """Raises ValueError for numbers that cannot be."""
        require("max_epochs", max_epochs, 1)
        require("seed", seed, 0)
        require("trials", trials, 1)
        self.max_epochs = max_epochs
        self.seed = seed
        self.space = space
        self.trials = trials

    def length(self, config: Config) -> int:
        """The epochs that a trial of this config trains: after the last it ends by itself."""
        return min(self.max_epochs, config.get("epochs", self.max_epochs))

    def begin(self, trial: str, config: Config) -> None:
        """A trial has begun."""

    @abstractmethod
    def report(self, trial: str, epoch: int, score: float) -> Decision:
        """The trial has trained this epoch (1, 2, …) and reached this score in it."""

    def end(self, trial: str) -> None:
        """The trial is over: completed, stopped or failed. Comes once per trial."""

    def orders(self, *, idle: bool = False) -> list[Order]:
        """What is to be done with paused trials: at most one order each, the same answer until
        it is carried out (a `report`, or an `end`, of that trial). `idle`: nothing is running and
        no new trial will begin, so that whoever waits for more to arrive must not any longer."""
        return []


def require(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
