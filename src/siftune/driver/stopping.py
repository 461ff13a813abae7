"""Decides whether a study stops early, from its events alone: `--stop` and `--stop-after`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from siftune.record.journal import Event
from siftune.study import stop
from siftune.study.study import Study

STOPPED = "stop"  # the cause in the `end` event of a trial that ended with its study


class Stopping:
    """Is told the events of a study. `reason` says why it stops, once a condition holds.

    A trial counts for `--stop-after` if it ends without having improved the best score by more than
    `--min-improvement`. Failed trials say nothing about the best score, so they do not count.
    """

    def __init__(self, study: Study) -> None:
        self.reason: str | None = None
        self.advice = ""  # the flag with which a resumed study continues
        self._study = study
        self._conditions = stop.parse(study.stop_conditions)
        self._best = math.inf  # the score that the next one must improve
        self._improved: set[str] = set()  # trials that improved it
        self._in_a_row = 0

    def report(self, trial: str, epoch: int, metrics: Mapping[str, Any], score: float) -> None:
        """Records the first report of an epoch. Scores are minimised."""
        if score < self._best - self._study.min_improvement:
            self._best = score
            self._improved.add(trial)
            self._in_a_row = 0
        for condition in self._conditions:
            if condition.holds(metrics):
                value = metrics[condition.metric]
                self._stop(
                    f"trial {trial} has reached {condition.metric} {value:.6g} at epoch {epoch} "
                    f"(--stop '{condition.text}')",
                    advice=f"--stop {stop.NEVER}",
                )

    def end(self, trial: str, event: Event) -> None:
        """Records the end of a trial."""
        if trial in self._improved or event["state"] == "failed" or event.get("cause") == STOPPED:
            return
        self._in_a_row += 1
        most, least = self._study.stop_after, self._study.min_improvement
        if most and self._in_a_row >= most:
            more = f" by more than {least:g}" if least else ""
            self._stop(
                f"{self._in_a_row} trials in a row have ended without improving the best "
                f"{self._study.metric}{more} (--stop-after {most})",
                advice=f"--stop-after {2 * most}",
            )

    def _stop(self, reason: str, *, advice: str) -> None:
        if self.reason is None:
            self.reason, self.advice = reason, advice


class MissingMetrics:
    """An event sink that says which metrics of `--stop` the first report lacks."""

    def __init__(self, study: Study, say: Callable[[str], None]) -> None:
        self._metrics = [condition.metric for condition in stop.parse(study.stop_conditions)]
        self._say = say

    def __call__(self, event: Event, progress: object) -> None:
        if event["event"] != "epoch":
            return
        if missing := [name for name in self._metrics if name not in event["metrics"]]:
            self._say(
                f"--stop names {', '.join(missing)}, which the first report does not have; "
                f"it has: {', '.join(event['metrics'])}"
            )
        self._metrics = []
