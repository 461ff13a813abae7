"""The progress output of a running study: a live table on a terminal, lines in a log file."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from siftune.driver.progress import Best, Progress
from siftune.record import logs
from siftune.record.journal import STATES, Event, Trial
from siftune.record.wording import duration, settings, short
from siftune.space import Config
from siftune.study import layout
from siftune.study.study import Study
from siftune.trial import directory

_ROWS = 16  # the most that the table shows


class View(Protocol):
    def __call__(self, event: Event, progress: Progress) -> None: ...

    def say(self, sentence: str) -> None: ...


@contextmanager
def view(study: Study) -> Iterator[View]:
    """Yields the view for standard output, for the duration of a study."""
    if not sys.stdout.isatty():
        yield Lines(study)
        return
    table = Table(study)
    with table.live:
        yield table


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


@dataclass(frozen=True, slots=True)
class _Row:
    """The row of one trial in the table."""

    trial: str
    state: str
    epoch: int
    value: Any  # of the metric, at that epoch
    config: Config


class Table:
    """A table that is redrawn in place: trials, epochs, the best so far, the time left.

    rich draws it in its own thread while the driver changes the trials. The handler of each
    event therefore copies the changed values, and only these copies are drawn.
    """

    def __init__(self, study: Study) -> None:
        from rich.console import Console
        from rich.live import Live

        self._study = study
        self._lock = threading.Lock()  # guards the next two
        self._rows: dict[str, _Row] = {}
        self._best: Best | None = None
        self._began = time.monotonic()
        self.live = Live(
            console=Console(), get_renderable=self._render, refresh_per_second=2, transient=False
        )

    def say(self, sentence: str) -> None:
        self.live.console.print(sentence, markup=False, highlight=False)

    def __call__(self, event: Event, progress: Progress) -> None:
        changed = [progress.trials[event["trial"]]]
        if not self._rows:  # a resumed study has earlier trials
            self._began = time.monotonic()
            changed = list(progress.trials.values())
        rows = {trial.trial: self._row(trial) for trial in changed}
        with self._lock:
            self._rows |= rows
            self._best = progress.best

    def _row(self, trial: Trial) -> _Row:
        value = trial.epochs[trial.epoch].get(self._study.metric) if trial.epochs else None
        return _Row(trial.trial, trial.state, trial.epoch, value, trial.config)

    def _render(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        with self._lock:
            rows, best = list(self._rows.values()), self._best
        if not rows:
            return Text("starting Ray …", style="dim")
        table = RichTable(title=Text(self._headline(rows, best)), title_justify="left", expand=True)
        for column in ("trial", "state", "epoch"):
            table.add_column(column, no_wrap=True, min_width=len("completed" * (column == "state")))
        # Long names of metrics are cut, their values are not; the config gets what is left.
        table.add_column(self._study.metric, no_wrap=True, min_width=9, max_width=20)
        table.add_column("config", no_wrap=True, overflow="ellipsis", ratio=1)
        height = self.live.console.height - 7  # title, header and frame stay in sight
        for row in self._shown(rows, best, most=max(1, min(_ROWS, height))):
            is_best = best is not None and best.trial == row.trial
            table.add_row(
                row.trial,
                row.state,
                str(row.epoch),
                "" if row.value is None else short(row.value),
                " ".join(settings(row.config, self._study.space)),
                style="bold green" if is_best else "dim" if row.state != "running" else "",
            )
        return table

    def _headline(self, rows: Sequence[_Row], best: Best | None) -> str:
        done = sum(row.state in STATES for row in rows)
        running = sum(row.state == "running" for row in rows)
        parts = [f"{done} of {self._study.trials} trials done", f"{running} running"]
        if paused := sum(row.state == "paused" for row in rows):
            parts.append(f"{paused} paused")
        if best:
            value = short(best.metrics[self._study.metric])
            parts.append(f"best {self._study.metric} {value} (trial {best.trial})")
        if (left := self._left_s(done)) is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _left_s(self, done: int) -> float | None:
        if not done or done >= self._study.trials:
            return None
        spent = time.monotonic() - self._began
        left = spent / done * (self._study.trials - done)
        limit = self._study.time_limit_s
        return left if limit is None else min(left, max(0.0, limit - spent))

    @staticmethod
    def _shown(rows: Sequence[_Row], best: Best | None, most: int) -> list[_Row]:
        """Returns the rows to draw: the best, the running and the latest other trials, in order."""
        first = {
            r.trial: r for r in rows if r.state == "running" or r.trial == (best and best.trial)
        }
        others = [row for row in reversed(rows) if row.trial not in first]
        return sorted([*first.values(), *others][:most], key=lambda row: row.trial)
