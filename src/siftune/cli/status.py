"""Describes a study on a cluster: whether it is running, how far it is, and how good."""

import time
from collections.abc import Iterator

from siftune.record.history import History, duration, place, short
from siftune.record.journal import STATES, Trial

_ROWS = 20  # unfinished trials that are listed


def lines(found: History, *, now: float | None = None) -> Iterator[str]:
    """One study, a paragraph. `now`: in s since 1970."""
    now = time.time() if now is None else now
    study, best = found.study, found.best
    last = "no trial has begun"
    if found.last is not None:
        last = f"last event {duration(max(0.0, now - found.last))} ago"
    yield f"{study.name}: {found.states()}; {found.life()}, {last}"
    if best:
        yield f"  best {study.metric} {best.value:.6g} in trial {best.trial}, epoch {best.epoch}"
    if found.summary:
        busy, slots = found.summary["busy_fraction"], found.summary["slots"]
        real = found.summary.get("gpu_utilisation")
        gpus = "" if real is None else f", the GPUs themselves {100 * real:.0f} %"
        yield f"  {slots} slots busy {100 * busy:.0f} % of the time{gpus}"
    unfinished = [trial for trial in found.trials.values() if trial.state not in STATES]
    for trial in unfinished[:_ROWS]:
        yield f"  trial {trial.trial} {_progress(found, trial)}, {_age(found, trial, now)}"
    if len(unfinished) > _ROWS:
        yield f"  and {len(unfinished) - _ROWS} more"


def _progress(found: History, trial: Trial) -> str:
    most = trial.config.get("epochs")
    of = f" of {most}" if isinstance(most, int) else ""
    value = trial.epochs[trial.epoch].get(found.study.metric) if trial.epochs else None
    metric = "" if value is None else f", {found.study.metric} {short(value)}"
    return f"at epoch {trial.epoch}{of}{metric}"


def _age(found: History, trial: Trial, now: float) -> str:
    where = f"on {place(trial)}, " if trial.node else ""
    return f"{where}last heard of {duration(max(0.0, now - found.heard[trial.trial]))} ago"
