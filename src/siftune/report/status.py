"""The lines of `status` about one study."""

import time
from collections.abc import Iterator

from siftune.record import logs
from siftune.record.history import History
from siftune.record.journal import STATES, Trial
from siftune.record.wording import duration, place, short

_ROWS = 20  # maximum number of unfinished trials listed
_ERRORS = 3  # that are shown


def lines(history: History, *, now: float | None = None) -> Iterator[str]:
    """Yields the lines about one study. `now`: the time, in s since 1970."""
    now = time.time() if now is None else now
    study, best = history.study, history.best
    yield headline(history, now=now)
    if best:
        yield f"  best {study.metric} {best.value:.6g} in trial {best.trial}, epoch {best.epoch}"
    if history.summary:
        busy, slots = history.summary["busy_fraction"], history.summary["slots"]
        real = history.summary.get("gpu_utilisation")
        gpus = "" if real is None else f", GPU utilisation {100 * real:.0f} %"
        yield f"  {slots} slots busy {100 * busy:.0f} % of the time{gpus}"
    unfinished = [trial for trial in history.trials.values() if trial.state not in STATES]
    for trial in unfinished[:_ROWS]:
        yield f"  trial {trial.trial} {_progress(history, trial)}, {_age(history, trial, now)}"
    if len(unfinished) > _ROWS:
        yield f"  and {len(unfinished) - _ROWS} more"
    yield from _failures(history)


def headline(history: History, *, now: float | None = None) -> str:
    """Returns the name of a study, its trials by state, and whether it runs."""
    now = time.time() if now is None else now
    last = "no trial has begun"
    if history.last is not None:
        last = f"last event {duration(max(0.0, now - history.last))} ago"
    return f"{history.study.name}: {history.states()}; {history.life()}, {last}"


def _failures(history: History) -> Iterator[str]:
    """Yields the latest errors, each once, with the end of the log of its trial."""
    failed: dict[str, Trial] = {}
    for trial in history.trials.values():
        if trial.error:
            failed[trial.error.strip().rpartition("\n")[2]] = trial
    for error, trial in list(failed.items())[-_ERRORS:]:
        yield f"  trial {trial.trial} failed: {short(error, most=200)}"
        for line in logs.tail(history.directory, trial.trial):
            yield f"    | {short(line, most=200)}"


def _progress(history: History, trial: Trial) -> str:
    most = trial.config.get("epochs")
    of = f" of {most}" if isinstance(most, int) else ""
    value = trial.epochs[trial.epoch].get(history.study.metric) if trial.epochs else None
    metric = "" if value is None else f", {history.study.metric} {short(value)}"
    return f"at epoch {trial.epoch}{of}{metric}"


def _age(history: History, trial: Trial, now: float) -> str:
    where = f"on {place(trial.node, trial.gpu)}, " if trial.node else ""
    return f"{where}last heard of {duration(max(0.0, now - history.heard[trial.trial]))} ago"
