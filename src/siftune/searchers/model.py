"""Code shared by the searchers that fit a model to all results."""

import math
import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import qmc

from siftune.searchers.base import Searcher
from siftune.searchers.curves import Curves
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

    `configs` has the configs of all trials that ended, in this order. `results` has the scores.

    Raises ValueError for a `startup` below 1.
    """

    def __init__(self, space: Space, *, seed: int, startup: float) -> None:
        super().__init__(space, seed=seed)
        if startup < 1:
            raise ValueError(f"startup must be at least 1, got {startup!r}")
        self.startup = startup
        self.configs: list[Config] = []
        self._ended: list[str] = []  # trials, in the order of `configs`
        self._scores: list[float | None] = []
        self._curves = Curves()
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

    def report(self, trial: str, epoch: int, score: float, seconds: float = 0.0) -> None:
        self._curves.report(trial, epoch, score)

    def end(self, trial: str, score: float | None) -> None:
        super().end(trial, score)
        self._ended.append(trial)
        self._scores.append(score)
        self._known += score is not None

    def learn(self, config: Config, score: float | None) -> None:
        self.configs.append(config)

    def results(self) -> tuple[list[Config], list[float], list[Config]]:
        """Returns the configs of all trials that ended or reported, a score for each, and the
        configs of the other running trials.

        The scores compare the trials at the same epoch; see `Curves`. If the epochs of a trial are
        a parameter of the space, each counts with its best score, and running trials have none. A
        failed trial gets the worst score: a model avoids its config, and no invented number
        distorts the scale.
        """
        running = sorted(self.running)
        comparable = "epochs" not in self.free
        reported = [trial for trial in running if comparable and self._curves.has(trial)]
        scores = dict(zip(self._ended, self._scores, strict=True))
        if comparable:
            good = [trial for trial, score in scores.items() if score is not None] + reported
            told = [trial for trial in good if self._curves.has(trial)]
            scores |= zip(told, self._curves.scores(told), strict=True)
        return (
            self.configs + [self.running[trial] for trial in reported],
            _with_worst(scores.values()),
            [self.running[trial] for trial in running if trial not in reported],
        )

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
        """Returns configs and scores. Each running config gets a lie: the score of the nearest
        result.

        This is a constant liar (Ginsbourger, Le Riche, Carraro 2010) with a local constant. It
        removes the uncertainty around the running config, and leaves the model's mean as it is
        there. One constant for all, such as the median, would make a hill of it where the results
        are good.
        """
        configs, scores, running = self.results()
        scores = moderate(scores)
        nearest = [int(self._distances(config, configs).argmin()) for config in running]
        return configs + running, scores + [scores[k] for k in nearest]

    def _distances(self, config: Config, others: list[Config]) -> np.ndarray:
        """Returns the distances (others,) of a config from the others: the sum over the free
        parameters, of which each counts at most 1."""
        points = np.array([list(self.coordinates(other).values()) for other in others])
        apart = np.abs(points - list(self.coordinates(config).values()))
        for column, domain in enumerate(self.free.values()):
            if domain.kind == "category":
                apart[:, column] = apart[:, column] > 0
            elif domain.kind == "level" and domain.size:
                apart[:, column] /= domain.size - 1
        return apart.sum(axis=1)

    def _spread(self, number: int) -> dict[str, float]:
        """Returns point `number` of the seed's scrambled Sobol sequence."""
        engine = qmc.Sobol(len(self.free), rng=np.random.default_rng(self.seed))
        point = engine.fast_forward(number).random()[0] if number else engine.random()[0]
        return {
            name: float(u) if domain.kind == "unit" else _level(u, domain)
            for (name, domain), u in zip(self.free.items(), point, strict=True)
        }


def _with_worst(scores: Iterable[float | None]) -> list[float]:
    """Returns the scores with the worst one in place of each None; 0 if there is none."""
    scores = list(scores)
    worst = max((score for score in scores if score is not None), default=0.0)
    return [worst if score is None else score for score in scores]


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
