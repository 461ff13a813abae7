"""Estimates how strongly each hyper-parameter is related to the metric, from a study's trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siftune.space.domains import Domain

MIN_TRIALS = 20
_BINS = 4  # groups of a numeric domain with too many values to give each a group of its own
_PERMUTATIONS = 1999


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance of one parameter.

    `share`: how much of the variance in the trials' ranks this parameter explains alone, 0 to 1.
    `p`: the p-value of the share, corrected for the number of parameters. `trials`: the number of
    trials where the parameter is active.
    """

    name: str
    share: float
    p: float
    trials: int

    @property
    def told(self) -> bool:
        """Whether the share is statistically significant."""
        return self.p < 0.05


def importances(
    columns: Mapping[str, tuple[Domain, Sequence[object], Sequence[float]]],
) -> list[Importance]:
    """Returns the importance of each parameter, significant ones first, then by share.

    Parameters with too few trials are omitted. `columns`: for each name the domain, the values in
    the trials where the parameter is active, and the metric of these trials.

    One-way analysis of variance on ranks: Kruskal and Wallis, "Use of ranks in one-criterion
    variance analysis" (JASA 1952), with epsilon squared (Kelley, "An unbiased correlation ratio
    measure", PNAS 1935) as the share, a permutation test, and Holm's correction ("A simple
    sequentially rejective multiple test procedure", 1979). This gives the main effects of
    functional ANOVA (Hutter et al., ICML 2014) without fitting a model: ranks are robust to trials
    that diverged, groups need no monotonic relation, and the test works with a few dozen trials.
    The method ignores interactions and the fact that a searcher varies parameters together.
    """
    entries = []
    for name, (domain, values, metric) in columns.items():
        groups = _groups(domain, values)
        if len(groups) >= MIN_TRIALS and groups.max() > 0:
            entries.append(Importance(name, *_test(groups, np.asarray(metric)), len(groups)))
    return _holm(entries)


def _groups(domain: Domain, values: Sequence[object]) -> np.ndarray:
    """Returns the group of each trial [n], numbered from 0."""
    coordinates = np.array([domain.encode(value) for value in values])
    distinct = np.unique(coordinates)
    if domain.kind != "category" and len(distinct) > 2 * _BINS:
        edges = np.quantile(coordinates, np.arange(1, _BINS) / _BINS)
        coordinates = np.searchsorted(edges, coordinates, side="right")
    return np.unique(coordinates, return_inverse=True)[1] if len(values) else np.zeros(0, int)


def _test(groups: np.ndarray, metric: np.ndarray) -> tuple[float, float]:
    """Returns epsilon squared and its permutation p-value. `groups`, `metric`: [n]."""
    _, inverse, counts = np.unique(metric, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal values get their mean rank
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


def _holm(entries: list[Importance]) -> list[Importance]:
    """Returns the entries with Holm-corrected p-values, significant ones first."""
    adjusted, least = [], 0.0
    for i, entry in enumerate(sorted(entries, key=lambda entry: entry.p)):
        least = max(least, min(1.0, entry.p * (len(entries) - i)))
        adjusted.append(Importance(entry.name, entry.share, least, entry.trials))
    return sorted(adjusted, key=lambda entry: (not entry.told, -entry.share))
