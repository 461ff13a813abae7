"""An interrupted study decides the same as an uninterrupted one. These tests need no Ray."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.record.journal import Event
from siftune.schedulers import SCHEDULERS
from siftune.schedulers.base import Clone, Decision, Stop
from siftune.searchers import SEARCHERS
from siftune.space import Config, key
from siftune.study.pairs import refusal
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study

SPACE = {
    "x": "uniform(-1, 1)",
    "lr": "loguniform(1e-4, 1)",
    "width": "choice([8, 16, 32])",
    "depth": "choice([1, 2]) if width > 8",
    "act": "choice(['relu', 'gelu'])",
    "epochs": "choice([3, 4])",
}
FINITE = {"width": "choice([8, 16, 32])", "depth": "choice([1, 2]) if width > 8", "epochs": 4}
PAIRS = [(s, c) for s in SEARCHERS for c in SCHEDULERS if refusal(s, c) is None]
# A proposal of HEBO's model takes seconds: tests/ray has it with the other schedulers too.
LIGHT_PAIRS = [(s, c) for s, c in PAIRS if s != "hebo" or c in ("none", "hyperband")]
# Few trials before the first model, so that most interruptions come after it.
SEARCHER_OPTIONS = {name: {"startup": 3} for name in ("optuna", "hebo", "bayesopt")}
SEARCHER_OPTIONS["bohb"] = {"min_points": 2}
SCHEDULER_OPTIONS = {name: {"eta": 2} for name in ("asha", "hyperband", "bohb")}
# These searchers take a second per proposal on a busy core, so only this many randomly chosen lines
# are tested instead of all.
CUTS = {"hebo": 1, "bayesopt": 4}


def study(searcher: str = "random", scheduler: str = "asha", **changes: Any) -> Study:
    space = FINITE if searcher == "grid" else SPACE
    layer = {"trainable": "t.py:f", "name": "s", "space": space, "trials": 14, "seed": 0}
    layer |= {"searcher": searcher, "scheduler": scheduler} | changes
    return plan(read([layer], {}), slots=1)[0]


def progress(study: Study, log: list[Event], *, slots: int = 1) -> Progress:
    proposals = Proposals(study, study.build_searcher())
    return Progress(study, proposals, study.build_scheduler(), slots=slots, write=log.append)


def loss(config: Config, epoch: int) -> float:
    value = config.get("x", 0.3) ** 2 + abs(math.log10(config.get("lr", 0.01)) + 2)
    return value + config.get("depth", 1) / 10 + 1 / epoch


class Killed(Exception):
    pass


class Log(list[Event]):
    """A journal whose driver is killed after it has written line `until`."""

    until: int | None = None

    def append(self, event: Event) -> None:
        super().append(event)
        if len(self) == self.until:
            raise Killed


def run(progress: Progress, *, lost: int = 0) -> None:
    """Runs a Progress as the driver's loop does, with one slot.

    Trials that were running at an interruption resume `lost` epochs before their last one.
    """
    for name in progress.overdue():
        progress.end(name, "pruned")
    active = [n for n in progress.unfinished() if not progress.paused(n)]
    for name in progress.unfinished():
        if progress.paused(name) and progress.trials[name].state != "paused":
            progress.pause(name)
    at = {}  # the epoch that a trial resumes from, if it is not its last one
    for name in active:
        at[name] = max(0, progress.trials[name].epoch - lost)
        progress.restart(name, at[name])
    while True:
        name = active.pop(0) if active else next(orders(progress), None)
        if name is None:
            begun = progress.begin()
            name = begun.trial if begun else next(orders(progress, idle=True), None)
            if name is None:
                break
        trial = progress.trials[name]
        decision = Decision.CONTINUE
        epoch = at.pop(name, trial.epoch)
        while decision is Decision.CONTINUE:
            if epoch >= trial.config["epochs"]:
                progress.end(name, "completed")
                break
            epoch += 1
            metrics = {"loss": loss(trial.config, epoch)}
            decision = progress.report(name, epoch, metrics, seconds=1.0)


def orders(progress: Progress, *, idle: bool = False) -> Iterator[str]:
    """Stops trials as ordered, and yields the paused trials that may resume."""
    for order in progress.orders(idle=idle):
        if isinstance(order, Stop):
            progress.end(order.trial, "pruned")
            continue
        if isinstance(order, Clone):
            epoch = progress.trials[order.donor].epoch
            words = {"donor": order.donor, "config": order.config, "checkpoint": None}
            progress.clone(order.trial, epoch, **words)
        else:
            progress.resume(order.trial)
        yield order.trial


def told(log: list[Event]) -> list[Event]:
    """Returns the journal without its times and without the events that an interruption adds."""
    events: list[Event] = []
    for event in log:
        event = {k: v for k, v in event.items() if k != "time"}
        if event.get("cause") != "interrupted" and event not in events:
            events.append(event)
    return events


@pytest.mark.parametrize(("searcher", "scheduler"), LIGHT_PAIRS)
def test_killed_after_any_line_and_once_more_it_is_the_same_study(
    searcher: str, scheduler: str
) -> None:
    s = study(
        searcher,
        scheduler,
        trials=5 if searcher == "hebo" else 9,
        searcher_options=SEARCHER_OPTIONS.get(searcher, {}),
        scheduler_options=SCHEDULER_OPTIONS.get(scheduler, {}),
    )
    whole_log = Log()
    whole = progress(s, whole_log)
    run(whole)
    assert whole.all_begun
    assert not whole.unfinished()
    rng = random.Random(f"{searcher} {scheduler}")
    cuts = range(len(whole_log) + 1)
    for cut in rng.sample(cuts, CUTS.get(searcher, len(cuts))):
        log = Log(whole_log[:cut])
        for more in (rng.randint(1, 9), None):
            again = progress(s, log)
            again.replay(list(log))
            log.until = more and len(log) + more
            try:
                # A clone's earlier epochs belong to another config, so it loses none.
                run(again, lost=0 if scheduler == "pbt" else rng.randint(0, 2))
                break
            except Killed:
                continue
        assert told(log) == told(whole_log), f"cut after line {cut}"
        assert again.best == whole.best
        assert again.by_state() == whole.by_state()


def test_a_config_that_was_trained_is_not_trained_again() -> None:
    s = study("random", "none", space=FINITE, trials=50)
    p = progress(s, [])
    run(p)
    configs = [key(trial.config) for trial in p.trials.values()]
    assert len(configs) == len(set(configs)) == 5  # 8; 16 and 32 with two depths each


def test_a_failed_trial_is_told_to_the_searcher_and_the_study_goes_on() -> None:
    s = study("optuna", "none", trials=3)
    p = progress(s, [])
    first = p.begin()
    assert first is not None
    assert p.report(first.trial, 1, {"loss": math.nan}, seconds=1.0) is Decision.STOP
    assert p.trials[first.trial].state == "failed"
    assert "nan" in str(p.trials[first.trial].error)
    assert not p.proposals.searcher.running
    assert p.begin() is not None


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"val": 1.0}, ["but not 'loss'", "val", "--metric"]),
        ({"loss": math.inf}, ["inf", "finite"]),
        ({"loss": "low"}, ["'low'", "finite"]),
    ],
)
def test_a_metric_that_cannot_be_used_fails_the_trial_with_a_reason(
    metrics: dict[str, Any], words: list[str]
) -> None:
    p = progress(study(), [])
    trial = p.begin()
    assert trial is not None
    assert p.report(trial.trial, 1, metrics, seconds=1.0) is Decision.STOP
    assert all(word in str(trial.error) for word in words)


def test_a_trial_that_reports_nothing_failed() -> None:
    p = progress(study(), [])
    trial = p.begin()
    assert trial is not None
    p.end(trial.trial, "completed")
    assert trial.state == "failed"
    assert "tune.report" in str(trial.error)


def test_an_epoch_trained_again_is_told_once() -> None:
    p = progress(study(scheduler="asha"), [])
    trial = p.begin()
    assert trial is not None
    p.report(trial.trial, 1, {"loss": 1.0}, seconds=1.0)
    p.restart(trial.trial, 0)
    assert p.report(trial.trial, 1, {"loss": 1.0}, seconds=1.0) is Decision.CONTINUE
    assert list(trial.epochs) == [1]


def test_the_best_is_the_best_epoch_in_the_direction_of_the_mode() -> None:
    p = progress(study(mode="max", metric="acc", scheduler="none"), [])
    trial = p.begin()
    assert trial is not None
    for epoch, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
        p.report(trial.trial, epoch, {"acc": value}, seconds=1.0)
    assert p.best is not None
    assert (p.best.epoch, p.best.metrics["acc"]) == (2, 0.9)


def test_every_searcher_is_in_the_catalogue_of_pairs() -> None:
    allowed = [(s, c) for s in SEARCHERS for c in SCHEDULERS if refusal(s, c) is None]
    assert {searcher for searcher, _ in allowed} == set(SEARCHERS)
    assert {scheduler for _, scheduler in allowed} == set(SCHEDULERS)
