"""The median stopping rule."""

import math
import statistics
from collections.abc import Sequence
from typing import Unpack

from siftune.schedulers.base import Decision, Needs, Scheduler, require


class Median(Scheduler):
    """Stops a trial whose best score is worse than the median of the other trials' averages.

    Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization", section 3.2.1:
    after epoch t, the best score so far is compared with the median of the other trials' scores,
    each averaged over epochs 1..t. Trials that have ended count too if they reached epoch t.
    """

    def __init__(
        self, *, grace_epochs: int = 1, min_trials: int = 3, **needs: Unpack[Needs]
    ) -> None:
        """No trial is stopped before the epoch `grace_epochs`, or while fewer than `min_trials`
        others have reached the same epoch. Raises ValueError if either is below 1."""
        super().__init__(**needs)
        require("grace_epochs", grace_epochs, 1)
        require("min_trials", min_trials, 1)
        self._grace_epochs = grace_epochs
        self._min_trials = min_trials
        self._scores: dict[str, list[float]] = {}
        self._averages: dict[int, dict[str, float]] = {}  # epoch -> trial -> average so far

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        scores = self._scores.setdefault(trial, [])
        scores.append(score)
        averages = self._averages.setdefault(epoch, {})
        others = list(averages.values())  # a trial reaches an epoch once
        averages[trial] = _mean(scores)
        judged = self._grace_epochs <= epoch < self.max_epochs and len(others) >= self._min_trials
        if judged and min(scores) > statistics.median(others):
            return Decision.STOP
        return Decision.CONTINUE


def _mean(scores: Sequence[float]) -> float:
    try:
        return statistics.fmean(scores)
    except OverflowError:  # the sum is too large, but the mean is between the scores
        half = math.fsum(score / len(scores) / 2 for score in scores)
        return max(min(scores), min(max(scores), 2 * half))
