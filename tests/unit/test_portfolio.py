"""The portfolio's model follows from the duration of trials and from the number of slots."""

import time
from contextlib import closing
from typing import Any

import pytest

from siftune.driver import prefetch
from siftune.driver.prefetch import Prefetch
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.record.journal import Event
from siftune.searchers.optuna import Optuna
from siftune.searchers.portfolio import Portfolio
from siftune.space import Space
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study

SPACE: dict[str, Any] = {"x": "uniform(-1, 1)", "lr": "loguniform(1e-4, 1)"}


def told(
    slots: int, seconds: float, *, epochs: int = 1, failed: int = 0
) -> tuple[Portfolio, list[str], list[Any]]:
    """Returns a portfolio after ten trials that took so many seconds each, and `failed` trials
    before them; the messages, and the events."""
    messages: list[str] = []
    searcher = Portfolio(Space.read(SPACE), seed=3, slots=slots)
    searcher.say = messages.append
    events: list[Any] = []
    for number in range(failed + 10):
        config = searcher.propose(number)
        score = None if number < failed else config["x"] ** 2 + config["lr"]
        events.append(("begin", f"t{number}", config))
        for epoch in range(1, epochs + 1):
            events.append(("report", f"t{number}", epoch, score or 0.0, seconds / epochs))
        events.append(("end", f"t{number}", score))
        for kind, *words in events[-2 - epochs :]:
            getattr(searcher, kind)(*words)
    return searcher, messages, events


@pytest.mark.parametrize(
    ("slots", "seconds", "epochs", "sampler"),
    [
        (1, 4.1, 1, "gp"),
        (1, 3.9, 1, "tpe"),
        (8, 33, 1, "gp"),
        (8, 31, 1, "tpe"),
        (1, 0.0, 1, "tpe"),
        (1, 99.0, 2, "tpe"),
    ],
)
def test_gaussian_process_proposes_if_trials_report_once_and_take_long_enough(
    slots: int, seconds: float, epochs: int, sampler: str
) -> None:
    searcher, messages, events = told(slots, seconds, epochs=epochs, failed=2)
    same = Optuna(Space.read(SPACE), seed=3, sampler=sampler)
    for kind, *words in events:
        getattr(same, kind)(*words)
    assert searcher.propose(12) == same.propose(12)
    assert searcher.is_slow() == (sampler == "gp")
    assert searcher.processes == (sampler == "gp")
    if seconds:
        assert len(messages) == 1
        assert ("report several times" if epochs > 1 else f"take {seconds:.3g} s") in messages[0]
        assert ("a Gaussian process proposes from now on" in messages[0]) == (sampler == "gp")


def study(slots: int) -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": SPACE, "trials": 16, "metric": "loss"}
    layer |= {"searcher": "portfolio", "scheduler": "none"}
    return plan(read([layer], {}), slots=slots)[0]


def test_the_study_records_the_number_of_slots() -> None:
    assert study(4).searcher_options == {"slots": 4}


@pytest.mark.parametrize(("seconds", "computed_ahead"), [(100.0, True), (0.1, False)])
def test_processes_start_when_the_gaussian_process_takes_over(
    seconds: float, computed_ahead: bool
) -> None:
    s, log, messages = study(2), list[Event](), list[str]()
    with closing(prefetch.build(s, slots=2)) as proposals:
        assert isinstance(proposals, Prefetch)
        proposals._say = messages.append
        progress = Progress(s, proposals, s.build_scheduler(), slots=2, write=log.append)
        deadline = time.monotonic() + 240
        while not progress.done:
            assert time.monotonic() < deadline, "no proposal within the deadline"
            assert bool(proposals._processes) == (computed_ahead and progress.ended >= 10)
            while progress.under_way < 2 and progress.begin():
                pass
            if progress.under_way == 2 or progress.all_begun:
                name = progress.unfinished()[0]
                loss = progress.trials[name].config["x"] ** 2
                progress.report(name, 1, {"loss": loss}, seconds=seconds)
                progress.end(name, "completed")
            time.sleep(0.01)
    starts = [event for event in log if event["event"] == "start"]
    assert any("knew" in event for event in starts) == computed_ahead
    assert len(messages) == 1

    # A resumed study makes the same choice, from the events alone.
    again = Progress(s, Proposals(s, s.build_searcher()), s.build_scheduler(), slots=2, write=print)
    again.replay(log)
    assert again.proposals.searcher.is_slow() == computed_ahead
