"""Bayesian optimisation with the package bayesian-optimization and its typed parameters."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import (
    AcquisitionFunction,
    ExpectedImprovement,
    ProbabilityOfImprovement,
    UpperConfidenceBound,
)
from bayes_opt.parameter import (
    BayesParameter,
    CategoricalParameter,
    FloatParameter,
    IntParameter,
)
from bayes_opt.target_space import TargetSpace
from scipy.optimize import differential_evolution

from siftune.searchers.model import ModelBased
from siftune.space import Space
from siftune.space.domains import Domain


class _InBatches(AcquisitionFunction):
    """The library's differential evolution, but evaluating a whole generation at once.

    In a mixed space the library evaluates the points one by one. With 50 results, a proposal then
    takes 12 s instead of half a second.
    """

    def _smart_minimize(
        self,
        acq: Callable[[np.ndarray], np.ndarray],
        space: TargetSpace,
        x_seeds: np.ndarray,
        random_state: np.random.RandomState,
    ) -> tuple[np.ndarray | None, float]:
        if all(space.continuous_dimensions):
            return super()._smart_minimize(acq, space, x_seeds, random_state)
        start = space.random_sample(15 * len(space.bounds), random_state=random_state)
        start[: len(x_seeds)] = x_seeds
        optimum = differential_evolution(
            lambda points: acq(points.T),  # scipy's points are columns
            space.bounds,
            init=start,
            polish=False,
            vectorized=True,
            updating="deferred",
            rng=random_state,
        )
        return optimum.x, optimum.fun


class _Ucb(_InBatches, UpperConfidenceBound):
    pass


class _Ei(_InBatches, ExpectedImprovement):
    pass


class _Poi(_InBatches, ProbabilityOfImprovement):
    pass


ACQUISITIONS: dict[str, Callable[[float, float], AcquisitionFunction]] = {
    "ucb": lambda kappa, _: _Ucb(kappa=kappa),
    "ei": lambda _, xi: _Ei(xi=xi),
    "poi": lambda _, xi: _Poi(xi=xi),
}


class BayesOpt(ModelBased):
    """A Gaussian process with typed inputs (Garrido-Merchán and Hernández-Lobato 2020).

    `acquisition` is `ucb` (uses `kappa`), `ei` or `poi` (both use `xi`). Larger values of `kappa`
    and `xi` explore more. The first model is fitted after `startup` results. Raises ValueError for
    an unknown acquisition, and if `kappa` or `xi` is below 0.
    """

    processes = 1

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        acquisition: str = "ucb",
        kappa: float = 2.576,
        xi: float = 0.01,
        startup: int = 10,
    ) -> None:
        super().__init__(space, seed=seed, startup=startup)
        if acquisition not in ACQUISITIONS:
            known = ", ".join(ACQUISITIONS)
            raise ValueError(f"acquisition must be one of {known}, got {acquisition!r}")
        if kappa < 0 or xi < 0:
            raise ValueError(f"kappa and xi must be at least 0, got {kappa!r} and {xi!r}")
        self._acquisition = lambda: ACQUISITIONS[acquisition](kappa, xi)

    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        optimizer = self._optimizer(int(rng.integers(2**32)))
        registered = set()
        for config, score in zip(*self.with_lies(), strict=True):
            point = self.coordinates(config)
            # The library refuses a point that it has. The first score is kept: no lie replaces one.
            if (identity := tuple(point.values())) not in registered:
                registered.add(identity)
                optimizer.register(point, -score)  # the library maximises
        return {name: float(value) for name, value in optimizer.suggest().items()}

    def _optimizer(self, seed: int) -> BayesianOptimization:
        parameters = {name: _parameter(name, d) for name, d in self.free.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Non-float parameters are experimental")
            return BayesianOptimization(
                None,
                cast(Any, parameters),  # the annotation omits the library's own classes
                self._acquisition(),
                random_state=seed,
                verbose=0,
            )


class _Level(IntParameter):
    """A level, scaled to [0, 1] in the kernel so that it has as much weight as a unit."""

    def kernel_transform(self, value: np.ndarray) -> np.ndarray:
        return super().kernel_transform(value) / self.bounds[1]


def _parameter(name: str, domain: Domain) -> BayesParameter:
    if domain.size is None or domain.kind == "unit":
        return FloatParameter(name, (0, 1))
    if domain.kind == "level":
        return _Level(name, (0, domain.size - 1))
    return CategoricalParameter(name, range(domain.size))
