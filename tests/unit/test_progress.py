"""A study decides the same whether it was interrupted or not; no Ray needed to show it."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from siftune.journal import Event
from siftune.progress import Progress
from siftune.schedulers import SCHEDULERS
from siftune.schedulers.base import Clone, Decision, Stop
from siftune.searchers import SEARCHERS
from siftune.space import Config, key
from siftune.study import Study, read, refusal, resolve

SPACE = {
    "x": "uniform(-1, 1)",
    "lr": "loguniform(1e-4, 1)",
    "width": "choice([8, 16, 32])",
    "depth": "choice([1, 2]) if width > 8",
    "act": "choice(['relu', 'gelu'])",
    "epochs": "choice([3, 9])",
}
FINITE = {"width": "choice([8, 16, 32])", "depth": "choice([1, 2]) if width > 8", "epochs": 9}
PAIRS = [
    (searcher, scheduler)
    for searcher in ("random", "grid", "optuna")
    for scheduler in SCHEDULERS
    if refusal(searcher, scheduler) is None
]


def study(searcher: str = "random", scheduler: str = "asha", **changes: Any) -> Study:
    space = FINITE if searcher == "grid" else SPACE
    layer = {"trainable": "t.py:f", "name": "s", "space": space, "trials": 14}
    layer |= {"searcher": searcher, "scheduler": scheduler} | changes
    return resolve(read([layer], {}), slots=1)[0]


def progress(study: Study, log: list[Event], *, slots: int = 1) -> Progress:
    return Progress(
        study, study.build_searcher(), study.build_scheduler(), slots=slots, write=log.append
    )


def loss(config: Config, epoch: int) -> float:
    value = config.get("x", 0.3) ** 2 + abs(math.log10(config.get("lr", 0.01)) + 2)
    return value + config.get("depth", 1) / 10 + 1 / epoch


class Killed(Exception):
    pass


def run(progress: Progress, *, kill_after: int | None = None) -> None:
    """What the tuner does with a Progress, one slot, each trial at its last epoch's state.

    `kill_after`: events written before everything is lost at once.
    """
    events = 0

    def maybe_kill() -> None:
        nonlocal events
        events += 1
        if events == kill_after:
            raise Killed

    for name in progress.overdue():
        progress.end(name, "pruned")
    active = [n for n in progress.unfinished() if not progress.paused(n)]
    while True:
        name = active.pop(0) if active else next(orders(progress), None)
        if name is None:
            begun = progress.begin()
            if begun is None:
                name = next(orders(progress, idle=True), None)
                if name is None:
                    break
            else:
                name = begun.trial
                maybe_kill()
        while name:
            trial = progress.trials[name]
            if trial.epoch >= trial.config["epochs"]:
                progress.end(name, "completed")
                maybe_kill()
                break
            epoch = trial.epoch + 1
            decision = progress.report(
                name, epoch, {"loss": loss(trial.config, epoch)}, seconds=1.0
            )
            maybe_kill()
            if decision is not Decision.CONTINUE:
                break


def orders(progress: Progress, *, idle: bool = False) -> Iterator[str]:
    """Carries out the stops, and yields the paused trials that may go on."""
    for order in progress.orders(idle=idle):
        if isinstance(order, Stop):
            progress.end(order.trial, "pruned")
            continue
        if isinstance(order, Clone):
            epoch = progress.trials[order.donor].epoch
            progress.restart(order.trial, epoch, donor=order.donor, config=order.config)
        yield order.trial


def outcome(progress: Progress) -> dict[str, tuple[str, str, list[int]]]:
    return {t.trial: (t.state, key(t.config), sorted(t.epochs)) for t in progress.trials.values()}


@pytest.mark.parametrize(("searcher", "scheduler"), PAIRS)
def test_interrupted_study_equals_uninterrupted(searcher: str, scheduler: str) -> None:
    s = study(searcher, scheduler)
    whole = progress(s, [])
    run(whole)
    assert whole.all_begun
    assert not whole.unfinished()
    rng = random.Random(0)
    for _ in range(4):
        log: list[Event] = []
        for kill_after in (rng.randint(1, 25), rng.randint(1, 25), None):
            again = progress(s, log)
            again.replay(list(log))
            try:
                run(again, kill_after=kill_after)
            except Killed:
                continue
        assert outcome(again) == outcome(whole)
        assert again.best == whole.best


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
    assert not p.searcher.running
    assert p.begin() is not None


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"val": 1.0}, ["did not report 'loss'", "val", "--metric"]),
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
