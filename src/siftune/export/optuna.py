"""Writes a study as an SQLite file of Optuna, for its dashboard, its plots and `load_study`."""

import json
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from siftune.machine.files import replacing
from siftune.record.history import History
from siftune.record.journal import STATES, Trial
from siftune.space.domains import Choice, Domain, Integer

_STATES = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "paused": TrialState.RUNNING,
}


def writer(directory: Path, *, follow: bool) -> Callable[[History], list[Path]]:
    """Returns a function that writes optuna.db, and returns its path. An earlier file is replaced.

    A trial has the parameters that have an effect, the metric of each epoch as intermediate values,
    and that of its best epoch as its value. Constants and other metrics are user attributes.

    `follow`: the function is called again, and adds to the file, which a dashboard may have open.
    Optuna has no way to change a trial that it was told, so a trial is added when it has ended.
    """
    return _File(directory / "optuna.db", follow=follow).write


class _File:
    def __init__(self, path: Path, *, follow: bool) -> None:
        self._path = path
        self._follow = follow
        self._added: set[str] = set()

    def write(self, history: History) -> list[Path]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self._added:
            self._add(history, self._path)
        else:
            with replacing(self._path) as new:
                self._add(history, new)
        return [self._path]

    def _add(self, history: History, path: Path) -> None:
        new = [t for t in history.trials.values() if t.trial not in self._added]
        if self._follow:
            new = [trial for trial in new if trial.state in STATES]
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(
            storage=storage,
            study_name=history.study.name,
            direction="minimize" if history.study.mode == "min" else "maximize",
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([history.study.metric])
            study.add_trials([_trial(history, len(self._added) + k, t) for k, t in enumerate(new)])
        storage.remove_session()
        storage.engine.dispose()
        self._added |= {trial.trial for trial in new}


def _trial(history: History, number: int, trial: Trial) -> FrozenTrial:
    space, metric = history.study.space, history.study.metric
    active = space.active(trial.config)
    free = {name: p.domain for name, p in space.parameters.items() if name in active}
    top = history.tops.get(trial.trial)
    state = _STATES.get(history.state(trial), TrialState.FAIL)
    begin, end = (
        datetime.fromtimestamp(times[trial.trial]) for times in (history.begun, history.heard)
    )
    others = {name: value for name, value in active.items() if name not in free}
    if top:
        others |= {name: value for name, value in top.metrics.items() if name != metric}
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=top.value if top and state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params={name: _value(domain, active[name]) for name, domain in free.items()},
        distributions={name: _distribution(domain) for name, domain in free.items()},
        system_attrs={},
        user_attrs={"trial": trial.trial, "error": trial.error} | others,
        intermediate_values={
            epoch: float(metrics[metric]) for epoch, metrics in trial.epochs.items()
        },
        datetime_start=begin,
        datetime_complete=None if state is TrialState.RUNNING else end,
    )


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution([_option(option) for option in domain.options])
    low, high = domain.canonical(domain.low), domain.canonical(domain.high)
    step = None if domain.log else domain.step  # Optuna has no steps on a log scale
    if isinstance(domain, Integer):
        return IntDistribution(int(low), int(high), log=domain.log, step=int(step or 1))
    return FloatDistribution(low, high, log=domain.log, step=step)


def _value(domain: Domain, value: Any) -> Any:
    return _option(domain.canonical(value)) if isinstance(domain, Choice) else value


def _option(option: Any) -> bool | int | float | str | None:
    """Returns an option as Optuna knows them. A list becomes JSON."""
    return json.dumps(option) if isinstance(option, list | tuple | dict) else option
