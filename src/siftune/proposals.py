"""The configs of new trials: what a searcher proposes, and no trial has had."""

import time
from dataclasses import dataclass

import numpy as np

from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config, key
from siftune.study import Study

_ATTEMPTS = 20  # proposals that a searcher gets for one trial before a random config is taken


class NotYet(Exception):
    """The proposal is still being computed: ask again."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The config of a new trial. `knew`: how many trials had ended when it was computed; None
    where that was when it was asked for."""

    config: Config
    knew: int | None = None


class Proposals:
    """A searcher that is told every event of a study, and asked for configs in the order of the
    trials. Here it computes them when asked; siftune.ahead has them ready."""

    def __init__(self, study: Study, searcher: Searcher) -> None:
        self.study = study
        self.searcher = searcher
        self.spent_s = 0.0  # inside the searcher
        self._known: set[str] = set()

    def know(self, config: Config) -> None:
        """Such a config is being trained: it is not to be proposed."""
        self._known.add(key(config))

    def begin(self, trial: str, config: Config) -> None:
        self.know(config)
        self.searcher.begin(trial, config)

    def report(self, trial: str, epoch: int, score: float) -> None:
        self.searcher.report(trial, epoch, score)

    def end(self, trial: str, score: float | None) -> None:
        self.searcher.end(trial, score)

    def ask(self, number: int, *, ahead: int = 0) -> Proposal:
        """The config of trial `number`, 0 for the first; `ahead`: how many more will be asked for
        soon. Raises SpaceExhausted, and NotYet."""
        began = time.perf_counter()
        try:
            return Proposal(self._fresh(number))
        finally:
            self.spent_s += time.perf_counter() - began

    def close(self) -> None: ...

    def _fresh(self, number: int) -> Config:
        for attempt in range(_ATTEMPTS):
            config = self.searcher.propose(number, attempt)
            if key(config) not in self._known:
                return config
        space = self.study.space
        rng = np.random.default_rng([self.study.seed, number, _ATTEMPTS])
        for _ in range(1000):
            if key(config := space.sample(rng)) not in self._known:
                return config
        if space.size() is not None:
            for config in space.grid():
                if key(config) not in self._known:
                    return config
        raise SpaceExhausted
