"""Faults of nodes and of user code. None of them may end a study without a reason."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEAD = "import os, pickle, sys, tempfile, time\nfrom pathlib import Path\nfrom ray import tune\n"


class Ran:
    """The result of a study run by entrypoints/tune.py."""

    def __init__(self, directory: Path, status: int, said: str) -> None:
        self.directory = directory
        self.status = status
        self.said = said
        path = directory / "trials.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self.events: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def states(self) -> list[str]:
        return sorted(event["state"] for event in self.of("end"))


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Ran]:
    """Runs a study of a function with its own Ray."""

    def run(body: str, *flags: str, **variables: str) -> Ran:
        (tmp_path / "mine.py").write_text(HEAD + dedent(body))
        command = [sys.executable, str(ROOT / "entrypoints/tune.py"), "--name", "s"]
        command += ["--trainable", "mine.py:train", "--scheduler", "none", *flags]
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=outside | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(tmp_path / "results" / "s", done.returncode, done.stdout)

    return run


def test_a_worker_that_rays_memory_monitor_kills_costs_its_trial_a_retry(
    tune: Callable[..., Ran],
) -> None:
    """The monitor watches the memory of the whole node: the first trial exceeds its threshold."""
    total, available = (_meminfo(name) for name in ("MemTotal", "MemAvailable"))
    threshold = 1 - available / total + 0.1
    body = f"""
    SPACE = {{"x": tune.grid_search([1, 2, 3])}}
    def train(config):
        if config["x"] == 1:
            kept = bytearray(os.urandom(1 << 20)) * {int(0.2 * total) >> 20}
            time.sleep(60)
        tune.report({{"loss": config["x"]}})
    """
    flags = ("--searcher", "grid", "--concurrent", "1", "--retries", "1")
    ran = tune(body, *flags, RAY_memory_usage_threshold=f"{threshold:.3f}")
    assert ran.status == 0, ran.said
    assert ran.states == ["completed", "completed", "failed"]
    (failed,) = (e for e in ran.of("end") if e["state"] == "failed")
    assert "the node has run out of memory" in failed["error"]
    # The monitor also counts other programs on this machine, so it may end another trial as well.
    again = [e["cause"] for e in ran.of("restart") if e["trial"] == failed["trial"]]
    assert again == ["memory"]
    assert "Traceback" not in ran.said


def _meminfo(name: str) -> int:
    """Returns a value of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(name)


def test_workers_that_are_killed_at_once_end_the_study_with_their_reason(
    tune: Callable[..., Ran],
) -> None:
    ran = tune(
        'SPACE = {"x": tune.uniform(0, 1)}\ndef train(config): ...\n',
        *("--searcher", "random", "--trials", "2"),
        RAY_memory_usage_threshold="0.001",
    )
    # Some workers may live until a trial has begun, which then fails after its retries.
    assert ran.status in (1, 75), ran.said
    assert (
        "the workers exit before any trial has reported an epoch: the node has run out of memory"
        in ran.said
    )
    assert "Traceback" not in ran.said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_the_full_disk_of_the_only_node_stops_the_study_and_fails_no_trial(
    tune: Callable[..., Ran], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", scratch], check=True, capture_output=True
    )
    body = """
    SPACE = {"x": tune.uniform(0, 1), "epochs": 2}
    def train(config):
        for epoch in range(config["epochs"]):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "weights").write_bytes(bytes(2 << 20))
                tune.report({"loss": 1}, checkpoint=tune.Checkpoint(directory))
    """
    try:
        ran = tune(body, "--searcher", "random", "--trials", "2", TMPDIR=str(scratch))
    finally:
        subprocess.run(["umount", "-l", scratch], check=True)
    assert ran.status == 75, ran.said
    assert (
        f"{os.uname().nodename} is excluded from the study: cannot write to {scratch}" in ran.said
    )
    assert "No space left on device" in ran.said
    assert ran.states == []


def test_nothing_that_a_trial_raises_returns_or_names_ends_the_study(
    tune: Callable[..., Ran],
) -> None:
    body = """
    class Diverged(Exception):
        def __init__(self, at, loss):  # it pickles, and does not unpickle
            super().__init__(f"diverged at {at}")
    class Mute(Exception):
        def __str__(self): raise ValueError("mute")
        def __reduce__(self): raise TypeError("not to be pickled")
    DOES = [
        lambda: (_ for _ in ()).throw(Diverged(3, 4)),
        lambda: (_ for _ in ()).throw(Mute()),
        lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
        lambda: sys.exit("no data"),
        lambda: tune.report({"loss": 1, "done": True, ("a", 1): object(), "trial_id": "x"}),
        lambda: tune.report({"loss": 10**400}),
        lambda: tune.report({"loss": "low"}),
        lambda: tune.report([1]),
        lambda: [1, 2],
        lambda: os._exit(0),
    ]
    SPACE = {"x": tune.grid_search(list(range(10)))}
    def train(config):
        return DOES[config["x"]]()
    """
    ran = tune(body, "--searcher", "grid", "--retries", "0")
    assert ran.status == 0, ran.said
    assert ran.states == ["completed"] + ["failed"] * 9
    errors = {e["trial"]: e.get("error", "") for e in ran.of("end")}
    words = [
        "diverged at 3",
        "Mute",
        "KeyboardInterrupt",
        "no data",
        "",
        "whole number of 1329 bits",
    ]
    words += ["loss is 'low'", "dictionary of metrics", "without reporting", "exit code 0"]
    for (trial, error), word in zip(sorted(errors.items()), words, strict=True):
        assert word in error, (trial, error)
    assert "Traceback" not in ran.said


def test_a_trial_keeps_its_best_and_its_last_checkpoint_and_best_json_names_one(
    tune: Callable[..., Ran],
) -> None:
    """The parameters are whether scores are equal, and whether the trial was interrupted."""
    body = """
    SPACE = {"x": tune.uniform(0, 1), "epochs": 6}
    def train(config):
        done = 0
        if checkpoint := tune.get_checkpoint():
            done = int(Path(checkpoint.path, "epoch").read_text())
        for epoch in range(done + 1, 7):
            if epoch == 4 and not Path("once").exists():
                Path("once").touch()
                os._exit(1)
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "epoch").write_text(str(epoch))
                score = [0.5, 0.9, 0.9, 0.8, 0.9, 0.7][epoch - 1]
                tune.report({"acc": score}, checkpoint=tune.Checkpoint(directory))
    """
    flags = ("--searcher", "random", "--trials", "1", "--metric", "acc", "--mode", "max")
    ran = tune(body, *flags)
    assert ran.status == 0, ran.said
    assert [e["cause"] for e in ran.of("restart")] == ["crash"]
    best = json.loads((ran.directory / "best.json").read_text())
    assert best["epoch"] == 2
    assert (ran.directory / best["checkpoint"]).read_text() == "2"
    kept = [path / "epoch" for path in (ran.directory / "checkpoints/0001").iterdir()]
    assert sorted(path.read_text() for path in kept) == ["2", "6"]


def test_processes_and_directories_go_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    body = """
    SPACE = {"x": tune.uniform(0, 1)}
    def train(config):
        Path(__file__).with_name("pid").write_text(str(os.getpid()))
        tune.report({"loss": 1})
        time.sleep(1000)
    """
    (tmp_path / "mine.py").write_text(HEAD + dedent(body))
    outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, str(ROOT / "entrypoints/tune.py"), "--name", "s", "--trials", "1"]
    command += ["--trainable", "mine.py:train", "--searcher", "random"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=outside, stdout=subprocess.DEVNULL)
    journal = tmp_path / "results/s/trials.jsonl"
    _until(lambda: journal.exists() and '"epoch"' in journal.read_text())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    pid = (tmp_path / "pid").read_text()
    _until(lambda: not Path(f"/proc/{pid}").exists())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
