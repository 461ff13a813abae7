"""A fast searcher, and a slower one that takes over if trials take long enough for it."""

from collections.abc import Callable
from statistics import mean
from typing import Any

from siftune.searchers.base import Searcher
from siftune.searchers.optuna import Optuna
from siftune.space import Config, Space

# CPU seconds in which the Gaussian process makes one proposal: measured with 200 results in seven
# dimensions; with 50 results it takes half of it.
PROPOSAL_S = 0.4
SHARE = 0.1  # of the time between two proposals that one of them may take


class Portfolio(Searcher):
    """Optuna's TPE, and its Gaussian process from `startup` results on where it is the better one.

    This is where trials report once, and take long enough: `slots` is the number of trials that run
    at once, so that a proposal is needed whenever one `slots`-th of a trial's time has passed, and
    the Gaussian process may take a tenth of this. With several epochs, of which the scheduler stops
    most trials early, TPE finds better configs (tests/bench/README.md). The choice is made once,
    from the first `startup` trials that reported, and printed.
    """

    def __init__(self, space: Space, *, seed: int, slots: int = 1, startup: int = 10) -> None:
        super().__init__(space, seed=seed)
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots!r}")
        self._slots, self._startup = slots, startup
        self._tpe = Optuna(space, seed=seed, startup=startup)
        self._gp: Optuna | None = None  # built when needed, because it imports torch
        self._uses_gp: bool | None = None  # None: it is not decided yet
        self._events: list[Callable[[Searcher], None]] = []  # to tell the Gaussian process
        self._seconds: dict[str, float] = {}  # of each running trial
        self._durations: list[float] = []  # of the first trials that ended
        self._has_epochs = False  # a trial has reported more than once

    @classmethod
    def resolve(cls, options: dict[str, Any], *, slots: int) -> dict[str, Any]:
        return {"slots": slots} | options

    def propose(self, number: int, attempt: int = 0) -> Config:
        if not self._uses_gp:
            return self._tpe.propose(number, attempt)
        if self._gp is None:
            self._gp = Optuna(self.space, seed=self.seed, sampler="gp", startup=self._startup)
        for event in self._events:
            event(self._gp)
        self._events.clear()
        return self._gp.propose(number, attempt)

    def is_slow(self) -> bool:
        return bool(self._uses_gp)

    def begin(self, trial: str, config: Config) -> None:
        super().begin(trial, config)
        self._tell(lambda searcher: searcher.begin(trial, config))

    def report(self, trial: str, epoch: int, score: float, seconds: float = 0.0) -> None:
        self._has_epochs |= trial in self._seconds
        self._seconds[trial] = self._seconds.get(trial, 0.0) + seconds
        self._tell(lambda searcher: searcher.report(trial, epoch, score, seconds))

    def end(self, trial: str, score: float | None) -> None:
        super().end(trial, score)
        self._tell(lambda searcher: searcher.end(trial, score))
        seconds = self._seconds.pop(trial, 0.0)
        if seconds and score is not None and len(self._durations) < self._startup:
            self._durations.append(seconds)
            if len(self._durations) == self._startup:
                self._choose(mean(self._durations))

    def _tell(self, event: Callable[[Searcher], None]) -> None:
        if not self._uses_gp:
            event(self._tpe)
        if self._uses_gp is not False:
            self._events.append(event)

    def _choose(self, duration: float) -> None:
        needed = PROPOSAL_S * self._slots / SHARE
        self._uses_gp = duration >= needed and not self._has_epochs
        if self._uses_gp:
            self.processes = 1
            reason = f"trials report once and take {duration:.3g} s"
            self.say(f"searcher portfolio: a Gaussian process proposes from now on: {reason}")
            return
        self._events.clear()
        reason = "trials report several times"
        if not self._has_epochs:
            slots = f"{self._slots} slots" if self._slots > 1 else "one slot"
            reason = f"trials take {duration:.3g} s; from {needed:.3g} s on, a Gaussian process"
            reason += f" would be fast enough for {slots}"
        self.say(f"searcher portfolio: TPE continues to propose: {reason}")
