"""The run of a trial in a slot, and how long it may go without a report."""

import math
from dataclasses import dataclass

from siftune.backend.slots import Slot
from siftune.schedulers.base import Decision

_LEAST_S = 600.0  # the shortest limit, unless the user sets one


@dataclass(slots=True)
class Running:
    """The run of a trial in a slot. Times are from time.monotonic()."""

    slot: Slot
    run: str  # its name in checkpoints
    restored: int  # the epoch it continued from; 0 if it started anew
    epoch: int  # the last one reported
    heard: float  # when it last reported, or started
    over: Decision | None = None  # the decision to prune or pause the trial, if any
    grace: float = math.inf  # when its other processes are killed
    hung: bool = False


class Patience:
    """The time that a running trial may go without a report before it counts as hung."""

    def __init__(self, timeout_s: float | None) -> None:
        """`timeout_s`: set by the user; [10 times the longest epoch, at least 10 min]."""
        self._timeout_s = timeout_s
        self._longest_s = 0.0  # epoch so far

    def heard(self, epoch_s: float) -> None:
        """Records the duration of an epoch."""
        self._longest_s = max(self._longest_s, epoch_s)

    def limit_s(self) -> float:
        """Returns the limit, infinite before the first epoch."""
        if self._timeout_s is not None:
            return self._timeout_s
        # Epochs take longer with some configs, but rarely ten times as long.
        return max(_LEAST_S, 10 * self._longest_s) if self._longest_s else math.inf
