"""Trials share GPUs as their memory allows: real studies on simulated GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
STAND_INS = HERE.parent / "stand_ins"

# The memory of a trial is given and not measured; the rest is real. A trial that needs more than
# its limit ends with torch's out-of-memory error.
TRAINABLE = """
import time
from pathlib import Path
import torch
from ray import tune
from siftune.trial import gpu_memory

SPACE = {"x": tune.choice(list(range(12))), "epochs": 3}
HERE = Path(__file__).parent
MEET = 2, 3, 4, 6
NEEDED = {"now": 0}
gpu_memory.used_mib = lambda: NEEDED["now"]


def train(config):
    NEEDED["now"] = 1024 * (30 if config["x"] == 5 else 8)
    limit = gpu_memory._limit_mib
    for epoch in range(config["epochs"]):
        if limit is not None and NEEDED["now"] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if config["x"] in MEET:  # so that they are there at once, however long processes take
            (HERE / f"begun{config['x']}").touch()
            while not all((HERE / f"begun{x}").exists() for x in MEET):
                time.sleep(0.05)
        time.sleep(0.5)
        tune.report({"loss": config["x"]})
"""


def run(directory: Path, *flags: str, gpus_per_trial: float) -> str:
    """Runs a study of the trainable on two GPUs with 80 GiB each; returns its output."""
    (directory / "mine.py").write_text(TRAINABLE)
    flags = ("--trainable", "mine.py:train", "--name", "s", "--searcher", "grid", *flags)
    flags += ("--scheduler", "none", "--cpus-per-trial", "1")
    command = [sys.executable, HERE / "claimed.py", "2", "80", "16", *flags]
    done = subprocess.run(
        [*command, "--gpus-per-trial", str(gpus_per_trial)],
        cwd=directory,
        env=os.environ | {"PATH": f"{STAND_INS}:{os.environ['PATH']}", "BUSY": "60"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def together(events: list[dict[str, Any]], gpu: str, *, until: float | None = None) -> int:
    """Returns the largest number of epochs that were trained on the GPU at the same time."""
    here = [e for e in events if e["event"] == "epoch" and e["gpu"] == gpu]
    spans = [(e["time"] - 0.9 * e["seconds"], e["time"], e["trial"]) for e in here]
    return max(
        len({trial for begin, end, trial in spans if begin <= at < end})
        for at, _, _ in spans
        if until is None or at < until
    )


@pytest.mark.timeout(300)
def test_trials_share_a_gpu_once_the_first_has_shown_what_it_takes(tmp_path: Path) -> None:
    output = run(tmp_path, gpus_per_trial=0.25)
    lines = (tmp_path / "results/s/trials.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert "up to 4 trials share a GPU: each GPU starts with one trial" in output
    assert "a trial uses 8.0 of a GPU's 80 GiB, so a GPU can run 4 trials at a time" in output
    epochs = [e for e in events if e["event"] == "epoch"]
    for gpu in ("0", "1"):
        assert together(events, gpu, until=epochs[0]["time"]) == 1
        assert together(events, gpu) <= 4
    assert max(together(events, gpu) for gpu in ("0", "1")) >= 2
    # The trial that needs more than its share is retried with a GPU of its own.
    (again,) = (e for e in events if e["event"] == "restart")
    assert again["cause"] == "memory"
    more = "a trial uses 30.0 of a GPU's 80 GiB, so a GPU can run 2 trials at a time, not 4"
    assert more in output
    its = [e for e in epochs if e["trial"] == again["trial"]]
    assert [e["gpu_mib"] for e in its] == [30 * 1024] * 3
    for mine in its:
        for other in epochs:
            if other["gpu"] == mine["gpu"] and other["trial"] != mine["trial"]:
                begin, end = other["time"] - 0.9 * other["seconds"], other["time"]
                assert end <= mine["time"] - 0.9 * mine["seconds"] or begin >= mine["time"]
    assert sum(e["event"] == "end" and e["state"] == "completed" for e in events) == 12
    summary = json.loads((tmp_path / "results/s/summary.json").read_text())
    assert (summary["gpus"], summary["gpu_utilisation"]) == (2, 0.6)


@pytest.mark.timeout(900)
def test_gpus_come_and_go_with_their_nodes() -> None:
    # Without the variables of the tests' Ray, whose certificate differs from that of this Ray.
    without = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SIFTUNE_"))}
    command = [sys.executable, HERE / "joining.py"]
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
