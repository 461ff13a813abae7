"""Other tools in the same simulation: Optuna with its own pruners, and HEBO's own batches."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from siftune.space import Config, Space
from siftune.space.conditions import Condition
from siftune.space.domains import Choice, Float
from tests.bench.quality.simulation import Next
from tests.bench.quality.tasks import Task


class OptunaStudy:
    """Optuna as its documentation uses it: ask, report, should_prune, tell."""

    def __init__(
        self, sampler: BaseSampler, pruner: BasePruner, task: Task, *, trials: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # The pruner of Hyperband draws the bracket of a trial from the name of the study.
        self._study = optuna.create_study(sampler=sampler, pruner=pruner, study_name="peer")
        self._space, self._epochs, self._left = Space.read(task.space), task.epochs, trials
        self._trials: dict[str, optuna.Trial] = {}

    def start(self, *, idle: bool) -> tuple[str, int, Config] | None:
        if not self._left:
            return None
        self._left -= 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask()
            config = self._config(trial)
        self._trials[str(trial.number)] = trial
        return str(trial.number), 1, config

    def _config(self, trial: optuna.Trial) -> Config:
        """Suggests the active parameters only, one after another, as a user's function does."""
        config: dict[str, Any] = {}
        for name, p in self._space.parameters.items():
            values = self._space.constants | config
            active = p.condition is None or Condition(p.condition).holds(values)
            config[name] = _suggest(trial, name, p.domain) if active else p.domain.default()
        return self._space.canonical(config)

    def report(self, trial: str, epoch: int, loss: float, seconds: float) -> Next:
        asked = self._trials[trial]
        asked.report(loss, epoch)
        if epoch < self._epochs and not asked.should_prune():
            return Next.CONTINUE
        best = min(self._study.trials[asked.number].intermediate_values.values())
        if epoch < self._epochs:
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, best)
        return Next.LEAVE

    def fail(self, trial: str) -> None:
        self._study.tell(self._trials[trial], state=TrialState.FAIL)


def _suggest(trial: optuna.Trial, name: str, domain: Any) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.options)
    suggest = trial.suggest_float if isinstance(domain, Float) else trial.suggest_int
    return suggest(name, domain.low, domain.high, log=domain.log)


class HeboBatches:
    """HEBO called directly, for as many trials at once as there are slots: `suggest(slots)`."""

    def __init__(self, task: Task, *, slots: int, seed: int, trials: int) -> None:
        from hebo.optimizers.hebo import HEBO

        from siftune.searchers.hebo import Hebo

        self._space = Space.read(task.space)
        self._model = Hebo(self._space, seed=seed)
        self._hebo = HEBO(self._model._design, scramble_seed=seed)
        self._slots, self._left, self._number = slots, trials, 0
        self._waiting: list[Config] = []
        self._configs: dict[str, Config] = {}
        self._losses: list[float] = []

    def start(self, *, idle: bool) -> tuple[str, int, Config] | None:
        if not self._waiting and (not idle or not self._left):
            return None  # a batch begins when the one before it has ended
        if not self._waiting:
            count = min(self._slots, self._left)
            self._left -= count
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                points = self._hebo.suggest(count)
            names = list(self._model.free)
            rows = [dict(zip(names, row, strict=True)) for row in points[names].to_numpy()]
            self._waiting = [self._model.config(row) for row in rows]
        self._number += 1
        config = self._configs[str(self._number)] = self._waiting.pop(0)
        return str(self._number), 1, config

    def report(self, trial: str, epoch: int, loss: float, seconds: float) -> Next:
        self._losses.append(loss)
        point = pd.DataFrame([self._model.coordinates(self._configs[trial])])
        self._hebo.observe_new_data(point, np.array([[loss]]))
        return Next.LEAVE

    def fail(self, trial: str) -> None:
        self.report(trial, 1, max(self._losses, default=0.0), 0.0)


def _optuna(sampler: Callable[..., BaseSampler], pruner: Callable[[], BasePruner]) -> Any:
    def build(task: Task, *, slots: int, seed: int, trials: int) -> OptunaStudy:
        return OptunaStudy(sampler(seed=seed), pruner(), task, trials=trials)

    return build


PEERS: dict[str, Any] = {
    "Optuna TPE": _optuna(TPESampler, NopPruner),
    "Optuna GP": _optuna(GPSampler, NopPruner),
    "HEBO": HeboBatches,
    "Optuna TPE + successive halving": _optuna(TPESampler, SuccessiveHalvingPruner),
    "Optuna TPE + Hyperband": _optuna(TPESampler, HyperbandPruner),
    "Optuna random + successive halving": _optuna(RandomSampler, SuccessiveHalvingPruner),
}
