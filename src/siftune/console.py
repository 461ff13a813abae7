"""What a person sees while a study runs: a live table on a terminal, lines in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from siftune.journal import Event, Trial
from siftune.progress import Progress
from siftune.study import Study

_ROWS = 16  # trials that the table shows


class View(Protocol):
    def __call__(self, event: Event, progress: Progress) -> None: ...

    def say(self, sentence: str) -> None: ...


@contextmanager
def view(study: Study) -> Iterator[View]:
    """The view that fits standard output, for the length of a study."""
    if not sys.stdout.isatty():
        yield Lines(study)
        return
    table = Table(study)
    with table.live:
        yield table


class Lines:
    """A line per event, none redrawn: for log files."""

    def __init__(self, study: Study) -> None:
        self._metric = study.metric

    def say(self, sentence: str) -> None:
        self._print(sentence)

    def __call__(self, event: Event, progress: Progress) -> None:
        trial = progress.trials[event["trial"]]
        self._print(f"trial {trial.trial} {self._what(event, trial, progress)}")

    def _what(self, event: Event, trial: Trial, progress: Progress) -> str:
        if event["event"] == "start":
            return f"start {_settings(trial, progress)}"
        if event["event"] == "epoch":
            metrics = " ".join(f"{k}={_short(v)}" for k, v in event["metrics"].items())
            best = progress.best
            so_far = f"{_short(best.metrics[self._metric])} in {best.trial}" if best else "none"
            return f"epoch {event['epoch']} {metrics} (best {self._metric} {so_far})"
        if event["event"] == "restart":
            donor = f", as a clone of {event['donor']}" if "donor" in event else ""
            error = f": {event['error'].splitlines()[-1]}" if "error" in event else ""
            return f"goes on after epoch {event['epoch']}{donor}{error}"
        error = f": {trial.error.splitlines()[-1]}" if trial.error else ""
        return f"{event['state']} ({progress.ended} of {progress.study.trials}){error}"

    def _print(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Table:
    """One table, redrawn in place: trials, epochs, best so far, time left."""

    def __init__(self, study: Study) -> None:
        from rich.console import Console
        from rich.live import Live

        self._study = study
        self._progress: Progress | None = None
        self._began = time.monotonic()
        self.live = Live(
            console=Console(), get_renderable=self._render, refresh_per_second=2, transient=False
        )

    def say(self, sentence: str) -> None:
        self.live.console.print(sentence, markup=False, highlight=False)

    def __call__(self, event: Event, progress: Progress) -> None:
        if self._progress is None:
            self._progress, self._began = progress, time.monotonic()

    def _render(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        progress, metric = self._progress, self._study.metric
        if progress is None:
            return Text("starting Ray …", style="dim")
        table = RichTable(title=Text(self._headline(progress)), title_justify="left")
        for column in ("trial", "state", "epoch", metric, "config"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for trial in self._shown(progress):
            value = trial.epochs[trial.epoch].get(metric) if trial.epochs else None
            best = progress.best and progress.best.trial == trial.trial
            table.add_row(
                trial.trial,
                trial.state,
                str(trial.epoch),
                "" if value is None else _short(value),
                _settings(trial, progress),
                style="bold green" if best else "dim" if trial.state != "running" else "",
            )
        return table

    def _headline(self, progress: Progress) -> str:
        states = progress.by_state()
        done = sum(count for state, count in states.items() if state != "running")
        parts = [f"{done} of {progress.study.trials} trials done", f"{states['running']} running"]
        if best := progress.best:
            value = _short(best.metrics[self._study.metric])
            parts.append(f"best {self._study.metric} {value} (trial {best.trial})")
        if (left := self._left_s(progress, done)) is not None:
            parts.append(f"about {_minutes(left)} left")
        return ", ".join(parts)

    def _left_s(self, progress: Progress, done: int) -> float | None:
        if not done or progress.study.trials is None:
            return None
        spent = time.monotonic() - self._began
        left = spent / done * (progress.study.trials - done)
        limit = self._study.time_limit_s
        return left if limit is None else min(left, max(0.0, limit - spent))

    @staticmethod
    def _shown(progress: Progress) -> list[Trial]:
        """The best, all that run, and the latest of the others, in their order."""
        trials = list(progress.trials.values())
        best = progress.best.trial if progress.best else None
        first = [t for t in trials if t.trial == best or t.state == "running"]
        others = [t for t in reversed(trials) if t not in first]
        return sorted((first + others)[:_ROWS], key=lambda t: t.trial)


def _settings(trial: Trial, progress: Progress) -> str:
    """What the trial was given of the space, without constants and what has no effect."""
    space = progress.study.space
    active = space.active(trial.config)
    return " ".join(f"{name}={_short(active[name])}" for name in space.parameters if name in active)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
