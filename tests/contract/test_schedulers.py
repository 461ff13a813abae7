"""Properties of every scheduler, whatever the trials do and in whatever order events happen."""

import math
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siftune.schedulers import SCHEDULERS
from siftune.schedulers.base import Clone, Decision, Order, Scheduler, Stop
from siftune.space import Config, Space

MAX_EPOCHS = 9
LARGEST = sys.float_info.max
SPACE = Space.read(
    {
        "lr": "loguniform(1e-5, 1e-1)",
        "optimizer": "choice(['sgd', 'adam'])",
        "momentum": "uniform(0, 1) if optimizer == 'sgd'",
        "epochs": "randint(1, 10)",
    }
)
JUDGES = ["asha", "hyperband", "bohb", "median"]

every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


@dataclass
class Trial:
    """A planned trial: the scores of its epochs, and the epoch at which it fails, if any."""

    config: Config
    scores: list[float]
    fails_at: int | None = None


@st.composite
def populations(draw: st.DrawFn) -> list[Trial]:
    # Few distinct scores, to get ties, and the scores of trials that diverge.
    score = st.integers(0, 20).map(float) | st.sampled_from([1e200, LARGEST, -LARGEST])
    scores = st.lists(score, min_size=1, max_size=MAX_EPOCHS)
    trials = []
    for number, epochs in enumerate(draw(st.lists(scores, min_size=1, max_size=24))):
        config = SPACE.sample(np.random.default_rng(number)) | {"epochs": len(epochs)}
        fails_at = draw(st.none() | st.integers(1, len(epochs)))
        trials.append(Trial(config, epochs, fails_at))
    return trials


def build(name: str, trials: int, seed: int = 0) -> Scheduler:
    return SCHEDULERS.build(
        name,
        {},
        max_epochs=MAX_EPOCHS,
        seed=seed,
        space=SPACE,
        trials=trials,
    )


@dataclass
class Simulation:
    """A study on `slots` slots in which `rng` chooses what happens next.

    `kill` tells after which events the driver dies. Its scheduler is lost, and a new one is told
    the log, which does not contain orders that were not carried out.
    """

    trials: list[Trial]
    new: Callable[[], Scheduler]
    slots: int
    rng: random.Random
    kill: Callable[[int], bool] = lambda _: False
    until: float = math.inf  # the driver dies for good after this many events

    log: list[tuple] = field(default_factory=list)
    answers: list[tuple] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    reported: dict[int, dict[str, float]] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)  # of trials that have not ended
    standing: dict[str, Order] = field(default_factory=dict)

    def run(self) -> "Simulation":
        self.scheduler = self.new()
        return self.finish()

    def finish(self) -> "Simulation":
        while actions := self._actions():
            if len(self.log) >= self.until:
                return self
            self.rng.choice(actions)()
            assert self._count("running") <= self.slots
            self.answers.append(self._answer(self.scheduler))
            if self.kill(len(self.log)):
                self.scheduler = self.new()
                replay(self.scheduler, self.log)
        assert set(self.states.values()) <= {"ended"}, "deadlock"
        assert len(self.states) == len(self.trials)
        return self

    def idle(self) -> bool:
        return not self._count("running") and len(self.states) == len(self.trials)

    def _answer(self, scheduler: Scheduler) -> tuple:
        return tuple(scheduler.orders()), tuple(scheduler.orders(idle=True)) * self.idle()

    def _count(self, state: str) -> int:
        return sum(s == state for s in self.states.values())

    def _actions(self) -> list[Callable[[], None]]:
        free = self._count("running") < self.slots
        actions = [lambda t=t: self._advance(t) for t, s in self.states.items() if s == "running"]
        if free and len(self.states) < len(self.trials):
            actions.append(self._begin)
        for order in self._orders():
            paused = self.states[order.trial] == "paused"  # otherwise it is being carried out
            if paused and (isinstance(order, Stop) or free):
                actions.append(lambda order=order: self._carry_out(order))
        return actions

    def _orders(self) -> list[Order]:
        orders = self.scheduler.orders(idle=self.idle())
        assert len({order.trial for order in orders}) == len(orders)
        for order in orders:
            # Only paused trials get orders, and the same one until they report or end.
            assert self.decisions[order.trial] is Decision.PAUSE
            assert self.standing.setdefault(order.trial, order) == order
        return orders

    def _begin(self) -> None:
        name = f"{len(self.states) + 1:04d}"
        self.states[name], self.epochs[name] = "running", 0
        self.decisions[name] = Decision.CONTINUE
        self.configs[name] = self.trials[len(self.states) - 1].config
        self.log.append(("begin", name, self.configs[name]))
        self.scheduler.begin(name, self.configs[name])

    def _advance(self, name: str) -> None:
        plan, epoch = self.trials[int(name) - 1], self.epochs[name] + 1
        if epoch > self.configs[name]["epochs"] or epoch == plan.fails_at:
            self._end(name)
            return
        score = plan.scores[min(epoch, len(plan.scores)) - 1]
        self.epochs[name] = epoch
        self.standing.pop(name, None)
        self.log.append(("report", name, epoch, score))
        decision = self.decisions[name] = self.scheduler.report(name, epoch, score)
        self.answers.append((decision,))
        self.reported.setdefault(epoch, {})[name] = score
        if decision is Decision.STOP:
            self._assert_not_best(name)
            self._end(name)
        elif decision is Decision.PAUSE:
            assert epoch < self.configs[name]["epochs"], "paused after its last epoch"
            self.states[name] = "paused"

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Stop):
            self._assert_not_best(order.trial)
            self._end(order.trial)
            return
        self.states[order.trial] = "running"
        if isinstance(order, Clone):
            assert order.donor != order.trial
            assert self.epochs[order.trial] <= self.epochs[order.donor]
            assert order.config == SPACE.canonical(order.config)
            assert SPACE.mistakes(order.config) == []
            self.configs[order.trial] = order.config

    def _end(self, name: str) -> None:
        assert self.states[name] != "ended"
        self.states[name] = "ended"
        self.standing.pop(name, None)
        del self.decisions[name]
        self.log.append(("end", name))
        self.scheduler.end(name)

    def _assert_not_best(self, name: str) -> None:
        """Asserts that another trial was at least as good, at this epoch or before."""
        epoch = self.epochs[name]
        others = [s for e in range(1, epoch + 1) for t, s in self.reported[e].items() if t != name]
        own = [self.reported[e][name] for e in range(1, epoch + 1)]
        assert min(others) <= max(own[-1], min(own))


def replay(scheduler: Scheduler, log: list[tuple]) -> list[Decision]:
    """Returns the decisions of a scheduler that is told these events and never asked for orders."""
    decisions = []
    for kind, trial, *rest in log:
        decision = getattr(scheduler, kind)(trial, *rest)
        decisions += [decision] * (kind == "report")
    return decisions


def simulate(
    name: str, trials: list[Trial], *, slots: int, seed: int, missing: int = 0, **options: Any
) -> Simulation:
    def new() -> Scheduler:
        return build(name, len(trials) + missing)

    return Simulation(trials, new, slots, random.Random(seed), **options).run()


studies = given(
    trials=populations(),
    slots=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    missing=st.sampled_from([0, 0, 1, 5]),
)


@every_scheduler
@settings(max_examples=60, deadline=None)
@studies
def test_every_study_ends(
    name: str, trials: list[Trial], slots: int, seed: int, missing: int
) -> None:
    # The simulation asserts this: no deadlock, each trial ends once, no more trials than slots,
    # orders only for paused trials and always the same ones, and the best trial is never stopped.
    simulation = simulate(name, trials, slots=slots, seed=seed, missing=missing)
    assert sum(kind == "end" for kind, *_ in simulation.log) == len(trials)


@every_scheduler
@settings(max_examples=30, deadline=None)
@studies
def test_same_seed_and_events_give_same_decisions(
    name: str, trials: list[Trial], slots: int, seed: int, missing: int
) -> None:
    first, second = (
        simulate(name, trials, slots=slots, seed=seed, missing=missing) for _ in range(2)
    )
    assert first.log == second.log
    assert first.answers == second.answers


@every_scheduler
@settings(max_examples=30, deadline=None)
@studies
def test_interrupted_study_equals_uninterrupted(
    name: str, trials: list[Trial], slots: int, seed: int, missing: int
) -> None:
    arguments = {"slots": slots, "seed": seed, "missing": missing}
    whole = simulate(name, trials, **arguments)
    killed = simulate(name, trials, **arguments, kill=random.Random(seed).choice((_always, _often)))
    assert killed.log == whole.log
    assert killed.answers == whole.answers


def _always(event: int) -> bool:
    return True


def _often(event: int) -> bool:
    return event % 5 == 0


@every_scheduler
@settings(max_examples=30, deadline=None)
@studies
def test_being_asked_changes_nothing(
    name: str, trials: list[Trial], slots: int, seed: int, missing: int
) -> None:
    simulation = simulate(name, trials, slots=slots, seed=seed, missing=missing)
    asked = [answer[0] for answer in simulation.answers if len(answer) == 1]
    assert replay(build(name, len(trials) + missing), simulation.log) == asked


@every_scheduler
@settings(max_examples=30, deadline=None)
@given(
    trials=populations(),
    seed=st.integers(0, 2**32 - 1),
    more=st.integers(1, 9),
    until=st.integers(1, 300),
)
def test_study_resumed_with_more_trials_ends(
    name: str, trials: list[Trial], seed: int, more: int, until: int
) -> None:
    study = simulate(name, trials, slots=2, seed=seed, until=until)
    # A scheduler that is told the events of a smaller plan also lets the new trials end.
    study.trials = trials + trials[:more]
    study.scheduler = build(name, len(study.trials))
    replay(study.scheduler, study.log)
    for trial, decision in study.decisions.items():
        if decision is Decision.PAUSE:
            study.states[trial] = "paused"
    study.standing, study.until = {}, math.inf
    study.finish()


@pytest.mark.parametrize("name", JUDGES)
def test_good_trials_train_longer(name: str) -> None:
    rng = random.Random(0)
    qualities = list(range(40))
    rng.shuffle(qualities)
    trials = [
        Trial(
            SPACE.sample(np.random.default_rng(i)) | {"epochs": MAX_EPOCHS},
            [q + 10 / e for e in range(1, MAX_EPOCHS + 1)],
        )
        for i, q in enumerate(qualities)
    ]
    simulation = simulate(name, trials, slots=4, seed=1)
    epochs = list(simulation.epochs.values())
    good = [n for n, q in zip(epochs, qualities, strict=True) if q < 10]
    bad = [n for n, q in zip(epochs, qualities, strict=True) if q >= 30]
    assert statistics.mean(good) > statistics.mean(bad)
    assert sum(epochs) < len(trials) * MAX_EPOCHS


@every_scheduler
@pytest.mark.parametrize("needed", ["max_epochs", "trials", "seed"])
def test_impossible_numbers_are_refused(name: str, needed: str) -> None:
    needs = {"max_epochs": 3, "seed": 0, "space": SPACE, "trials": 4} | {needed: -1}
    with pytest.raises(ValueError, match=f"{needed} must be a whole number of at least .*, got -1"):
        SCHEDULERS.load(name)(**needs)
