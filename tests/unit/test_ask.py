"""Studies whose trials the caller trains: ask and tell, without Ray."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import siftune
from siftune.record.lease import StudyBusyError

SPACE = {"x": "uniform(0, 1)", "epochs": 9}


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def open_study(**settings: Any) -> Any:
    settings = {"metric": "loss", "trials": 12, "seed": 1, "name": "s"} | settings
    return siftune.ask_and_tell(SPACE, **settings)


def train(study: Any, most: int = 100) -> None:
    for _ in range(most):
        if (trial := study.ask()) is None:
            return
        while trial.report(loss=trial.config["x"] + 1 / (trial.epoch + 1)):
            pass
        trial.end()


def configs(name: str) -> list[dict[str, Any]]:
    lines = Path("results", name, "trials.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event["config"] for event in events if event["event"] == "start"]


def test_a_study_is_asked_and_told_and_the_scheduler_stops_trials() -> None:
    with open_study() as study:
        train(study)
        assert study.ask() is None
    trials = study.result.trials
    assert list(trials.state.value_counts().index.sort_values()) == ["completed", "pruned"]
    assert trials.epochs.max() == 9
    assert study.result.finished
    assert study.result.best.value == trials.loss.min()
    assert (study.directory / "report.html").is_file()


def test_a_study_goes_on_in_another_process_as_if_it_had_not_stopped() -> None:
    with open_study(name="whole") as study:
        train(study)
    with open_study(name="parts") as study:
        trial = study.ask()
        trial.report(loss=trial.config["x"] + 1)
        assert not study.result.finished
    with siftune.ask_and_tell(name="parts", resume=True) as study:
        (trial,) = study.unfinished()
        assert (trial.name, trial.epoch) == ("0001", 1)
        while trial.report(loss=trial.config["x"] + 1 / (trial.epoch + 1)):
            pass
        trial.end()
        train(study)
    assert configs("parts") == configs("whole")


def test_a_killed_process_loses_nothing_that_was_reported() -> None:
    body = f"""
    import os, signal, siftune
    study = siftune.ask_and_tell({SPACE}, name="s", metric="loss", trials=12, seed=1)
    trial = study.ask()
    for k in range(3):
        trial.report(loss=1 - k / 10)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", dedent(body)], check=False)
    assert done.returncode == -9
    with siftune.ask_and_tell(name="s", resume=True) as study:
        assert [trial.epoch for trial in study.unfinished()] == [3]
        assert study.result.best.value == 0.8


def test_a_script_that_is_run_again_goes_on() -> None:
    for trials in (3, 12, 15):
        with open_study(resume=True, trials=trials) as study:
            train(study)
            assert len(study.result.trials) == trials
    with pytest.raises(siftune.UsageError, match="cannot change metric"):
        open_study(resume=True, metric="other")


def test_only_one_process_has_a_study_open() -> None:
    with open_study(), pytest.raises(StudyBusyError):
        open_study(resume=True)
    open_study(resume=True).close()


def test_several_threads_ask_and_tell() -> None:
    with open_study(trials=40, slots=4) as study:
        threads = [threading.Thread(target=train, args=(study,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(configs("s")) == 40
    assert set(study.result.trials.state) == {"completed", "pruned"}


def test_failures_and_mistakes_are_told_apart() -> None:
    with open_study(scheduler="none") as study:
        trial = study.ask()
        with pytest.raises(siftune.UsageError, match="'loss' is missing; got: lossy"):
            trial.report(lossy=1.0)
        trial.end(error="the queue was down")
        with pytest.raises(siftune.UsageError, match="has ended: ask for another one"):
            trial.report(loss=1.0)
        assert not study.ask().report(loss=float("nan"))
        study.ask().end()  # without a report
        assert study.result.best is None
    trials = study.result.trials
    assert set(trials.state) == {"failed"}
    assert trials.error[0] == "the queue was down"
    assert "loss is nan" in trials.error[1]
    assert "without reporting" in trials.error[2]


def test_a_condition_stops_the_study() -> None:
    with open_study(stop_conditions=["loss < 10"]) as study:
        first, second = study.ask(), study.ask()
        assert not first.report(loss=1.0)
        assert study.ask() is None
        assert second.epoch == 0
    assert study.result.finished


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"scheduler": "hyperband"}, "pauses trials"),
        ({"trials": 0, "metirc": "a"}, "metirc"),
        ({"learn_from": ["results/none"]}, "there is none at this path"),
        ({"searcher": "heboo"}, "heboo"),
    ],
)
def test_mistakes_are_refused_and_leave_no_directory(settings: Any, refusal: str) -> None:
    with pytest.raises(siftune.UsageError, match=refusal):
        open_study(**settings)
    assert not Path("results").exists()


def test_a_study_is_not_overwritten_and_needs_its_caller() -> None:
    with open_study() as study:
        train(study, most=1)
    with pytest.raises(siftune.UsageError, match="resume=True goes on"):
        open_study()
    with pytest.raises(siftune.UsageError, match="needs a space"):
        siftune.ask_and_tell(name="t")
    resume = "import sys; from siftune.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", resume, "tune", "--resume", "s"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "siftune.ask_and_tell(name=…, resume=True)" in done.stderr
