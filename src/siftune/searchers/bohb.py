"""The model of BOHB. Its scheduler is in schedulers/bohb.py.

The authors' package, hpbandster, is not used because it has not been maintained since 2018.
"""

from dataclasses import dataclass

import numpy as np

from siftune.searchers.base import Searcher
from siftune.searchers.model import is_fixed
from siftune.space import Config, Space
from siftune.space.domains import Domain


class Bohb(Searcher):
    """Density ratios per budget (Falkner, Klein, Hutter 2018, arXiv:1807.01774, section 3.2).

    A budget is an epoch. The model is fitted at the largest epoch that `min_points` + 2 trials have
    reached. By default, `min_points` is one more than the number of parameters, as in the paper.
    The best `top_n_percent` of these trials are good, the others bad. `num_samples` points are
    drawn around the good ones, and the point with the highest ratio of good to bad density is
    proposed. A `random_fraction` of the proposals is drawn at random. `min_bandwidth` is 0.001 in
    the paper. It is larger here, because a few good points that happen to lie close together would
    otherwise hold the proposals where they are. Raises ValueError for an
    option out of its range.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        min_points: int | None = None,
        top_n_percent: int = 15,
        num_samples: int = 64,
        random_fraction: float = 1 / 3,
        bandwidth_factor: float = 3,
        min_bandwidth: float = 0.05,
    ) -> None:
        super().__init__(space, seed=seed)
        if min_points is not None and min_points < 1:
            raise ValueError(f"min_points must be at least 1, got {min_points!r}")
        if not 0 < top_n_percent < 100:
            raise ValueError(f"top_n_percent must be between 0 and 100, got {top_n_percent!r}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples!r}")
        if not 0 <= random_fraction <= 1:
            raise ValueError(f"random_fraction must be in [0, 1], got {random_fraction!r}")
        if bandwidth_factor <= 0 or min_bandwidth <= 0:
            raise ValueError(
                "bandwidth_factor and min_bandwidth must be above 0, "
                f"got {bandwidth_factor!r} and {min_bandwidth!r}"
            )
        self._domains = {name: p.domain for name, p in space.parameters.items()}
        free = sum(not is_fixed(domain) for domain in self._domains.values())
        self._min_points = 1 + free if min_points is None else min_points
        self._top = top_n_percent / 100
        self._num_samples = num_samples
        self._random_fraction = random_fraction
        self._bandwidth_factor = bandwidth_factor
        self._min_bandwidth = min_bandwidth
        # epoch -> trial -> point and score. A trial counts once at each epoch, even if it was
        # restarted and reached the epoch twice.
        self._reports: dict[int, dict[str, tuple[np.ndarray, float]]] = {}
        self._failed: list[np.ndarray] = []

    def report(self, trial: str, epoch: int, score: float, seconds: float = 0.0) -> None:
        self._reports.setdefault(epoch, {})[trial] = (self._point(self.running[trial]), score)

    def learn(self, config: Config, score: float | None) -> None:
        if score is None:
            self._failed.append(self._point(config))

    def propose(self, number: int, attempt: int = 0) -> Config:
        rng = self.rng(number, attempt)
        epochs = [e for e, trials in self._reports.items() if len(trials) >= self._min_points + 2]
        if not epochs or rng.random() < self._random_fraction:
            return self.space.sample(rng)
        good, bad = self._split(max(epochs))
        candidates = good.draw(rng, self._num_samples, self._bandwidth_factor)
        best = candidates[np.argmax(good.log_pdf(candidates) - bad.log_pdf(candidates))]
        return self.space.decode(
            {
                name: _coordinate(domain, u)
                for (name, domain), u in zip(self._domains.items(), best, strict=True)
            }
        )

    def _split(self, epoch: int) -> tuple["_Density", "_Density"]:
        """Returns the densities of the good and bad points. A failure is bad at every epoch."""
        ranking = sorted(self._reports[epoch].values(), key=lambda entry: entry[1])
        points = [point for point, _ in ranking]
        good = max(self._min_points, int(self._top * len(points)))
        bad = max(self._min_points, len(points) - good)
        return self._density(points[:good]), self._density(points[-bad:] + self._failed)

    def _density(self, points: list[np.ndarray]) -> "_Density":
        levels = [d.size if d.kind == "category" and d.size else 0 for d in self._domains.values()]
        return _Density.of(np.array(points), np.array(levels), self._min_bandwidth)

    def _point(self, config: Config) -> np.ndarray:
        """Returns a config as a point: units, levels spread over [0, 1], categories as codes."""
        encoded = self.space.encode(config)
        return np.array(
            [
                (encoded[name] + 0.5) / domain.size
                if domain.kind == "level" and domain.size
                else encoded[name]
                for name, domain in self._domains.items()
            ],
            dtype=float,
        )


def _coordinate(domain: Domain, u: float) -> float:
    if domain.kind == "level" and domain.size:
        return min(domain.size - 1, int(u * domain.size))
    return float(u)


@dataclass(frozen=True, slots=True)
class _Density:
    """A product-kernel density: Gaussian for numbers, Aitchison and Aitken's for categories.

    hpbandster uses KDEMultivariate of statsmodels. That class counts the levels of a category in
    the points it has seen, and divides by zero if they have only one.
    """

    points: np.ndarray  # (points, coordinates)
    levels: np.ndarray  # (coordinates,): number of levels of a category, 0 for a number
    bandwidths: np.ndarray  # (coordinates,)

    @classmethod
    def of(cls, points: np.ndarray, levels: np.ndarray, min_bandwidth: float) -> "_Density":
        """Builds a density whose bandwidths follow the normal reference rule, as in the paper, with
        `min_bandwidth` as the minimum."""
        count, dimensions = points.shape
        rule = 1.06 * points.std(axis=0) * count ** (-1 / (4 + dimensions))
        # With this bandwidth all levels are equally probable, so it is the maximum of a category.
        widest = np.where(levels > 0, 1 - 1 / np.maximum(levels, 2), np.inf)
        return cls(points, levels, np.minimum(np.maximum(rule, min_bandwidth), widest))

    def draw(self, rng: np.random.Generator, count: int, factor: float) -> np.ndarray:
        """Draws points (count, coordinates) around those of this density. For numbers the
        bandwidths are multiplied by `factor`."""
        centres = self.points[rng.integers(len(self.points), size=count)]
        numbers = _truncated_normal(rng, centres, self.bandwidths * factor)
        moved = rng.random(centres.shape) < self.bandwidths
        others = np.floor(rng.random(centres.shape) * np.maximum(self.levels, 1))
        return np.where(self.levels > 0, np.where(moved, others, centres), numbers)

    def log_pdf(self, at: np.ndarray) -> np.ndarray:
        """Returns log densities (len(at),), up to a constant that all densities share."""
        distance = at[:, None, :] - self.points[None, :, :]
        gaussian = -0.5 * (distance / self.bandwidths) ** 2 - np.log(self.bandwidths)
        others = np.maximum(self.levels - 1, 1)
        categorical = np.where(
            distance == 0, np.log1p(-self.bandwidths), np.log(self.bandwidths / others)
        )
        kernels = np.where(self.levels > 0, categorical, gaussian).sum(axis=2)
        return np.logaddexp.reduce(kernels, axis=1) - np.log(len(self.points))


def _truncated_normal(
    rng: np.random.Generator, centres: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """Draws normal values around `centres`.

    Values outside [0, 1] are redrawn a few times and then clipped.
    """
    drawn = rng.normal(centres, widths)
    for _ in range(10):
        outside = (drawn < 0) | (drawn > 1)
        drawn = np.where(outside, rng.normal(centres, widths), drawn)
    return np.clip(drawn, 0, 1)
