"""CMA-ES and NSGA-II, as functions of the results so far.

Optuna's own samplers store their state in the trials for which they were asked, so their proposals
depend on which proposals were requested. Here only results count.
"""

from collections.abc import Mapping

import cmaes
import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from siftune.space.domains import Domain


class CmaEs:
    """CMA-ES (Hansen 2016) on units and levels. Levels are rounded, as in Optuna.

    Each generation consists of the next `population_size` results, in order of arrival. The
    strategy may be told points that it did not draw (Hansen 2011, arXiv:1110.4181), so results
    from the start-up phase and late results are used as well. Raises ValueError if the space has
    no numeric parameter.
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._sizes = {name: d.size for name, d in domains.items() if d.kind != "category"}
        self._units = {name for name, d in domains.items() if d.kind == "unit"}
        if not self._sizes:
            raise ValueError("sampler cmaes needs a numeric parameter, got a space of categories")
        dimensions = len(self._sizes)
        # 0.29 is the standard deviation of a uniform distribution on [0, 1].
        self._strategy = cmaes.CMA(
            mean=np.full(dimensions, 0.5),
            sigma=0.29,
            bounds=np.tile([0.0, 1.0], (dimensions, 1)),
            n_max_resampling=10 * dimensions,
        )
        self._generation: list[tuple[np.ndarray, float]] = []

    def tell(self, coordinates: Mapping[str, float], score: float) -> None:
        point = [self._to_unit(name, coordinates[name]) for name in self._sizes]
        self._generation.append((np.array(point), score))
        if len(self._generation) == self._strategy.population_size:
            self._strategy.tell(self._generation)
            self._generation = []

    def ask(self, rng: np.random.Generator) -> dict[str, float]:
        """Returns coordinates drawn from the strategy, without changing the strategy."""
        self._strategy.reseed_rng(int(rng.integers(2**32)))
        point = self._strategy.ask()
        return {name: self._from_unit(name, u) for name, u in zip(self._sizes, point, strict=True)}

    def _to_unit(self, name: str, coordinate: float) -> float:
        size = self._sizes[name]
        return coordinate if name in self._units or size is None else (coordinate + 0.5) / size

    def _from_unit(self, name: str, u: float) -> float:
        size = self._sizes[name]
        return float(u) if name in self._units or size is None else min(size - 1, int(u * size))


class Nsga2:
    """A genetic algorithm (Deb et al. 2002). Each generation consists of the next `population`
    results, in order of arrival. Raises ValueError for a population below 2."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], population: int) -> None:
        if population < 2:
            raise ValueError(f"startup must be at least 2 for nsga2, got {population!r}")
        self._distributions, self._population = dict(distributions), population
        self._study = optuna.create_study(sampler=self._sampler(0))

    def tell(self, coordinates: Mapping[str, float], score: float) -> None:
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=dict(coordinates),
                distributions=self._distributions,
            )
        )
        trial = self._study.get_trials(deepcopy=False)[-1]
        # Optuna sets the generation of a trial when it is asked for. Here this happens when the
        # trial ends: generations then depend only on the results, and each is filled once.
        self._sampler(0).get_trial_generation(self._study, trial)
        self._study.tell(trial.number, score)

    def ask(self, rng: np.random.Generator) -> dict[str, float]:
        """Returns coordinates of a child of the last generation, without changing the results."""
        self._study.sampler = self._sampler(int(rng.integers(2**32)))
        trial = self._study.ask(self._distributions)
        self._study.tell(trial, state=TrialState.FAIL)
        return dict(trial.params)

    def _sampler(self, seed: int) -> NSGAIISampler:
        return _OrderedParents(seed=seed, population_size=self._population)


class _OrderedParents(NSGAIISampler):
    """NSGA-II whose parents are always ordered by trial number.

    Optuna orders them so only if they are in its cache.
    """

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)
