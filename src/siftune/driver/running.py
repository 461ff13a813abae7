"""The run of a trial in a slot, and how long it may be silent."""

import math
from dataclasses import dataclass

from siftune.backend.slots import Slot
from siftune.schedulers.base import Decision

_LEAST_S = 600.0  # that a trial may be silent


@dataclass(slots=True)
class Running:
    """The run of a trial in a slot. Times are those of time.monotonic."""

    slot: Slot
    run: str  # its name in checkpoints
    restored: int  # the epoch it continued from, 0 from the start
    epoch: int  # the last one reported
    heard: float  # when it last reported, or began
    over: Decision | None = None  # it was told to end: pruned, or paused
    grace: float = math.inf  # when its other processes are killed
    hung: bool = False


class Patience:
    """How long a running trial may be silent before it counts as hung."""

    def __init__(self, timeout_s: float | None) -> None:
        """`timeout_s`: as the user set it; [10 times the longest epoch, at least 10 min]."""
        self._timeout_s = timeout_s
        self._longest_s = 0.0  # epoch so far

    def heard(self, epoch_s: float) -> None:
        """Takes in how long an epoch took."""
        self._longest_s = max(self._longest_s, epoch_s)

    def limit_s(self) -> float:
        """Returns the limit, infinite before the first epoch."""
        if self._timeout_s is not None:
            return self._timeout_s
        # Configs differ in how long they take, but seldom tenfold.
        return max(_LEAST_S, 10 * self._longest_s) if self._longest_s else math.inf
