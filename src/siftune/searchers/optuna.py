"""Optuna's samplers, through its public ask-and-tell interface."""

import math

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from siftune.searchers.cmaes import CmaEs
from siftune.searchers.model import ModelBased, moderate
from siftune.space import Config, Space
from siftune.space.domains import Domain

SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "qmc")

# TPE reads all its trials for each proposal, and treats the best 25 as good. It keeps between
# TPE_KEEPS and twice as many trials, among them always the best TPE_KEEPS_BEST.
TPE_KEEPS, TPE_KEEPS_BEST = 250, 50


class Optuna(ModelBased):
    """One of Optuna's samplers (Akiba et al. 2019), on the coordinates of the space.

        tpe    tree-structured Parzen estimator, multivariate, with a constant liar (Watanabe 2023);
               with hundreds of trials, it is fitted to the best ones and a sample of the others
        gp     Gaussian process with expected improvement
        cmaes  CMA-ES for numbers, and TPE for categories, which CMA-ES does not support
        nsga2  a genetic algorithm
        qmc    the Sobol sequence, without a model

    The first model is fitted after `startup` results; for nsga2 this is also the size of a
    generation. Raises ValueError for an unknown sampler, and for cmaes on a space without a
    numeric parameter.
    """

    def __init__(self, space: Space, *, seed: int, sampler: str = "tpe", startup: int = 10) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        super().__init__(space, seed=seed, startup=math.inf if sampler == "qmc" else startup)
        if sampler == "nsga2" and startup < 2:
            raise ValueError(f"startup must be at least 2 for nsga2, got {startup!r}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._name, self._startup = sampler, startup
        self._study = optuna.create_study(sampler=self._sampler(seed))
        self._asker = self._new_asker()
        # In the order that Optuna uses.
        self._distributions = {name: _distribution(self.free[name]) for name in sorted(self.free)}
        self._numbers: dict[str, int] = {}  # Optuna's number of each running trial
        self._cmaes = CmaEs(self.free) if sampler == "cmaes" else None
        if sampler == "gp":
            self.processes = 1
            # Optuna imports torch when it fits the first model, which is too late for seeding.
            import torch  # noqa: F401

    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        # A new sampler each time, because samplers keep random state and caches.
        self._study.sampler = sampler = self._sampler(int(rng.integers(2**32)))
        coordinates: dict[str, float]
        if isinstance(sampler, TPESampler):
            # Study.ask would read all trials three more times to infer the space.
            coordinates = sampler.sample_relative(self._study, self._asker, self._distributions)
        else:
            study = self._moderate_study() if isinstance(sampler, GPSampler) else self._study
            trial = study.ask(self._distributions)
            study.tell(trial, state=TrialState.FAIL)
            coordinates = dict(trial.params)
        return coordinates | (self._cmaes.ask(rng) if self._cmaes else {})

    def _new_asker(self) -> FrozenTrial:
        """Returns the trial to pass to TPE: a running trial without parameters, so that the sampler
        ignores it."""
        number = self._study.ask().number
        return self._study.get_trials(deepcopy=False)[number]

    def _moderate_study(self) -> optuna.Study:
        """Returns the study, or a copy with scores in a range that a Gaussian process can handle.
        The other samplers use only ranks."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        trials = self._study.get_trials(deepcopy=False, states=states)
        scores = {trial.number: trial.value for trial in trials if trial.value is not None}
        moderated = moderate(list(scores.values()))
        if moderated == list(scores.values()):
            return self._study
        values = dict(zip(scores, moderated, strict=True))
        study = optuna.create_study(sampler=self._study.sampler)
        for trial in trials:
            study.add_trial(
                optuna.create_trial(
                    state=trial.state,
                    value=values.get(trial.number),
                    params=trial.params,
                    distributions=trial.distributions,
                )
            )
        return study

    def _sampler(self, seed: int) -> BaseSampler:
        if self._name == "gp":
            return GPSampler(seed=seed, n_startup_trials=0)
        if self._name == "nsga2":
            return _Nsga2(seed=seed, population_size=self._startup)
        return TPESampler(seed=seed, n_startup_trials=0)

    def begin(self, trial: str, config: Config) -> None:
        super().begin(trial, config)
        self._add_running(trial)

    def _add_running(self, trial: str) -> None:
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=self.coordinates(self.running[trial]),
                distributions=self._distributions,
            )
        )
        self._numbers[trial] = self._study.get_trials(deepcopy=False)[-1].number

    def end(self, trial: str, score: float | None) -> None:
        coordinates = self.coordinates(self.running[trial])
        super().end(trial, score)
        number = self._numbers.pop(trial)
        if not self._known:
            # No score is known yet, so there is no worst score for the failed trial.
            self._study.tell(number, state=TrialState.PRUNED)
            return
        value = self.raw_scores[-1] if score is None else score
        if isinstance(self._study.sampler, _Nsga2):
            # Optuna sets the generation of a trial when it is asked for. Here this happens when the
            # trial ends: generations then depend only on the results, and each is filled once.
            frozen = self._study.get_trials(deepcopy=False)[number]
            self._study.sampler.get_trial_generation(self._study, frozen)
        self._study.tell(number, value)
        if self._cmaes:
            self._cmaes.tell(coordinates, value)
        if isinstance(self._study.sampler, TPESampler):
            self._forget()

    def _forget(self) -> None:
        """Reduces 2 × TPE_KEEPS trials to TPE_KEEPS: the best, and a sample of the others."""
        states = (TrialState.COMPLETE,)
        ended = self._study.get_trials(deepcopy=False, states=states)
        if len(ended) < 2 * TPE_KEEPS:
            return
        by_score = sorted(ended, key=lambda trial: (trial.value, trial.number))
        best, others = by_score[:TPE_KEEPS_BEST], by_score[TPE_KEEPS_BEST:]
        rng = np.random.default_rng([self.seed, len(self.configs)])
        chosen = rng.choice(len(others), TPE_KEEPS - TPE_KEEPS_BEST, replace=False)
        kept = best + [others[i] for i in chosen]
        self._study = optuna.create_study(sampler=self._study.sampler)
        self._study.add_trials(sorted(kept, key=lambda trial: trial.number))
        self._asker = self._new_asker()
        for trial in self._numbers:
            self._add_running(trial)


class _Nsga2(NSGAIISampler):
    """NSGA-II whose parents are always ordered by trial number.

    Optuna orders them so only if they are in its cache.
    """

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.size is None or domain.kind == "unit":
        return FloatDistribution(0, 1)
    if domain.kind == "level":
        return IntDistribution(0, domain.size - 1)
    return CategoricalDistribution(range(domain.size))
