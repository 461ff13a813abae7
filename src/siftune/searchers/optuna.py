"""Optuna's samplers, through its public ask-and-tell interface."""

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from siftune.searchers.model import ModelBased, moderate
from siftune.searchers.populations import CmaEs, Nsga2
from siftune.space import Config, Space
from siftune.space.domains import Domain

SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "qmc")

# TPE reads all its trials for each proposal, and treats the best 25 as good. It is told at most
# TPE_KEEPS results, among them the best TPE_KEEPS_BEST, and the newest KEEPS_RUNNING running trials
# without a result.
TPE_KEEPS, TPE_KEEPS_BEST, KEEPS_RUNNING = 250, 50, 100


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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler = sampler
        # In the order that Optuna uses.
        self._distributions = {name: _distribution(self.free[name]) for name in sorted(self.free)}
        self._cmaes = CmaEs(self.free) if sampler == "cmaes" else None
        self._nsga2 = Nsga2(self._distributions, startup) if sampler == "nsga2" else None
        if sampler == "gp":
            self.processes = 1
            # Optuna imports torch when it fits the first model, which is too late for seeding.
            import torch  # noqa: F401

    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        if self._nsga2:
            return self._nsga2.ask(rng)
        seed = int(rng.integers(2**32))
        if self._sampler == "gp":
            coordinates = self._ask(GPSampler(seed=seed, n_startup_trials=0))
        else:
            coordinates = self._ask(TPESampler(seed=seed, n_startup_trials=0))
        return coordinates | (self._cmaes.ask(rng) if self._cmaes else {})

    def _ask(self, sampler: BaseSampler) -> dict[str, float]:
        """Returns the coordinates that a sampler proposes after all results.

        The study is built anew for each proposal: the scores that compare trials at the same epoch
        change with every report, and a sampler keeps random state and caches.
        """
        configs, scores, running = self.results()
        scores = moderate(scores)  # a Gaussian process needs it, and TPE uses only ranks
        kept = range(len(scores)) if self._sampler == "gp" else self._kept(scores)
        study = optuna.create_study(sampler=sampler)
        study.add_trials(
            [self._trial(configs[k], value=scores[k]) for k in kept]
            + [self._trial(config, state=TrialState.RUNNING) for config in running[-KEEPS_RUNNING:]]
        )
        return dict(study.ask(self._distributions).params)

    def _trial(self, config: Config, **result: Any) -> FrozenTrial:
        return optuna.create_trial(
            params=self.coordinates(config), distributions=self._distributions, **result
        )

    def _kept(self, scores: list[float]) -> list[int]:
        """Returns which results TPE is told: the best, and a sample of the others.

        A result that is in the sample usually stays in it when others arrive.
        """
        if len(scores) <= TPE_KEEPS:
            return list(range(len(scores)))
        by_score = sorted(range(len(scores)), key=lambda k: (scores[k], k))
        order = np.random.default_rng(self.seed).random(len(scores))
        others = sorted(by_score[TPE_KEEPS_BEST:], key=lambda k: order[k])
        return sorted(by_score[:TPE_KEEPS_BEST] + others[: TPE_KEEPS - TPE_KEEPS_BEST])

    def end(self, trial: str, score: float | None) -> None:
        coordinates = self.coordinates(self.running[trial])
        super().end(trial, score)
        # Before the first score there is no worst score for a failed trial.
        if self._known and (population := self._cmaes or self._nsga2):
            told = self.results()[1][len(self.configs) - 1] if score is None else score
            population.tell(coordinates, told)


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.size is None or domain.kind == "unit":
        return FloatDistribution(0, 1)
    if domain.kind == "level":
        return IntDistribution(0, domain.size - 1)
    return CategoricalDistribution(range(domain.size))
