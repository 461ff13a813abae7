"""Which hyper-parameters go with the metric, as far as the trials can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siftune.space.domains import Domain

MIN_TRIALS = 20
_BINS = 4  # of a domain with more values than a group each would leave trials for
_PERMUTATIONS = 1999


@dataclass(frozen=True, slots=True)
class Importance:
    """`share` of the variance of the trials' ranks that this parameter alone accounts for, 0 to 1.

    `p`: how often chance makes a share as large, with all parameters looked at accounted for.
    """

    name: str
    share: float
    p: float
    trials: int

    @property
    def told(self) -> bool:
        """Whether it is told from chance."""
        return self.p < 0.05


def importances(
    columns: Mapping[str, tuple[Domain, Sequence[object], Sequence[float]]],
) -> list[Importance]:
    """The importance of each parameter, the largest first; none of one with too few trials.

    `columns`: by name its domain, its values in the trials where it is active, and their metric.

    One-way analysis of variance on ranks: Kruskal and Wallis, "Use of ranks in one-criterion
    variance analysis" (JASA 1952), with epsilon squared (Kelley, "An unbiased correlation ratio
    measure", PNAS 1935) as the share, a permutation test, and Holm's correction ("A simple
    sequentially rejective multiple test procedure", 1979). It is the main effects of functional
    ANOVA (Hutter et al., ICML 2014) without a model in between: ranks do not mind trials that
    diverged, groups need no monotony, and a few dozen trials get an answer or none. What it does
    not see: interactions, and that a searcher makes parameters move together.
    """
    found = []
    for name, (domain, values, metric) in columns.items():
        groups = _groups(domain, values)
        if len(groups) >= MIN_TRIALS and groups.max() > 0:
            found.append(Importance(name, *_test(groups, np.asarray(metric)), len(groups)))
    return _holm(found)


def _groups(domain: Domain, values: Sequence[object]) -> np.ndarray:
    """A group for each trial [n], numbered from 0."""
    coordinates = np.array([domain.encode(value) for value in values])
    distinct = np.unique(coordinates)
    if domain.kind != "category" and len(distinct) > 2 * _BINS:
        edges = np.quantile(coordinates, np.arange(1, _BINS) / _BINS)
        coordinates = np.searchsorted(edges, coordinates, side="right")
    return np.unique(coordinates, return_inverse=True)[1] if len(values) else np.zeros(0, int)


def _test(groups: np.ndarray, metric: np.ndarray) -> tuple[float, float]:
    """Epsilon squared, and the share of permutations that do as well. groups, metric: [n]."""
    _, inverse, counts = np.unique(metric, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of equals: their mean rank
    ranks -= ranks.mean()
    n, k, total = len(ranks), int(groups.max()) + 1, float((ranks**2).sum())
    if total == 0 or k == n:
        return 0.0, 1.0
    members = np.eye(k)[groups]  # [n, k]
    rng = np.random.default_rng(0)
    times = min(_PERMUTATIONS, 4_000_000 // n)  # a few seconds and 100 MB at most
    shuffled = rng.permuted(np.broadcast_to(ranks, (times, n)), axis=1)
    eta, *others = (((np.vstack([ranks, shuffled]) @ members) ** 2) / members.sum(0)).sum(1) / total
    share = 1 - (1 - eta) * (n - 1) / (n - k)
    return max(0.0, float(share)), (1 + sum(o >= eta - 1e-12 for o in others)) / (1 + len(others))


def _holm(found: list[Importance]) -> list[Importance]:
    adjusted, least = [], 0.0
    for i, one in enumerate(sorted(found, key=lambda one: one.p)):
        least = max(least, min(1.0, one.p * (len(found) - i)))
        adjusted.append(Importance(one.name, one.share, least, one.trials))
    return sorted(adjusted, key=lambda one: (not one.told, -one.share))
