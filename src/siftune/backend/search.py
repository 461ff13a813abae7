"""Searchers for a `tune.Tuner`, in place of Ray's adapters that do not work with today's libraries.

Ray's `TuneBOHB` needs hpbandster, whose last release is of 2018, and its `BayesOptSearch` needs
bayesian-optimization 1.4. `OptunaSearch` and `HEBOSearch` of Ray work as they are.
"""

import json
from pathlib import Path
from typing import Any

from ray import tune

from siftune.searchers import SEARCHERS
from siftune.searchers.base import SpaceExhausted
from siftune.space import Config, Space

_ATTEMPTS = 20  # to propose a config that no trial has had


class _Search(tune.search.Searcher):
    """One of siftune's searchers behind the interface of Ray Tune.

    Its state is the list of what it was told, so `save` and `restore` work in every version.
    """

    name: str

    def __init__(
        self,
        space: dict[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """`space`: the same as `param_space` of the Tuner. `options`: those of siftune's searcher.

        Raises ValueError for a wrong option, and UsageError for a malformed space.
        """
        super().__init__(metric=metric, mode=mode)
        self._seed = seed
        self._options = options
        self._events: list[list[Any]] = []
        self._space: Space | None = None
        if space is not None:
            self._prepare(space)

    def _prepare(self, space: dict[str, Any]) -> None:
        self._space = Space.read(space)
        self._searcher = SEARCHERS.load(self.name)(self._space, seed=self._seed, **self._options)
        self._number = 0
        self._seen: set[str] = set()
        self._best: dict[str, float] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        if self._space is not None and config:
            return False
        if metric:
            self._metric = metric
        if mode:
            self._mode = mode
        if config and self._space is None:
            self._prepare(config)
        return True

    def suggest(self, trial_id: str) -> Any:
        """Returns a config, or FINISHED if a finite space is used up."""
        if self._space is None:
            raise RuntimeError("there is no space: give param_space to the Tuner")
        number, self._number = self._number, self._number + 1
        config: Config = {}
        for attempt in range(_ATTEMPTS):
            try:
                config = self._searcher.propose(number, attempt)
            except SpaceExhausted:
                return tune.search.Searcher.FINISHED
            if self._space.identity(config) not in self._seen:
                break
        self._tell("begin", trial_id, config)
        return self._space.given(config)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._tell("report", trial_id, result.get("training_iteration", 1), self._score(result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and not error and self.metric in result:
            self.on_trial_result(trial_id, result)
        self._tell("end", trial_id, error)

    def on_pause(self, trial_id: str) -> None:
        """Called by HyperBandForBOHB. The trial's reports are known already."""

    def on_unpause(self, trial_id: str) -> None:
        """Called by HyperBandForBOHB."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps([self._number, self._events]))

    def restore(self, checkpoint_path: str) -> None:
        """Must be called once the space is known, as `Tuner.restore` does."""
        number, events = json.loads(Path(checkpoint_path).read_text())
        for kind, *content in events:
            self._tell(kind, *content)
        self._number = number

    def _score(self, result: dict[str, Any]) -> float:
        return float(result[str(self.metric)]) * (-1 if self.mode == "max" else 1)

    def _tell(self, kind: str, trial: str, *content: Any) -> None:
        self._events.append([kind, trial, *content])
        if kind == "begin":
            (config,) = content
            assert self._space is not None
            self._seen.add(self._space.identity(config))
            self._searcher.begin(trial, config)
        elif kind == "report":
            epoch, score = content
            self._best[trial] = min(score, self._best.get(trial, score))
            self._searcher.report(trial, epoch, score)
        elif trial in self._searcher.running:
            (error,) = content
            best = self._best.pop(trial, None)
            self._searcher.end(trial, None if error else best)


class TuneBOHB(_Search):
    """BOHB (Falkner et al. 2018), for `HyperBandForBOHB` or any other scheduler."""

    name = "bohb"


class BayesOptSearch(_Search):
    """A Gaussian process of the package bayesian-optimization."""

    name = "bayesopt"
