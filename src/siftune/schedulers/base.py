"""The interface of a scheduler.

A scheduler is told the events in the order of the journal, and its decisions depend only on them.
If it is told the same events again, it reaches the same state. It does not start or stop anything
itself: its return values say what to do.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypedDict

from siftune.space import Config, Space


class Decision(Enum):
    """The decision about a trial that has reported an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"  # the trial keeps its checkpoint and waits for an order


@dataclass(frozen=True, slots=True)
class Resume:
    """The paused trial continues from its checkpoint."""

    trial: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The paused trial is stopped for good."""

    trial: str


@dataclass(frozen=True, slots=True)
class Clone:
    """The paused trial continues from the donor's checkpoint, with this config. The checkpoint is
    that of the epoch at which the trial paused, even if the donor has continued since."""

    trial: str
    donor: str
    config: Config


Order = Resume | Stop | Clone


class Needs(TypedDict):
    """Constructor arguments that all schedulers have, so that one call can build any of them."""

    max_epochs: int  # the largest number of epochs that a trial may train
    seed: int
    space: Space
    trials: int  # the planned number of trials


class Scheduler(ABC):
    """Decides which trials continue. Scores are always minimised, and never NaN.

    A scheduler does not stop a trial for having trained `max_epochs`: such a trial is completed.
    """

    #: Options with the values that a study has if it was written before the options were saved.
    defaults_before: ClassVar[dict[str, Any]] = {}

    @classmethod
    def resolve(cls, options: dict[str, Any], *, max_epochs: int, trials: int) -> dict[str, Any]:
        """Returns the options with those added that follow from the budget."""
        return options

    def __init__(self, *, max_epochs: int, seed: int, space: Space, trials: int) -> None:
        """Raises ValueError for a number out of its range."""
        require("max_epochs", max_epochs, 1)
        require("seed", seed, 0)
        require("trials", trials, 1)
        self.max_epochs = max_epochs
        self.seed = seed
        self.space = space
        self.trials = trials

    def length(self, config: Config) -> int:
        """Returns the number of epochs after which a trial of this config is completed."""
        return min(self.max_epochs, config.get("epochs", self.max_epochs))

    def begin(self, trial: str, config: Config) -> None:
        """Records that a trial has begun."""

    @abstractmethod
    def report(self, trial: str, epoch: int, score: float) -> Decision:
        """Records the score of a trial at an epoch (1, 2, …), and returns the decision about it."""

    def end(self, trial: str) -> None:
        """Records that a trial has completed, failed or was stopped. Called once per trial."""

    def orders(self, *, idle: bool = False) -> list[Order]:
        """Returns what to do with paused trials, at most one order for each. An order is repeated
        until it is carried out, that is, until a `report` or an `end` of that trial. `idle`:
        nothing is running and no new trial will begin, so the scheduler must not wait for other
        trials."""
        return []


def require(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
