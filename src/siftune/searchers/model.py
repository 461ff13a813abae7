"""Code shared by the searchers that fit a model to all results."""

import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from statistics import median

import numpy as np
from scipy.stats import qmc

from siftune.searchers.base import Searcher
from siftune.space import Config, Space
from siftune.space.domains import Domain, Float
from siftune.space.randomness import seeded

# After this many refused proposals for one number the config is random: the optimum of the model
# may be a config that was already trained, whatever the seed.
MODEL_ATTEMPTS = 3

# A score above both limits means that the trial diverged: an absolute limit, and a multiple of a
# usual score.
_DIVERGED, _UNUSUAL = 1e9, 1e6
_LARGEST = 1e15  # its square, and sums of such squares, fit into single precision


class ModelBased(Searcher):
    """Proposes points of a Sobol sequence until `startup` scores are known, then points of a model.

    `configs` and `scores` have all results, in the order in which the trials ended.

    Raises ValueError for a `startup` below 1.
    """

    def __init__(self, space: Space, *, seed: int, startup: float) -> None:
        super().__init__(space, seed=seed)
        if startup < 1:
            raise ValueError(f"startup must be at least 1, got {startup!r}")
        self.startup = startup
        self.configs: list[Config] = []
        self._scores: list[float | None] = []
        self._known = 0  # number of scores that are not None
        # Parameters with one value are omitted: libraries fail on them and learn nothing.
        self.free: dict[str, Domain] = {
            name: p.domain for name, p in space.parameters.items() if not is_fixed(p.domain)
        }

    @abstractmethod
    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        """Returns coordinates of the free parameters, from a model of the scores.

        The global random generators are seeded. All other randomness must come from `rng`.
        """

    def learn(self, config: Config, score: float | None) -> None:
        self.configs.append(config)
        self._scores.append(score)
        self._known += score is not None

    @property
    def raw_scores(self) -> list[float]:
        """The scores in the order of `configs`. A failed config gets the worst score seen: a model
        avoids it, and no invented number distorts the scale."""
        known = [score for score in self._scores if score is not None]
        worst = max(known, default=0.0)
        return [worst if score is None else score for score in self._scores]

    @property
    def scores(self) -> list[float]:
        """The scores in a range that a model can handle; see `moderate`."""
        return moderate(self.raw_scores)

    def propose(self, number: int, attempt: int = 0) -> Config:
        rng = self.rng(number, attempt)
        if not self.free or attempt >= MODEL_ATTEMPTS:
            return self.space.sample(rng)
        if not self._has_model():
            return self.config(self._spread(number)) if attempt == 0 else self.space.sample(rng)
        with seeded(rng):
            return self.config(self.suggest(rng))

    def is_slow(self) -> bool:
        return self.processes > 0 and self._has_model()

    def _has_model(self) -> bool:
        return self._known >= self.startup

    def config(self, coordinates: dict[str, float]) -> Config:
        """Returns the config at these coordinates of the free parameters."""
        return self.space.decode(dict.fromkeys(self.space.parameters, 0) | coordinates)

    def coordinates(self, config: Config) -> dict[str, float]:
        """Returns the coordinates of the free parameters of a config."""
        encoded = self.space.encode(config)
        return {name: encoded[name] for name in self.free}

    def with_lies(self) -> tuple[list[Config], list[float]]:
        """Returns configs and scores. Each running config gets a lie: the median of the scores.

        This is a constant liar (Ginsbourger, Le Riche, Carraro 2010). The median removes the
        uncertainty around the running config and changes neither the best score nor the scale.
        """
        scores = self.scores
        running = [self.running[trial] for trial in sorted(self.running)]
        return self.configs + running, scores + [median(scores)] * len(running)

    def _spread(self, number: int) -> dict[str, float]:
        """Returns point `number` of the seed's scrambled Sobol sequence."""
        engine = qmc.Sobol(len(self.free), rng=np.random.default_rng(self.seed))
        point = engine.fast_forward(number).random()[0] if number else engine.random()[0]
        return {
            name: float(u) if domain.kind == "unit" else _level(u, domain)
            for (name, domain), u in zip(self.free.items(), point, strict=True)
        }


def moderate(scores: Sequence[float]) -> list[float]:
    """Returns the scores with the same ranking, without numbers that a model cannot handle.

    A trial that diverged may report any number. The variance of scores that include 1e200 is
    infinite, and all other scores become equal in comparison. Such a score is replaced by one that
    is as far beyond the worst of the others as the worst is from the best. If scores are still
    enormous, positive or negative, all are mapped to [0, 1]. Other scores stay as they are.
    """
    if not scores:
        return []
    usual = sorted(map(abs, scores))[:2][-1]  # the second smallest: one may be a perfect fit
    limit = max(_DIVERGED, _UNUSUAL * usual)
    others = [score for score in scores if score <= limit]
    worst, best = max(others), min(others)
    beyond = worst + ((worst - best) or max(1.0, abs(worst)))
    limited = [score if score <= limit else min(beyond, sys.float_info.max) for score in scores]
    if max(map(abs, limited)) <= _LARGEST:
        return limited
    # Halved, because the difference may be too large for a float.
    worst, best = max(limited) / 2, min(limited) / 2
    return [(score / 2 - best) / ((worst - best) or 1.0) for score in limited]


def _level(u: float, domain: Domain) -> int:
    assert domain.size is not None
    return min(domain.size - 1, math.floor(u * domain.size))


def is_fixed(domain: Domain) -> bool:
    """Returns whether the domain has only one value."""
    return domain.low == domain.high if isinstance(domain, Float) else domain.size == 1
