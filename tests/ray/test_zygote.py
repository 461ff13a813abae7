"""Where the processes of trials come from, and what becomes of them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRAINABLE = '''
import os, signal, sys, threading
BEFORE = "torch" in sys.modules
from pathlib import Path
import ray, torch
from ray import tune

SPACE = {"x": tune.grid_search([1, 2, 3, 4])}
HERE = Path(__file__).parent

def names():
    """Of what Ray would make next, here and in a new thread."""
    found = [ray.NodeID.from_random().hex()]
    thread = threading.Thread(target=lambda: found.append(ray.NodeID.from_random().hex()))
    thread.start()
    thread.join()
    return " ".join(found)

def train(config):
    if (HERE / "kill").exists():
        (HERE / "kill").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)
    from siftune import zygote
    metrics = {"forked": zygote._forked, "names": names(), "threads": torch.get_num_threads()}
    metrics |= {"process": os.getpid(), "parent": os.getppid(), "torch": BEFORE}
    tune.report({"loss": config["x"]} | metrics)
    if (HERE / "wait").exists():
        signal.pause()
'''
FLAGS = "--trainable mine.py:train --searcher grid --scheduler none --metric loss --name study"


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a study of that trainable in an empty directory."""
    (tmp_path / "mine.py").write_text(TRAINABLE)

    def begin(*flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, ROOT / "entrypoints" / "tune.py", *FLAGS.split(), *flags],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    path = directory / "results" / "study" / "trials.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def reports(directory: Path) -> list[dict[str, Any]]:
    return [event["metrics"] for event in events(directory, "epoch")]


def wait_until(condition: Callable[[], bool], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(*processes: int) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def test_processes_of_trials_are_forked_and_share_no_random_numbers(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    said = start("--concurrent", "2").communicate()[0]
    found = reports(tmp_path)
    assert len(found) == 4, said
    assert all(metrics["forked"] for metrics in found)
    assert len({metrics["process"] for metrics in found}) == 2
    assert len({metrics["parent"] for metrics in found}) == 1
    names = [name for metrics in found for name in metrics["names"].split()]
    assert len(set(names)) == len(names) == 8
    assert gone(*(metrics[who] for metrics in found for who in ("process", "parent")))


@pytest.mark.parametrize("needed", [True, False])
def test_torch_is_imported_before_only_where_it_is_needed(
    start: Callable[..., Any], tmp_path: Path, needed: bool
) -> None:
    if not needed:
        text = TRAINABLE.replace("ray, torch", "ray").replace("torch.get_num_threads()", "0")
        (tmp_path / "mine.py").write_text(text)
    said = start("--trials", "1").communicate()[0]
    found = [(metrics["forked"], metrics["torch"]) for metrics in reports(tmp_path)]
    assert found == [(True, needed)], said


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_trial_has_as_many_threads_as_cpus(
    start: Callable[..., Any], tmp_path: Path, cpus: int
) -> None:
    said = start("--cpus-per-trial", str(cpus), "--trials", "1").communicate()[0]
    assert [metrics["threads"] for metrics in reports(tmp_path)] == [cpus], said


def test_without_its_zygote_a_study_goes_on(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "kill").touch()
    process = start("--concurrent", "1")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert [event["cause"] for event in events(tmp_path, "restart")] == ["crash"]
    assert [metrics["forked"] for metrics in reports(tmp_path)] == [False] * 4


def test_a_zygote_ends_with_its_driver_however_that_ends(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    process = start("--concurrent", "1")
    wait_until(lambda: bool(reports(tmp_path)), 120)
    (metrics,) = reports(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: gone(metrics["parent"]), 10)
    wait_until(lambda: gone(metrics["process"]), 60)  # Ray's own pace
