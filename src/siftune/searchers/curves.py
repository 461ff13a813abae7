"""Compares trials that were trained for different numbers of epochs."""

from bisect import bisect_right
from collections.abc import Sequence
from statistics import median

ENOUGH = 8  # trials that must have reached an epoch, or all, before trials are compared there


class Curves:
    """The best score of each trial up to each of its epochs. Scores are minimised.

    A scheduler stops most trials early. If each counted with its best score, those that trained
    longer would look better only because of that. So all trials are compared at the same epoch: the
    largest one that at least `ENOUGH` of them have reached, as in BOHB (Falkner, Klein, Hutter
    2018). A trial that has not reached it is expected to improve like the median of those that
    have, from the epoch that it has reached.
    """

    def __init__(self) -> None:
        self._epochs: dict[str, list[int]] = {}  # of each trial, increasing
        self._bests: dict[str, list[float]] = {}

    def report(self, trial: str, epoch: int, score: float) -> None:
        epochs, bests = self._epochs.setdefault(trial, []), self._bests.setdefault(trial, [])
        if not epochs or epoch > epochs[-1]:
            epochs.append(epoch)
            bests.append(min([score, *bests[-1:]]))

    def has(self, trial: str) -> bool:
        """Returns whether the trial has reported."""
        return trial in self._epochs

    def scores(self, trials: Sequence[str]) -> list[float]:
        """Returns comparable scores of these trials, each of which has reported."""
        if not trials:
            return []
        last = {trial: self._epochs[trial][-1] for trial in trials}
        by_length = sorted(last.values(), reverse=True)
        common = by_length[min(ENOUGH, len(by_length)) - 1]
        arrived = [trial for trial in trials if last[trial] >= common]
        at_common = {trial: self._best(trial, common) for trial in arrived}
        improvement = {
            epoch: median(at_common[trial] - self._best(trial, epoch) for trial in arrived)
            for epoch in {epoch for epoch in last.values() if epoch < common}
        }
        return [
            at_common[trial]
            if trial in at_common
            else self._bests[trial][-1] + improvement[last[trial]]
            for trial in trials
        ]

    def _best(self, trial: str, epoch: int) -> float:
        """Returns the best score up to an epoch; before the first report, the first score."""
        return self._bests[trial][max(0, bisect_right(self._epochs[trial], epoch) - 1)]
