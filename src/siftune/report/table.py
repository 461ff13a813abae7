"""Draws the progress of a study: a table on a terminal or in a notebook."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from siftune.record.history import History
from siftune.record.journal import STATES, Trial
from siftune.record.wording import duration, settings, short
from siftune.space import Config
from siftune.study.study import Study

ROWS = 16  # the most that the table shows
_BREAK = 20  # a gap between the ends of trials counts at most this many times the median gap
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Row:
    """The row of one trial in the table."""

    trial: str
    state: str
    epoch: int
    value: Any  # of the metric, at that epoch
    config: Config


@dataclass(frozen=True, slots=True)
class Bests:
    """The best epochs of a study so far, each better than the one before. Times are in s."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    trial: str | None = None  # of the last one
    config: Config = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a study at one time. Times are in s, by one clock."""

    study: Study
    rows: Sequence[Row]
    bests: Bests
    began: float
    ends: Sequence[float]  # when trials ended, since `began`
    now: float
    running: bool = True


def row(study: Study, trial: Trial) -> Row:
    value = trial.epochs[trial.epoch].get(study.metric) if trial.epochs else None
    return Row(trial.trial, trial.state, trial.epoch, value, trial.config)


def snapshot(history: History) -> Snapshot:
    """Returns the state of a study according to its journal."""
    best = history.best
    ends = (history.heard[t.trial] for t in history.trials.values() if t.state in STATES)
    return Snapshot(
        study=history.study,
        rows=[row(history.study, trial) for trial in history.trials.values()],
        bests=Bests(
            times=[epoch.end for epoch in history.records],
            values=[epoch.value for epoch in history.records],
            trial=best.trial if best else None,
            config=best.config if best else {},
        ),
        began=history.began or time.time(),
        ends=sorted(ends),
        now=time.time() if history.is_running else history.last or time.time(),
        running=history.is_running,
    )


def draw(seen: Snapshot, *, height: int) -> Any:
    """Returns what rich prints, of at most `height` lines."""
    from rich.table import Table
    from rich.text import Text

    if not seen.rows:
        return Text("starting Ray …" if seen.running else "no trial has begun", style="dim")
    study = seen.study
    title = Text("\n".join(_headlines(seen)), no_wrap=True, overflow="ellipsis")
    table = Table(title=title, title_justify="left", expand=True)
    for column in ("trial", "state", "epoch"):
        table.add_column(column, no_wrap=True, min_width=len("completed" * (column == "state")))
    # Long names of metrics are cut, their values are not; the config gets what is left.
    table.add_column(study.metric, no_wrap=True, min_width=9, max_width=20)
    table.add_column("config", no_wrap=True, overflow="ellipsis", ratio=1)
    # The title, the header and the frame stay in sight.
    for row in _shown(seen, most=max(1, min(ROWS, height - 8))):
        is_best = row.trial == seen.bests.trial
        table.add_row(
            row.trial,
            row.state,
            str(row.epoch),
            "" if row.value is None else short(row.value),
            " ".join(settings(row.config, study.space)),
            style="bold green" if is_best else "dim" if row.state != "running" else "",
        )
    return table


def _shown(seen: Snapshot, most: int) -> list[Row]:
    """Returns the rows to draw: the best, the running and the latest other trials, in order."""
    first = {r.trial: r for r in seen.rows if r.state == "running" or r.trial == seen.bests.trial}
    others = [row for row in reversed(seen.rows) if row.trial not in first]
    return sorted([*first.values(), *others][:most], key=lambda row: row.trial)


def _headlines(seen: Snapshot) -> list[str]:
    """Returns a line about the trials and, if there is one, a line about the best."""
    study, bests = seen.study, seen.bests
    states = [row.state for row in seen.rows]
    done = sum(state in STATES for state in states)
    ended = ", ".join(f"{states.count(s)} {s}" for s in STATES if s in states)
    parts = [f"{done} of {study.trials} trials done" + (f" ({ended})" if ended else "")]
    parts += [f"{states.count(s)} {s}" for s in ("running", "paused") if s in states]
    if seen.running and (left := left_s(seen)) is not None:
        parts.append(_left(*left))
    lines = [", ".join(parts)]
    if bests.trial is not None:
        line = sparkline(bests, seen.began, seen.now)
        config = " ".join(settings(bests.config, study.space))
        value = f"{short(bests.values[-1])} {line}".rstrip()
        lines.append(f"best {study.metric} {value} in trial {bests.trial}: {config}")
    return lines


def left_s(seen: Snapshot) -> tuple[float, float] | None:
    """Returns the shortest and the longest time, in s, that the study is likely to need; None if
    that is unknown.

    It treats the gaps between the ends of trials as independent draws of one distribution. After
    k gaps of mean m and standard deviation s, the sum of the next n has the mean nm and the
    variance ns² + n²s²/k, where the second term is the error of m. The range is two standard
    deviations to both sides, at most until the time limit. Of one or two gaps, s counts as m.
    """
    left = seen.study.trials - sum(row.state in STATES for row in seen.rows)
    if not seen.ends or left <= 0:
        return None
    times = [seen.began, *seen.ends]
    gaps = [max(0.0, after - before) for before, after in itertools.pairwise(times)]
    longest = _BREAK * statistics.median(gaps)  # the time before a resume is no gap
    gaps = [min(gap, longest) for gap in gaps]
    mean = statistics.fmean(gaps)
    deviation = statistics.stdev(gaps) if len(gaps) > 2 else mean
    around = left * mean
    error = 2 * deviation * math.sqrt(left + left**2 / len(gaps))
    since = seen.now - seen.ends[-1]
    low, high = max(0.0, around - error - since), max(0.0, around + error - since)
    if seen.study.time_limit_s is not None:
        limit = max(0.0, seen.study.time_limit_s - (seen.now - seen.began))
        low, high = min(low, limit), min(high, limit)
    return low, high


def _left(low_s: float, high_s: float) -> str:
    low, high = duration(low_s), duration(high_s)
    if low == high:
        return f"about {high} left"
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high} left"


def sparkline(bests: Bests, began: float, now: float, *, width: int = 12) -> str:
    """Returns the best value at each of `width` times between `began` and `now`, as bars."""
    seen: list[float | None] = []
    for i in range(1, width + 1):
        until = began + (now - began) * i / width
        reached = [v for t, v in zip(bests.times, bests.values, strict=True) if t <= until]
        seen.append(reached[-1] if reached else None)
    finite = [value for value in seen if value is not None and math.isfinite(value)]
    if not finite or min(finite) == max(finite):
        return ""
    # Halves, because the difference of two finite numbers may be infinite.
    low, span = min(finite) / 2, max(finite) / 2 - min(finite) / 2

    def bar(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        return _BARS[round((value / 2 - low) / span * (len(_BARS) - 1))]

    return "".join(map(bar, seen))
