"""What a person asks of a study that runs on a cluster: how far, how good, is it alive."""

import time
from collections.abc import Iterator

from siftune.history import History, duration, place, short
from siftune.journal import Trial

_ROWS = 20  # running trials that are listed


def lines(found: History, *, now: float | None = None) -> Iterator[str]:
    """One study, a paragraph. `now`: in s since 1970."""
    now = time.time() if now is None else now
    study, best = found.study, found.best
    yield f"{study.name}: {found.states()}; {_life(found, now)}"
    if best:
        yield f"  best {study.metric} {best.value:.6g} in trial {best.trial}, epoch {best.epoch}"
    if found.summary:
        busy, slots = found.summary["busy_fraction"], found.summary["slots"]
        real = found.summary.get("gpu_utilisation")
        gpus = "" if real is None else f", the GPUs themselves {100 * real:.0f} %"
        yield f"  {slots} slots busy {100 * busy:.0f} % of the time{gpus}"
    running = [trial for trial in found.trials.values() if trial.state == "running"]
    for trial in running[:_ROWS]:
        yield f"  trial {trial.trial} {_progress(found, trial)}, {_age(found, trial, now)}"
    if len(running) > _ROWS:
        yield f"  and {len(running) - _ROWS} more"


def _life(found: History, now: float) -> str:
    """Whether the study is done, alive or stopped, as far as the journal can tell."""
    if found.last is None:
        return "no trial has begun"
    ago = f"last event {duration(max(0.0, now - found.last))} ago"
    begun, running = len(found.trials), any(t.state == "running" for t in found.trials.values())
    if not running and begun >= (found.study.trials or 0):
        return f"done, {ago}"
    # A trial says nothing for the length of an epoch.
    longest = max((epoch.end - epoch.begin for epoch in found.epochs), default=300.0)
    if now - found.last < max(120.0, 3 * longest):
        return f"running, {ago}"
    return f"silent, {ago}: if its job is over, go on with --resume {found.study.name}"


def _progress(found: History, trial: Trial) -> str:
    most = trial.config.get("epochs")
    of = f" of {most}" if isinstance(most, int) else ""
    value = trial.epochs[trial.epoch].get(found.study.metric) if trial.epochs else None
    metric = "" if value is None else f", {found.study.metric} {short(value)}"
    return f"at epoch {trial.epoch}{of}{metric}"


def _age(found: History, trial: Trial, now: float) -> str:
    where = f"on {place(trial)}, " if trial.node else ""
    return f"{where}last heard of {duration(max(0.0, now - found.heard[trial.trial]))} ago"
