"""The commands as a user runs them: processes, signals and exit statuses."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAPPER = (ROOT / "tests" / "napper.py").read_text()
STUDY = ("--trainable", "napper.py:train", "--searcher", "random", "--concurrent", "1")


@pytest.fixture
def start(tmp_path: Path, mnist_directory: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts an entrypoint in an empty directory with napper.py in it."""
    (tmp_path / "napper.py").write_text(NAPPER)

    def begin(entrypoint: str, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, ROOT / "entrypoints" / f"{entrypoint}.py", *flags],
            cwd=tmp_path,
            env=os.environ | {"SIFTUNE_DATA": str(mnist_directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


def events(directory: Path) -> list[dict[str, Any]]:
    path = directory / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_events(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(events(directory)) < count:
        assert time.monotonic() < deadline, "the study makes no progress"
        time.sleep(0.05)


def outcome(directory: Path) -> dict[str, list[Any]]:
    """Returns each trial's config, epochs with their losses, and state."""
    trials: dict[str, list[Any]] = {}
    for event in events(directory):
        trial = trials.setdefault(event["trial"], [])
        if event["event"] == "start":
            trial.append(event["config"] | {"nap": None})
        elif event["event"] == "epoch":
            trial.append((event["epoch"], event["metrics"]["loss"]))
        elif event["event"] == "end":
            trial.append(event["state"])
    return trials


def test_a_killed_study_goes_on_as_if_it_had_not_been(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    # test_interrupted.py tests every searcher and scheduler, but with one Ray for all studies.
    flags = (*STUDY, "--scheduler", "hyperband", "--trials", "5", "--seed", "0")
    whole = start("tune", *flags, "--name", "whole", "--set", "nap=0")
    assert whole.wait() == 0, whole.stdout.read()
    killed = start("tune", *flags, "--name", "killed")
    wait_for_events(tmp_path / "results/killed", 9)
    killed.kill()
    killed.wait()
    resumed = start("tune", "--resume", "killed")
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert outcome(tmp_path / "results/killed") == outcome(tmp_path / "results/whole")
    ends = Counter(e["trial"] for e in events(tmp_path / "results/killed") if e["event"] == "end")
    assert set(ends.values()) == {1}
    assert len(ends) == 5


def test_a_time_limit_ends_with_75_and_the_study_can_go_on(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    # 18 s of training: the limit is within it, even if the start takes 15 s.
    flags = (*STUDY, "--scheduler", "none", "--trials", "4", "--name", "s", "--set", "nap=0.5")
    first = start("tune", *flags, "--time-limit", "16s")
    output = first.communicate()[0]
    assert first.returncode == 75, output
    assert "--resume s" in output
    summary = json.loads((tmp_path / "results/s/summary.json").read_text())
    assert summary["trials"]["running"] == 1
    second = start("tune", "--resume", "s", "--time-limit", "600")
    output = second.communicate()[0]
    assert second.returncode == 0, output
    assert json.loads((tmp_path / "results/s/summary.json").read_text())["restarts"] == 1
    epochs = [e["epoch"] for e in events(tmp_path / "results/s") if e["event"] == "epoch"]
    assert epochs == [*range(1, 10)] * 4


def test_ctrl_c_saves_and_stops(start: Callable[..., Any], tmp_path: Path) -> None:
    process = start("tune", *STUDY, "--trials", "3", "--name", "s")
    wait_for_events(tmp_path / "results/s", 3)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert "--resume s" in output
    assert "Traceback" not in output
    assert (tmp_path / "results/s/report.html").is_file()


def test_studyyaml_runs_the_study_again(start: Callable[..., Any], tmp_path: Path) -> None:
    flags = (*STUDY, "--trials", "2", "--set", "nap=0")
    first = start("tune", *flags, "--name", "first")
    assert first.wait() == 0, first.stdout.read()
    second = start("tune", "--config", "results/first/study.yaml", "--name", "second")
    assert second.wait() == 0, second.stdout.read()
    assert outcome(tmp_path / "results/first") == outcome(tmp_path / "results/second")


def test_a_log_file_has_a_line_per_event_and_nothing_redrawn(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start("tune", *STUDY, "--trials", "2", "--set", "nap=0", "--name", "s")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "\r" not in output
    assert "\x1b" not in output
    lines = [line for line in output.splitlines() if re.match(r"\d\d:\d\d:\d\d trial ", line)]
    assert len(lines) == len(events(tmp_path / "results/s"))
    assert output.count("no GPU found") <= 1


def test_a_terminal_shows_one_table(start: Callable[..., Any], tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    flags = (*STUDY, "--trials", "2", "--set", "nap=0.05", "--name", "s")
    process = subprocess.Popen(
        [sys.executable, ROOT / "entrypoints/tune.py", *flags],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(controller, 65536)
        except OSError:  # raised when the other end is closed
            break
    assert process.wait() == 0, output.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert "2 of 2 trials done" in text
    assert "best loss" in text
    assert "left" in text


def test_the_quick_preset_says_that_it_is_a_part(start: Callable[..., Any], tmp_path: Path) -> None:
    small = ["epochs=2", "conv1_channels=8", "conv2_channels=16", "conv3_channels=0"]
    flags = [flag for setting in small for flag in ("--set", setting)]
    flags += ["--trials", "2", "--searcher", "random", "--name", "s", "--seed", "0"]
    tune = start("tune", "--preset", "quick", *flags)
    output = tune.communicate()[0]
    assert tune.returncode == 0, output
    assert "10,000 of MNIST's 60,000" in output
    assert "images: 10000" in (tmp_path / "results/s/study.yaml").read_text()
    best = json.loads((tmp_path / "results/s/best.json").read_text())
    evaluate = start("train", "--from", "results/s/best.json")
    output = evaluate.communicate()[0]
    assert evaluate.returncode == 0, output
    figures = dict(line.split(": ") for line in output.splitlines() if ": " in line)
    assert float(figures["val_accuracy"]) == pytest.approx(
        best["metrics"]["val_accuracy"], abs=1e-6
    )
    assert 0.5 < float(figures["test_accuracy"]) <= 1


def test_train_runs_one_config_without_a_ray_process(start: Callable[..., Any]) -> None:
    process = start("train", "--trainable", "napper.py:train", "--set", "x=0.5", "--set", "nap=0")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert output.count("loss=") == 9
    assert "loss=1.25" in output


def test_no_data_source_is_an_error_before_any_trial(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    process = start("tune", "--data", "file/data", "--name", "s")
    output = process.communicate()[0]
    assert process.returncode == 1
    assert "file/data" in output
    assert not (tmp_path / "results/s").exists()


def test_nothing_is_left_in_tmp(start: Callable[..., Any]) -> None:
    before = set(Path("/tmp").glob("sift-*"))
    process = start("tune", *STUDY, "--trials", "1", "--set", "nap=0", "--name", "s")
    assert process.wait() == 0, process.stdout.read()
    left = set(Path("/tmp").glob("sift-*")) - before
    assert not [path for path in left if path.is_dir()]


def test_what_a_killed_driver_left_in_tmp_goes_with_the_next(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    killed = start("tune", *STUDY, "--trials", "9", "--name", "s")
    wait_for_events(tmp_path / "results/s", 2)
    files = [fd.resolve() for fd in Path(f"/proc/{killed.pid}/fd").iterdir()]
    (left,) = (file.parent for file in files if file.name == "alive")
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 60
    while subprocess.run(["pgrep", "-f", str(left)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "Ray outlives its driver"
        time.sleep(0.5)
    os.utime(left / "alive", (0, 0))  # makes it look old
    process = start("tune", *STUDY, "--trials", "1", "--set", "nap=0", "--name", "t")
    assert process.wait() == 0, process.stdout.read()
    assert not left.exists()


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_killed_ray_is_said_and_the_study_goes_on(
    start: Callable[..., Any], tmp_path: Path, part: str
) -> None:
    process = start("tune", *STUDY, "--scheduler", "none", "--trials", "3", "--name", "s")
    wait_for_events(tmp_path / "results/s", 2)
    subprocess.run(["pkill", "-KILL", "-x", part, "-P", str(process.pid)], check=True)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 1
    assert "Ray was killed" in output
    assert "--resume s" in output
    assert "Traceback" not in output
    assert "ended" in json.loads((tmp_path / "results/s/driver.json").read_text())
    again = start("tune", "--resume", "s")
    assert again.wait() == 0, again.stdout.read()
    ends = [e for e in events(tmp_path / "results/s") if e["event"] == "end"]
    assert [e["state"] for e in ends] == ["completed"] * 3


def test_a_ray_that_does_not_start_in_time_is_started_again(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start("tune", *STUDY, "--trials", "1", "--set", "nap=0", "--name", "s")
    began = time.monotonic()
    stop = ["pkill", "-STOP", "-x", "raylet", "-P", str(process.pid)]
    while subprocess.run(stop).returncode != 0:
        assert time.monotonic() < began + 60, "Ray does not start"
        time.sleep(0.005)
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 0, output
    assert time.monotonic() > began + 30, "the first Ray started in time"
    assert [e["event"] for e in events(tmp_path / "results/s")][-1] == "end"
