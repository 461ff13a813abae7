"""Trials that fail, and trainables written by the user."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest


def states(result: Any) -> dict[str, int]:
    """Returns the number of trials in each state, without states that have none."""
    return {state: count for state, count in result.summary["trials"].items() if count}


@pytest.fixture
def mine(study: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs a study of a function in a user's file."""

    def run(body: str, **layer: Any) -> Any:
        # Each function gets its own file name, because a module is loaded only once per process.
        file = tmp_path / f"mine_{abs(hash(body)):x}.py"
        head = 'from ray import tune\nSPACE = {"x": tune.choice([1, 2, 3, 4])}\n'
        file.write_text(head + dedent(body))
        layer = {"searcher": "grid", "scheduler": "none", "metric": "loss"} | layer
        return study(trainable=f"{file}:train", **layer)

    return run


def test_a_function_of_ones_own_is_tuned(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        def train(config):
            for epoch in range(3):
                tune.report({"loss": config["x"] / (epoch + 1), "note": "kept"})
        """
    )
    assert result.status == 0
    assert result.best["config"] == {"x": 1}
    assert result.best["epoch"] == 3
    assert result.best["metrics"] == {"loss": 1 / 3, "note": "kept"}
    assert result.best["checkpoint"] is None


def test_a_generator_is_tuned(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        def train(config):
            for epoch in range(2):
                yield {"loss": config["x"] / (epoch + 1)}
        """
    )
    assert result.status == 0
    assert len(result.of("epoch")) == 8


def test_numbers_beyond_floats_fail_their_trial_or_are_recorded(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        def train(config):
            loss = {1: 10**400, 2: 10**5000}.get(config["x"], config["x"])
            tune.report({"loss": loss, "steps": 10**5000, "nested": {"steps": [10**5000]}})
        """
    )
    assert result.status == 0
    ends = {e["trial"]: e for e in result.of("end")}
    errors = [ends[e["trial"]].get("error") for e in result.of("start") if e["config"]["x"] < 3]
    assert all("a finite number is needed" in error for error in errors)
    assert result.summary["trials"]["completed"] == 2
    assert result.best["metrics"]["steps"] == "a whole number of 16610 bits"
    assert result.best["metrics"]["nested/steps"] == ["a whole number of 16610 bits"]


def test_one_trial_that_raises_does_not_end_the_study(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        def train(config):
            if config["x"] == 2:
                raise RuntimeError("two is too many")
            tune.report({"loss": config["x"]})
        """
    )
    assert result.status == 0
    failed = [e for e in result.of("end") if e["state"] == "failed"]
    assert len(failed) == 1
    assert "RuntimeError: two is too many" in failed[0]["error"]
    assert "in train" in failed[0]["error"]
    assert states(result) == {"completed": 3, "failed": 1}
    assert "RuntimeError: two is too many" in (result.directory / "report.html").read_text()


def test_a_study_whose_trials_all_raise_ends_with_1(
    mine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = mine("def train(config):\n    raise ValueError('never')\n")
    assert result.status == 1
    assert result.summary["trials"]["failed"] in (3, 4)  # the fourth may have failed already
    output = capsys.readouterr()
    assert "ValueError: never" in output.out
    assert "3 trials in a row failed with the same error" in output.err


def test_a_nan_fails_its_trial_and_the_searcher_is_told(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        def train(config):
            tune.report({"loss": float("nan") if config["x"] > 2 else config["x"]})
        """,
        searcher="optuna",
        trials=4,
    )
    assert result.status == 0
    errors = [e["error"] for e in result.of("end") if e["state"] == "failed"]
    assert len(errors) == 2
    assert all("loss is nan after epoch 1" in error for error in errors)
    assert not any(math.isnan(e["metrics"]["loss"]) for e in result.of("epoch"))


def test_a_metric_never_reported_is_named_with_those_that_are(mine: Callable[..., Any]) -> None:
    result = mine("def train(config):\n    tune.report({'val_loss': 1})\n", metric="loss")
    assert result.status == 1
    error = result.of("end")[0]["error"]
    assert "reported val_loss, but not 'loss'" in error
    assert "--metric" in error


def test_a_function_that_reports_nothing_is_told_how(mine: Callable[..., Any]) -> None:
    result = mine("def train(config):\n    return None\n")
    assert result.status == 1
    assert 'call tune.report({"loss": value})' in result.of("end")[0]["error"]


def test_a_trial_whose_process_always_dies_is_tried_again_and_fails_alone(
    mine: Callable[..., Any],
) -> None:
    result = mine(
        """
        import os, signal
        def train(config):
            if config["x"] == 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            tune.report({"loss": config["x"]})
        """,
        retries=1,
    )
    assert result.status == 0
    assert states(result) == {"completed": 3, "failed": 1}
    (again,) = result.of("restart")
    assert again["cause"] == "crash"
    (failed,) = (e for e in result.of("end") if e["state"] == "failed")
    for error in (again["error"], failed["error"]):
        assert error == "its process ended with SIGSEGV, a segmentation fault in native code"


# The trial with x = 3 fails in its second epoch, but only once. It has a checkpoint of the first.
FAILS_ONCE = """
import ctypes, json, os, signal, tempfile, time
from pathlib import Path
def train(config):
    start, checkpoint = 0, tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "epoch").read_text())
    for epoch in range(start + 1, 4):
        if config["x"] == 3 and epoch == 2 and not MARK.exists():
            MARK.touch()
            FAIL
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(str(epoch))
            tune.report(
                {"loss": config["x"] / epoch, "first": start + 1},
                checkpoint=tune.Checkpoint.from_directory(directory),
            )
"""


@pytest.mark.parametrize(
    ("fail", "cause"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "crash"),
        ("ctypes.string_at(0)", "crash"),
        ("time.sleep(1000)", "hang"),
        ("raise MemoryError('no room')", "memory"),
    ],
)
def test_a_trial_that_fails_once_goes_on_from_its_checkpoint(
    mine: Callable[..., Any], tmp_path: Path, fail: str, cause: str
) -> None:
    body = FAILS_ONCE.replace("MARK", f'Path("{tmp_path}/mark")').replace("FAIL", fail)
    result = mine(body, report_timeout_s=8.0 if cause == "hang" else None)
    assert result.status == 0
    assert states(result) == {"completed": 4}
    (again,) = result.of("restart")
    assert (again["cause"], again["epoch"]) == (cause, 1)
    epochs = [e for e in result.of("epoch") if e["trial"] == again["trial"]]
    assert [(e["epoch"], e["metrics"]["first"]) for e in epochs] == [(1, 1), (2, 2), (3, 2)]
    last = json.loads((result.directory / epochs[-1]["checkpoint"] / "epoch").read_text())
    assert last == 3
    assert len(result.of("start")) == len(result.of("end")) == 4


def test_a_checkpoint_that_cannot_be_read_costs_its_epochs_and_not_the_trial(
    mine: Callable[..., Any], tmp_path: Path
) -> None:
    spoil = f"""
            for file in Path("{tmp_path}/study/checkpoints").glob("0003/*/epoch"):
                file.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)"""
    body = FAILS_ONCE.replace("MARK", f'Path("{tmp_path}/mark")').replace("FAIL", spoil)
    result = mine(body)
    assert states(result) == {"completed": 4}
    assert [(e["cause"], e["epoch"]) for e in result.of("restart")] == [
        ("crash", 1),
        ("checkpoint", 0),
    ]


def test_a_full_disk_stops_the_study_and_fails_no_trial(
    mine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = mine(
        """
        import errno, os
        def train(config):
            if config["x"] == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.pt")
            tune.report({"loss": config["x"]})
        """
    )
    assert result.status == 1
    assert result.summary["trials"]["failed"] == 0
    assert result.summary["trials"]["running"] >= 1
    errors = capsys.readouterr().err
    assert "cannot save" in errors
    assert "No space left on device" in errors
    assert "--resume study" in errors


STATEFUL = """
    import os
    seen = []
    def train(config):
        seen.append(config["x"])
        tune.report({"loss": config["x"], "pid": os.getpid(), "seen": len(seen)})
    """


def test_every_trial_is_a_fresh_process(mine: Callable[..., Any]) -> None:
    result = mine(STATEFUL, concurrent=1)
    metrics = [e["metrics"] for e in result.of("epoch")]
    assert len({m["pid"] for m in metrics}) == 4
    assert [m["seen"] for m in metrics] == [1] * 4


def test_with_reused_processes_one_trains_all_trials_of_its_slot(mine: Callable[..., Any]) -> None:
    result = mine(STATEFUL, concurrent=1, reuse_processes=True)
    metrics = [e["metrics"] for e in result.of("epoch")]
    assert len({m["pid"] for m in metrics}) == 1
    assert [m["seen"] for m in metrics] == [1, 2, 3, 4]


def test_paused_trials_go_on_all_at_once(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        import json, tempfile, time
        from pathlib import Path
        SPACE = {"x": tune.uniform(0, 1), "epochs": 4}
        def train(config):
            epoch = 0
            if checkpoint := tune.get_checkpoint():
                with checkpoint.as_directory() as directory:
                    epoch = json.loads(Path(directory, "epoch").read_text())
            while epoch < config["epochs"]:
                epoch, began = epoch + 1, time.time()
                time.sleep(0.3)
                metrics = {"loss": config["x"] / epoch, "began": began}
                with tempfile.TemporaryDirectory() as directory:
                    Path(directory, "epoch").write_text(json.dumps(epoch))
                    tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))
        """,
        searcher="random",
        scheduler="pbt",
        trials=4,
        concurrent=4,
        cpus_per_trial=0.5,
    )
    assert states(result) == {"completed": 4}
    epochs = result.of("epoch")
    assert len(epochs) == 16
    # One trial of each generation is a clone, and the others do not wait for its training.
    together = 0
    for clone in result.of("restart"):
        generation = [e for e in epochs if e["epoch"] == clone["epoch"] + 1]
        (own,) = (e for e in generation if e["trial"] == clone["trial"])
        together += any(e["metrics"]["began"] < own["time"] for e in generation if e is not own)
    assert together > 0


def test_a_pause_without_a_checkpoint_is_said_once(
    mine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = mine(
        """
        SPACE = {"x": tune.uniform(0, 1), "epochs": 3}
        def train(config):
            for epoch in range(1, config["epochs"] + 1):
                tune.report({"loss": config["x"] / epoch})
        """,
        searcher="random",
        scheduler="pbt",
        trials=4,
    )
    assert states(result) == {"completed": 4}
    assert capsys.readouterr().out.count("Pass checkpoint= to tune.report") == 1


def test_every_trial_begins_with_the_seed(mine: Callable[..., Any]) -> None:
    body = """
        import random, numpy, torch
        def train(config):
            draws = [random.random(), float(numpy.random.rand()), float(torch.rand(()))]
            tune.report({"loss": sum(draws)})
        """
    result = mine(body, seed=3)
    assert len({e["metrics"]["loss"] for e in result.of("epoch")}) == 1


def test_fewer_trials_than_slots_is_said_with_what_fills_them(
    mine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mine("def train(config):\n    tune.report({'loss': 1})\n", searcher="random", trials=1)
    note = "--trials 1 leaves 1 of 2 slots idle: --trials 2 uses all of them"
    assert note in capsys.readouterr().out


def test_auto_says_what_it_chose_and_why(
    mine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = mine("def train(config):\n    tune.report({'loss': 1})\n", searcher="auto")
    output = capsys.readouterr().out
    assert "searcher grid: the space has 4 configs" in output
    assert "searcher: grid" in (result.directory / "study.yaml").read_text()


def test_a_finished_study_takes_more_trials(
    mine: Callable[..., Any], connected: None, tmp_path: Path
) -> None:
    from siftune.driver.launch import launch
    from siftune.study.reading import read_resumed

    mine("def train(config):\n    tune.report({'loss': config['x']})\n", trials=2)
    more = read_resumed(tmp_path / "study", {"trials": 3})
    assert launch(more, data=tmp_path, results=tmp_path, resume=True) == 0
    assert launch(more, data=tmp_path, results=tmp_path, resume=True) == 0  # no work is left
    lines = (tmp_path / "study" / "trials.jsonl").read_text().splitlines()
    assert sum('"event": "start"' in line for line in lines) == 3
    assert "trials: 3" in (tmp_path / "study" / "study.yaml").read_text()


def test_a_trial_gets_the_cpus_it_asked_for(mine: Callable[..., Any]) -> None:
    result = mine(
        """
        import os
        def train(config):
            (resources,) = tune.get_context().get_trial_resources().bundles
            threads = os.environ["OMP_NUM_THREADS"]
            tune.report({"loss": 1, "cpus": resources["CPU"], "threads": threads})
        """,
        cpus_per_trial=2,
    )
    assert result.summary["slots"] == 1
    assert {(e["metrics"]["cpus"], e["metrics"]["threads"]) for e in result.of("epoch")} == {
        (2.0, "2")
    }
