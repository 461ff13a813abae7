"""Population based training: the worst trials continue from the weights of the best."""

import math
from typing import Unpack

import numpy as np

from siftune.schedulers.base import (
    Clone,
    Decision,
    Needs,
    Order,
    Resume,
    Scheduler,
    require,
)
from siftune.space import Config
from siftune.space.domains import Domain, Float, Value

_FACTORS = (0.8, 1.2)  # the factors of "perturb" in the paper


class Pbt(Scheduler):
    """Every `interval_epochs` the bottom quantile clones members of the top quantile.

    Jaderberg et al. 2017, "Population Based Training of Neural Networks" (arXiv:1711.09846),
    with its truncation selection, perturbation and resampling. This version is synchronous: all
    members pause and are ranked at the same epoch, so that decisions depend neither on the number
    of slots nor on the speed of trials. The population consists of the planned trials. A member
    leaves the population when its trial has ended or has trained all `epochs` of its config.
    """

    def __init__(
        self,
        *,
        interval_epochs: int = 1,
        quantile: float = 0.25,
        mutate: str = "",
        resample_probability: float = 0.25,
        **needs: Unpack[Needs],
    ) -> None:
        """`mutate` names the parameters that a clone changes, separated by commas. By default
        these are the continuous ones, because others may change the shape of the weights.

        Raises ValueError for numbers out of range, and if no parameter can be changed.
        """
        super().__init__(**needs)
        require("interval_epochs", interval_epochs, 1)
        if not isinstance(quantile, float) or not 0 < quantile <= 0.5:
            raise ValueError(f"quantile must be above 0 and at most 0.5, got {quantile!r}")
        if not isinstance(resample_probability, int | float) or not 0 <= resample_probability <= 1:
            raise ValueError(
                f"resample_probability must be between 0 and 1, got {resample_probability!r}"
            )
        self._interval_epochs = interval_epochs
        self._quantile = quantile
        self._resample_probability = resample_probability
        self._mutable = self._read_mutate(mutate)
        self._begun: list[str] = []
        self._configs: dict[str, Config] = {}  # of the current members
        self._paused: dict[str, tuple[int, float]] = {}  # epoch and score
        self._orders: dict[str, Order] = {}  # decided, but not yet carried out
        self._released = False  # True once some of the orders were carried out

    def _read_mutate(self, mutate: str) -> dict[str, Domain]:
        if not isinstance(mutate, str):
            raise ValueError(f"mutate must be names separated by commas, got {mutate!r}")
        parameters = self.space.parameters
        names = [name.strip() for name in mutate.split(",") if name.strip()]
        if unknown := [name for name in names if name not in parameters]:
            raise ValueError(
                f"mutate must name parameters of the space, got {', '.join(map(repr, unknown))}; "
                f"the space has: {', '.join(parameters)}"
            )
        names = names or [name for name, p in parameters.items() if isinstance(p.domain, Float)]
        if not names:
            raise ValueError(
                "mutate must name parameters that do not change the shape of the weights if "
                f"no parameter is continuous, got {mutate!r}"
            )
        return {name: parameters[name].domain for name in names}

    def begin(self, trial: str, config: Config) -> None:
        self._begun.append(trial)
        self._configs[trial] = config
        if not self._released:  # decided for a population that was not complete
            self._orders = {}

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        if order := self._orders.pop(trial, None):
            self._released = True
            if isinstance(order, Clone):
                self._configs[trial] = order.config
        self._paused.pop(trial, None)
        if trial not in self._configs:
            return Decision.CONTINUE
        if epoch >= self.length(self._configs[trial]):
            # The trial only has to end now, and the time at which that is reported varies.
            self.end(trial)
            return Decision.CONTINUE
        if epoch % self._interval_epochs:
            return Decision.CONTINUE
        self._paused[trial] = (epoch, score)
        self._rank()
        return Decision.PAUSE

    def end(self, trial: str) -> None:
        for members in (self._configs, self._paused, self._orders):
            members.pop(trial, None)
        self._rank()

    def orders(self, *, idle: bool = False) -> list[Order]:
        if not (idle or self._released or len(self._begun) >= self.trials):
            return []
        # Clones first: the checkpoint of a donor is certain to exist while the donor waits.
        return sorted(self._orders.values(), key=lambda order: not isinstance(order, Clone))

    def _rank(self) -> None:
        """Decides the orders if all members wait and no earlier order is left."""
        if self._orders or not self._paused or len(self._paused) < len(self._configs):
            return
        self._released = False
        # All members are at one epoch, except those that began after the others had continued (in a
        # study resumed with more trials). Those catch up first.
        epoch = min(epoch for epoch, _ in self._paused.values())
        members = [t for t in self._begun if t in self._paused and self._paused[t][0] == epoch]
        ranking = sorted(members, key=lambda t: self._paused[t][1])
        count = min(math.ceil(len(ranking) * self._quantile), len(ranking) // 2)
        donors, bottom = ranking[:count], ranking[len(ranking) - count :]
        self._orders = {
            t: self._clone(t, epoch, donors) if t in bottom else Resume(t) for t in members
        }

    def _clone(self, trial: str, epoch: int, donors: list[str]) -> Clone:
        rng = np.random.default_rng([self.seed, epoch, *trial.encode()])
        donor = donors[rng.integers(len(donors))]
        config = dict(self._configs[donor])
        for name, domain in self._mutable.items():
            config[name] = self._mutated(rng, domain, config[name])
        return Clone(trial, donor, self.space.canonical(config))

    def _mutated(self, rng: np.random.Generator, domain: Domain, value: Value) -> Value:
        resample = rng.random() < self._resample_probability
        if domain.kind == "unit":
            if resample:
                return domain.decode(rng.random())
            return domain.canonical(value * _FACTORS[rng.integers(2)])
        assert domain.size is not None
        if resample:
            return domain.decode(int(rng.integers(domain.size)))
        neighbour = domain.encode(value) + (-1, 1)[rng.integers(2)]
        return domain.decode(min(domain.size - 1, max(0, neighbour)))
