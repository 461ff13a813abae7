"""The progress output of a running study: a live table on a terminal, lines in a log file."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from siftune.driver.progress import Best, Progress
from siftune.record import logs
from siftune.record.journal import Event, Trial
from siftune.record.wording import settings, short
from siftune.report import table
from siftune.study import layout
from siftune.study.study import Study
from siftune.trial import directory

# The lines that Lines prints of events: a time, and a trial.
EVENT = re.compile(r"\d\d:\d\d:\d\d trial \S+ ")


class View(Protocol):
    def __call__(self, event: Event, progress: Progress) -> None: ...

    def say(self, sentence: str) -> None: ...


@contextmanager
def view(study: Study) -> Iterator[View]:
    """Yields the view for standard output, for the duration of a study."""
    if not sys.stdout.isatty():
        yield Lines(study)
        return
    live = Table(study)
    with live.live:
        yield live


class Lines:
    """Prints one line per event and redraws nothing, for log files."""

    def __init__(self, study: Study) -> None:
        self._metric = study.metric

    def say(self, sentence: str) -> None:
        self._print(sentence)

    def __call__(self, event: Event, progress: Progress) -> None:
        trial = progress.trials[event["trial"]]
        self._print(f"trial {trial.trial} {self._describe(event, trial, progress)}")

    def _describe(self, event: Event, trial: Trial, progress: Progress) -> str:
        if event["event"] == "start":
            return f"start {' '.join(settings(trial.config, progress.study.space))}"
        if event["event"] == "epoch":
            metrics = " ".join(f"{k}={short(v)}" for k, v in event["metrics"].items())
            best = progress.best
            so_far = f"{short(best.metrics[self._metric])} in {best.trial}" if best else "none"
            return f"epoch {event['epoch']} {metrics} (best {self._metric} {so_far})"
        if event["event"] == "restart":
            donor = f", as a clone of {event['donor']}" if "donor" in event else ""
            error = f": {event['error'].splitlines()[-1]}" if "error" in event else ""
            return f"restarted after epoch {event['epoch']}{donor}{error}"
        if event["event"] == "pause":
            return f"paused after epoch {trial.epoch}"
        if event["event"] == "resume":
            return f"resumed after epoch {trial.epoch}"
        error = f": {trial.error.splitlines()[-1]}" if trial.error else ""
        return f"{event['state']} ({progress.ended} of {progress.study.trials}){error}"

    def _print(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class LogTails:
    """A sink of events that shows the end of a trial's log when the trial fails, once per error."""

    def __init__(self, view: View, study: Path) -> None:
        self._view = view
        self._directory = study
        self._shown: set[str] = set()

    def __call__(self, event: Event, progress: Progress) -> None:
        last = event.get("error", "").strip().rpartition("\n")[2]
        if not last or last in self._shown:
            return
        self._shown.add(last)
        if lines := logs.tail(self._directory, event["trial"]):
            path = layout.log(self._directory, event["trial"])
            self._view.say(f"the log of trial {event['trial']} ends with, in {path}:")
            for line in lines:
                self._view.say(f"  | {line}")


class SharedFiles:
    """A sink of events that says, once, that trials overwrite a file of the launch directory."""

    def __init__(self, view: View, launched_in: Path) -> None:
        self._view = view
        self._launched_in = launched_in
        self._since = time.time()
        self._looks = 3  # after the first ends of trials: the others do the same

    def __call__(self, event: Event, progress: Progress) -> None:
        if event["event"] != "end" or not self._looks or progress.study.workdir != "trial":
            return
        self._looks -= 1
        if changed := directory.overwritten(self._launched_in, since=self._since):
            self._looks = 0
            self._view.say(
                f"{changed[0]} has changed since the study started. If trials write to it, they "
                "overwrite each other's files: use a new name, or a path in $SIFTUNE_TRIAL_DIR"
            )


class Table:
    """A table that is redrawn in place: trials, epochs, the best so far, the time left.

    rich draws it in its own thread while the driver changes the trials. The handler of each
    event therefore copies the changed values, and only these copies are drawn.
    """

    def __init__(self, study: Study, console: Any = None) -> None:
        """`console`: the rich console; the default is standard output."""
        from rich.console import Console
        from rich.live import Live

        self._study = study
        self._lock = threading.Lock()  # guards the next three
        self._rows: dict[str, table.Row] = {}
        self._bests = table.Bests()
        self._ends: list[float] = []
        self._began = time.time()
        self._console = console or Console()
        self.live = Live(
            console=self._console, get_renderable=self.render, refresh_per_second=2, transient=False
        )

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False)

    def __call__(self, event: Event, progress: Progress) -> None:
        changed = [progress.trials[event["trial"]]]
        if not self._rows:  # a resumed study has earlier trials
            self._began = time.time()
            changed = list(progress.trials.values())
        rows = {trial.trial: table.row(self._study, trial) for trial in changed}
        bests = self._bests_after(event, progress.best)
        with self._lock:
            self._rows |= rows
            self._bests = bests
            if event["event"] == "end":
                self._ends.append(event["time"])

    def _bests_after(self, event: Event, best: Best | None) -> table.Bests:
        if best is None:
            return self._bests
        before, value = self._bests, best.metrics[self._study.metric]
        if before.values and before.values[-1] == value:
            return before
        times, values = [*before.times, event["time"]], [*before.values, value]
        return table.Bests(times, values, best.trial, best.config)

    def render(self) -> Any:
        """Returns what rich draws."""
        with self._lock:
            seen = table.Snapshot(
                study=self._study,
                rows=list(self._rows.values()),
                bests=self._bests,
                began=self._began,
                ends=list(self._ends),
                now=time.time(),
            )
        return table.draw(seen, height=self._console.height)
