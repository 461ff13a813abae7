"""A study stops early by `--stop` and `--stop-after`, and a resumed study decides the same."""

from pathlib import Path
from typing import Any

import pytest

from siftune.driver import ending
from siftune.driver.launch import launch
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.driver.stopping import MissingMetrics
from siftune.errors import UsageError
from siftune.record.journal import Event
from siftune.study import stop
from siftune.study.planning import plan
from siftune.study.reading import read, read_resumed
from siftune.study.study import Study

SPACE = {"x": "uniform(0, 1)", "epochs": 3}


def study(**more: Any) -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": SPACE, "trials": 30, "seed": 0}
    layer |= {"searcher": "random", "scheduler": "none", "metric": "acc", "mode": "max"} | more
    return plan(read([layer], {}), slots=2)[0]


def progress(study: Study, log: list[Event]) -> Progress:
    proposals = Proposals(study, study.build_searcher())
    return Progress(study, proposals, study.build_scheduler(), slots=2, write=log.append)


def train(p: Progress, *values: float, state: str = "completed") -> None:
    """Trains one trial for each value, which it reports in its only epoch."""
    for value in values:
        if (trial := p.begin()) is None:
            return
        p.report(trial.trial, 1, {"acc": value, "loss": 1 - value}, seconds=1.0)
        p.end(trial.trial, state, "error" if state == "failed" else None)


@pytest.mark.parametrize(
    ("text", "metric", "operator", "bound"),
    [
        ("val_accuracy >= 0.99", "val_accuracy", ">=", 0.99),
        ("loss<1e-3", "loss", "<", 1e-3),
        (" eval/loss <= -2 ", "eval/loss", "<=", -2),
        ("top 5 > 0", "top 5", ">", 0),
    ],
)
def test_a_condition_is_a_metric_an_operator_and_a_number(
    text: str, metric: str, operator: str, bound: float
) -> None:
    (condition,) = stop.parse([text])
    assert (condition.metric, condition.operator, condition.bound) == (metric, operator, bound)


@pytest.mark.parametrize(
    "text", ["", "acc", "acc >=", "acc == 1", "acc >= high", "acc > nan", "0 < acc < 1", "> 1"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--stop must be METRIC < NUMBER with <, <=, > or >="):
        study(stop_conditions=[text])


@pytest.mark.parametrize("name", ["stop_after", "min_improvement"])
def test_a_number_below_zero_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"must be .*at least 0, got -1"):
        study(**{name: -1})


def test_any_condition_that_a_report_meets_stops_the_study() -> None:
    for conditions in (["loss < 0.1", "acc > 2"], ["acc > 2", "acc >= 0.95"]):
        p = progress(study(stop_conditions=conditions), [])
        train(p, 0.5, 0.8)
        assert not p.stopped
        train(p, 0.95)
        assert p.stopped
        assert p.begin() is None
        assert p.done
    assert p.stopping.reason == "trial 0003 has reached acc 0.95 at epoch 1 (--stop 'acc >= 0.95')"


def test_a_metric_that_is_missing_or_no_number_meets_no_condition() -> None:
    (condition,) = stop.parse(["loss < 1"])
    for metrics in ({}, {"loss": "0"}, {"loss": None}, {"loss": float("nan")}, {"loss": 1.0}):
        assert not condition.holds(metrics)
    assert stop.parse(["never"]) == []


def test_trials_without_an_improvement_in_a_row_stop_the_study() -> None:
    p = progress(study(stop_after=3), [])
    train(p, 0.5, 0.4, 0.4, 0.6, 0.6, 0.5)
    assert not p.stopped
    train(p, 0.6)
    assert p.stopping.reason == (
        "3 trials in a row have ended without improving the best acc (--stop-after 3)"
    )


def test_small_improvements_do_not_count_one_by_one_but_together() -> None:
    p = progress(study(stop_after=3, min_improvement=0.1), [])
    train(p, 0.5, 0.55, 0.58, 0.61, 0.65, 0.66)
    assert not p.stopped
    train(p, 0.7)
    assert p.stopping.reason is not None
    assert "by more than 0.1" in p.stopping.reason


def test_failed_trials_and_the_one_that_improves_do_not_count() -> None:
    p = progress(study(stop_after=2), [])
    slow = p.begin()
    assert slow is not None
    p.report(slow.trial, 1, {"acc": 0.9}, seconds=1.0)
    train(p, 0.1)
    train(p, *[0.1] * 5, state="failed")
    p.end(slow.trial, "completed")
    assert not p.stopped
    train(p, 0.1)
    assert p.stopped


def test_the_improvement_of_a_running_trial_counts_at_once() -> None:
    p = progress(study(stop_after=2), [])
    slow = p.begin()
    assert slow is not None
    train(p, 0.5, 0.4)
    p.report(slow.trial, 1, {"acc": 0.9}, seconds=1.0)
    train(p, 0.5)
    assert not p.stopped


def test_running_trials_end_as_pruned_and_one_at_its_last_epoch_as_completed(
    tmp_path: Path,
) -> None:
    log: list[Event] = []
    p = progress(study(stop_conditions=["acc >= 0.9"]), log)
    names = [trial.trial for _ in range(4) if (trial := p.begin())]
    for epoch in (1, 2, 3):
        p.report(names[0], epoch, {"acc": 0.1}, seconds=1.0)
    p.report(names[1], 1, {"acc": 0.9}, seconds=1.0)
    p.report(names[2], 1, {"acc": 0.2}, seconds=1.0)
    ending.end_trials(p, tmp_path)
    ends = {e["trial"]: (e["state"], e.get("cause")) for e in log if e["event"] == "end"}
    pruned = ("pruned", "stop")
    assert list(ends.values()) == [("completed", None), pruned, pruned, pruned]
    assert p.done


def test_a_resumed_study_has_stopped_at_every_later_line_and_at_no_earlier_one() -> None:
    s = study(stop_after=3)
    log: list[Event] = []
    p = progress(s, log)
    train(p, 0.5, 0.4, 0.6, 0.1, 0.2, 0.3, 0.4)
    assert p.stopped
    for cut in range(len(log) + 1):
        again = progress(s, [])
        again.replay(log[:cut])
        assert again.stopped == (cut == len(log))
    assert again.stopping.reason == p.stopping.reason


def test_a_resumed_study_goes_on_if_more_is_asked_for(tmp_path: Path) -> None:
    log: list[Event] = []
    p = progress(study(stop_after=2), log)
    running = p.begin()
    train(p, 0.5, 0.4, 0.4)
    ending.end_trials(p, tmp_path)
    assert running is not None
    assert running.state == "pruned"
    again = progress(study(stop_after=4), [])
    again.replay(log)
    assert not again.stopped
    # The trial that ended with the study had no result: it neither counts nor has failed.
    assert list(again.proposals.searcher.running) == [running.trial]
    train(again, 0.4)
    assert not again.stopped
    train(again, 0.4)
    assert again.stopped


def test_a_metric_that_no_report_has_is_said_once() -> None:
    messages: list[str] = []
    s = study(stop_conditions=["accuracy > 0.9", "acc > 0.9"])
    sink = MissingMetrics(s, messages.append)
    for _ in range(2):
        sink({"event": "epoch", "metrics": {"acc": 0.5, "loss": 1.0}}, None)
    assert messages == [
        "--stop names accuracy, which the first report does not have; it has: acc, loss"
    ]


def test_a_stopped_study_is_finished_and_says_why_and_how_to_go_on(
    written: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver was killed before it ended the running trial."""
    (tmp_path / "mine.py").write_text("def train(config): ...\n")
    trainable = f"{tmp_path}/mine.py:train"
    s = written("s", trainable=trainable, trials=9, stop_conditions=["loss < 0.3"])
    s.trial(1.0, 0.5, 0.4)
    first, second = s.start(lr=0.01), s.start(lr=0.02)
    s.epoch(second, 1, 0.9)
    s.epoch(first, 1, 0.25)
    request = read_resumed(s.directory, {})
    for _ in range(2):
        code = launch(request, data=tmp_path, results=s.directory.parent, resume=True)
        assert code == ending.FINISHED
        said = capsys.readouterr().out
        assert "study s: 1 completed, 2 pruned\n" in said
        assert "the study has stopped early: trial 0002 has reached loss 0.25 at epoch 1" in said
        assert "--resume s" in said
        assert said.count(" --stop never\n") == 1
    changed = read_resumed(s.directory, {"stop_conditions": ["never"]})
    assert not stop.parse(changed.stop_conditions)
