"""CMA-ES on the numeric parameters of a space, as a function of the results so far.

Optuna's own sampler stores the strategy's state in its trials, so its result depends on which
proposals were requested. This module uses the underlying library instead.
"""

from collections.abc import Mapping

import cmaes
import numpy as np

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
