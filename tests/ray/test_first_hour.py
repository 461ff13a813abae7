"""The first hour with one's own file: what goes wrong there ends soon, and says what to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SAME = ("--trainable", "mine.py:train", "--searcher", "random", "--scheduler", "none")


class Ran:
    def __init__(self, directory: Path, status: int, output: str) -> None:
        self.directory = directory
        self.status = status
        self.output = output
        lines = (directory / "trials.jsonl").read_text().splitlines()
        self.events: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return subprocess.run(
            [sys.executable, str(ROOT / "entrypoints" / f"{name}.py"), *flags],
            cwd=tmp_path,
            env=outside,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def tune(command: Callable[..., Any], tmp_path: Path) -> Callable[..., Ran]:
    """Runs a study of a file in an empty directory."""

    def run(body: str, *flags: str, name: str = "s") -> Ran:
        (tmp_path / "mine.py").write_text("from ray import tune\n" + dedent(body))
        done = command("tune", *SAME, "--name", name, *flags)
        return Ran(tmp_path / "results" / name, done.returncode, done.stdout)

    return run


def test_a_study_whose_trials_all_fail_alike_stops_and_says_why(
    tune: Callable[..., Ran], command: Callable[..., Any]
) -> None:
    body = """
    SPACE = {"x": tune.uniform(0, 1)}
    def train(config):
        for line in range(20): print(f"line {line} of {config['x'] > 2}")
        raise RuntimeError("there is no driver")
    """
    ran = tune(body, "--trials", "30", "--concurrent", "1")
    assert ran.status == 1
    assert len(ran.of("end")) == 3
    assert "3 trials in a row failed with the same error" in ran.output
    assert 'raise RuntimeError("there is no driver")' in ran.output
    assert ran.output.count("| line 19 of False") == 1  # the end of the log, once
    assert "| line 10" in ran.output
    assert "| line 9 " not in ran.output
    for reader in ("status", "report"):
        shown = command(reader, "s").stdout
        text = shown if reader == "status" else (ran.directory / "report.html").read_text()
        assert "line 19 of False" in text
    log = command("logs", "s", "1", "--follow").stdout
    assert log.splitlines()[0] == "line 0 of False"
    assert command("logs", "s", "9").returncode == 2


def test_errors_that_differ_do_not_stop_a_study_and_zero_never_does(
    tune: Callable[..., Ran],
) -> None:
    body = """
    SPACE = {"x": tune.uniform(0, 1)}
    def train(config):
        raise RuntimeError(f"{config['x']}")
    """
    assert len(tune(body, "--trials", "5").of("end")) == 5
    same = "SPACE = {'x': tune.uniform(0, 1)}\ndef train(config): raise RuntimeError('x')\n"
    assert len(tune(same, "--trials", "5", "--max-failures", "0", name="t").of("end")) == 5


def test_a_class_of_ray_tunes_is_trained_and_goes_on_from_its_checkpoint(
    tune: Callable[..., Ran],
) -> None:
    body = """
    import os, signal
    from pathlib import Path
    SPACE = {"x": tune.uniform(0, 1), "epochs": 6}
    class train(tune.Trainable):
        def setup(self, config):
            self.steps = 0
        def step(self):
            self.steps += 1
            if self.steps == 4 and not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"loss": self.config["x"], "steps": self.steps}
        def save_checkpoint(self, directory):
            return {"steps": self.steps}
        def load_checkpoint(self, checkpoint):
            self.steps = checkpoint["steps"]
        def cleanup(self):
            Path("cleaned").touch()
    """
    ran = tune(body, "--trials", "1")
    assert ran.status == 0, ran.output
    (restart,) = ran.of("restart")
    assert restart["epoch"] == 3
    assert [e["metrics"]["steps"] for e in ran.of("epoch")] == [1, 2, 3, 4, 5, 6]
    assert (ran.directory / "trials/0001/cleaned").exists()


@pytest.mark.parametrize("train", ["tune.with_parameters(f, data=[2])", "Net()"])
def test_a_callable_object_is_trained_in_a_study_and_alone(
    tune: Callable[..., Ran], command: Callable[..., Any], train: str
) -> None:
    body = f"""
    SPACE = {{"x": tune.uniform(0, 1)}}
    class Net:
        def __call__(self, config): return {{"loss": 2}}
    def f(config, data):
        tune.report(loss=sum(data))
    train = {train}
    """
    ran = tune(body, "--trials", "2")
    assert ran.status == 0, ran.output
    assert [e["metrics"] for e in ran.of("epoch")] == [{"loss": 2}] * 2
    alone = command("train", "--trainable", "mine.py:train")
    assert (alone.returncode, "loss=2" in alone.stdout) == (0, True)


def test_a_nested_space_a_returned_number_and_standard_input(tune: Callable[..., Ran]) -> None:
    body = """
    SPACE = {"optim": {"lr": tune.uniform(0, 1), "betas": (0.9, 0.99)}, "ask": tune.choice([0, 1])}
    def train(config):
        assert config["optim"]["betas"] == (0.9, 0.99)
        if config["ask"]: input("continue? ")
        return config["optim"]["lr"]
    """
    ran = tune(body, "--trials", "6")
    configs = {e["trial"]: e["config"] for e in ran.of("start")}
    for end in ran.of("end"):
        asked = configs[end["trial"]]["ask"]
        assert end["state"] == ("failed" if asked else "completed")
        assert not asked or "a trial has no standard input" in end["error"]
    assert {e["metrics"]["loss"] for e in ran.of("epoch")} == {
        config["optim/lr"] for config in configs.values() if not config["ask"]
    }


def test_a_renamed_study_is_the_study_of_its_directory(
    tune: Callable[..., Ran], command: Callable[..., Any], tmp_path: Path
) -> None:
    body = "SPACE = {'x': tune.uniform(0, 1)}\ndef train(config): return config['x']\n"
    ran = tune(body, "--trials", "1")
    ran.directory.rename(tmp_path / "results" / "renamed")
    assert command("tune", "--resume", "results/renamed", "--trials", "2").returncode == 0
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["renamed"]


def test_known_configs_come_first_and_a_study_stops_at_its_goal(
    tune: Callable[..., Ran], command: Callable[..., Any]
) -> None:
    body = """
    import time
    SPACE = {"x": tune.uniform(0, 1), "y": tune.choice([1, 2]), "epochs": 60}
    def train(config):
        for epoch in range(config["epochs"]):
            time.sleep(0.05)
            tune.report(loss=config["x"] + 10 / (epoch + 1))
    """
    tried = ("--try", "x=0.25 y=2", "--try", "x=0.9")
    goal = ("--stop", "loss < 1.3", "--trials", "8", "--concurrent", "2")
    ran = tune(body, *tried, *goal)
    assert ran.status == 0, ran.output
    configs = [start["config"] for start in ran.of("start")]
    assert configs[0] == {"x": 0.25, "y": 2, "epochs": 60}
    assert configs[1]["x"] == 0.9
    assert [(end["state"], end["cause"]) for end in ran.of("end")] == [("pruned", "stop")] * 2
    last = ran.of("epoch")[-1]
    assert (last["trial"], last["epoch"]) == ("0001", 10)
    assert "stopped early: trial 0001 has reached loss 1.25 at epoch 10" in ran.output
    assert "finished" in command("status", "s").stdout
    resumed = command("tune", "--resume", "s")
    assert resumed.returncode == 0
    assert "stopped early: trial 0001 has reached" in resumed.stdout
    assert command("tune", "--resume", "s", "--stop", "never", "--trials", "3").returncode == 0
    lines = (ran.directory / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines if '"end"' in line][2:] == ["completed"]
    refused = command("tune", *SAME, *tried, "--try", "x=2 z=1")
    assert refused.returncode == 2
    assert "--try config 3 (x=2 z=1): x must be in uniform(0, 1), got 2" in refused.stdout
    assert "--try config 3 (x=2 z=1): unknown parameter 'z'" in refused.stdout


TWO = """\
    import os

    import torch
    import torch.distributed as dist

    SPACE = {"lr": tune.uniform(0.0, 1.0), "fail": False, "epochs": 2}


    def train(config):
        assert dist.get_world_size() == 2
        assert not (config["fail"] and dist.get_rank()), "the second fails"
        print("cpus", tune.get_context().get_trial_resources().bundles)
        for epoch in range(config["epochs"]):
            mean = torch.tensor([config["lr"] + dist.get_rank() + epoch], dtype=torch.float64)
            dist.all_reduce(mean)
            tune.report({"loss": mean.item() / 2, "lr": config["lr"], "rank": dist.get_rank()})
"""
TOGETHER = ("--processes-per-trial", "2")


def test_a_trial_of_two_processes_runs_on_cpus(tune: Callable[..., Ran]) -> None:
    ran = tune(TWO, *TOGETHER, "--cpus-per-trial", "2", "--trials", "2")
    assert ran.status == 0, ran.output
    assert [end["state"] for end in ran.of("end")] == ["completed"] * 2
    assert len(ran.of("epoch")) == 4
    for epoch in ran.of("epoch"):
        metrics = epoch["metrics"]
        # The mean over the ranks 0 and 1.
        assert metrics["loss"] == pytest.approx(metrics["lr"] + 0.5 + epoch["epoch"] - 1)
        assert metrics["rank"] == 0
    for log in ("log.txt", "log.1.txt"):  # each process has half of the CPUs
        assert "[{'CPU': 1.0}, {'CPU': 1.0}]" in (ran.directory / "trials/0001" / log).read_text()


def test_train_runs_two_processes_and_says_when_one_fails(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("from ray import tune\n" + dedent(TWO))
    words = ("--trainable", "mine.py:train", "--set", "lr=0.25", *TOGETHER)
    done = command("train", *words)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"loss=(\S+) lr=0.25 rank=(.)", done.stdout) == [("0.75", "0"), ("1.75", "0")]
    done = command("train", *words, "--set", "fail=true")
    assert done.returncode == 1
    assert "the second fails" in done.stdout
    done = command("train", *words, "--check")
    assert done.returncode == 2
    assert "leave out --processes-per-trial" in done.stdout


def test_train_says_that_the_metric_never_came(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "SPACE = {'x': 1}\ndef train(config): yield {'acc': 0.5, 'note': 'text', 'none': None}\n"
    )
    done = command("train", "--trainable", "mine.py:train")
    assert done.returncode == 1
    assert "acc=0.5 note=text none=None" in done.stdout
    assert "without reporting 'loss'" in done.stdout
    assert command("train", "--trainable", "mine.py:train", "--metric", "acc").returncode == 0


def test_a_study_learns_from_another_one_which_is_then_removed(
    tune: Callable[..., Ran], command: Callable[..., Any]
) -> None:
    body = """
    SPACE = {"x": tune.uniform(0, 1), "y": tune.choice(["a", "b"])}
    def train(config):
        return (config["x"] - 0.3) ** 2
    """
    old = tune(body, "--trials", "12", name="old")
    words = ("--searcher", "optuna", "--trials", "4", "--learn-from", "results/old", "--seed", "1")
    new = tune(body, *words, "--concurrent", "1", name="new")
    assert new.status == 0, new.output
    assert f"learns from 12 of 12 trials of {old.directory}" in new.output
    assert len(new.of("start")) == 4
    assert len((new.directory / "learned.jsonl").read_text().splitlines()) == 12
    shutil.rmtree(old.directory)
    done = command("tune", "--resume", "new", "--trials", "6")
    assert done.returncode == 0, done.stdout
    assert (
        f"learned from 12 trials of {old.directory}" in (new.directory / "report.html").read_text()
    )
    # The model proposes from the first trial on, and the resumed study goes on as if uninterrupted.
    events = (new.directory / "trials.jsonl").read_text()
    refused = command("tune", *SAME, "--name", "t", "--learn-from", "results/old")
    assert refused.returncode == 2
    assert "there is none at this path" in refused.stdout
    (new.directory / "trials.jsonl").rename(new.directory / "before.jsonl")
    assert command("tune", "--resume", "new").returncode == 0
    again = (new.directory / "trials.jsonl").read_text()
    configs = [
        [line["config"] for line in map(json.loads, text.splitlines()) if line["event"] == "start"]
        for text in (events, again)
    ]
    assert configs[0] == configs[1]
