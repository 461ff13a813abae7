"""A study with many slots, as on 200 nodes with 4 GPUs each, on one machine.

    python -m tests.bench.scale SLOTS [SECONDS]

What is real: the driver, that is study, journal, searcher, scheduler and Ray Tune's loop, and Ray
with every call through it. What is simulated: 800 processes do not fit on one machine, so the
trials, which sleep, live together in two of Ray's asynchronous actors.
"""

import asyncio
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.table import SLOTS

EPOCH_S = 10.0
HOSTS = 2
TRAINABLE = """
from ray import tune
SPACE = {"lr": tune.loguniform(1e-5, 1e-1), "dropout": tune.uniform(0, 0.5), "epochs": 9}
def train(config): ...
"""


def measure(seconds: float = 60) -> dict[str, float]:
    """For each number of slots: reports a second, the seconds from a report to its decision (median
    and the slowest of a hundred), the driver's CPU (1: one core) and its memory in MiB, and
    operations on the study's directory a minute."""
    figures = {}
    for slots in SLOTS:
        for name, value in _apart(slots, seconds).items():
            figures[f"{name}_{slots}"] = value
        figures[f"file_operations_per_minute_{slots}"] = _file_operations(slots, seconds)
    return figures


def _apart(slots: int, seconds: float, *before: str) -> dict[str, float]:
    """A run in a process of its own."""
    command = [*before, sys.executable, "-m", "tests.bench.scale", str(slots), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _file_operations(slots: int, seconds: float) -> float:
    """System calls that name a file of the study's directory or write to one, per minute of a run.

    It is a run of its own: strace costs time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        calls = Path(scratch) / "calls"
        trace = ["strace", "-f", "-y", "-qq", "-o", str(calls)]
        trace += ["-e", "trace=%file,write,fsync,fdatasync,ftruncate,getdents64"]
        _apart(slots, seconds, *trace)
        with calls.open(errors="replace") as lines:
            count = sum("siftune-scale" in line for line in lines)
    return count / (seconds / 60)


def run(slots: int, seconds: float) -> dict[str, float]:
    from siftune import cluster, tuner
    from siftune.launch import launch
    from siftune.study import read

    cluster.nodes = lambda: [cluster.Node(cpus=slots, gpus=0)]  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="siftune-scale") as name, cluster.connect():
        scratch = Path(name)
        hosts = _hosts()
        tuner._Actors.get = lambda self, trainable: _ActorClass(hosts)  # type: ignore[method-assign]
        (scratch / "sleeper.py").write_text(TRAINABLE)
        layer = {"name": "study", "trainable": f"{scratch / 'sleeper.py'}:train", "trials": 10**6}
        layer |= {"searcher": "optuna", "scheduler": "asha", "time_limit_s": seconds}
        before = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            launch(read([layer], {}), data=scratch, results=scratch)
        cpu_s = time.process_time() - before
        summary = json.loads((scratch / "study" / "summary.json").read_text())
        lines = (scratch / "study" / "trials.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    middle = (found[0]["time"] + found[-1]["time"]) / 2  # the start is over
    epochs = [e for e in found if e["event"] == "epoch" and e["time"] > middle]
    delays = sorted(event["time"] - event["metrics"]["sent"] for event in epochs)
    return {
        "reports_per_s": len(epochs) / (found[-1]["time"] - middle),
        "delay_s": delays[len(delays) // 2],
        "delay_p99_s": delays[len(delays) * 99 // 100],
        "driver_cpus": cpu_s / summary["wall_s"],
        "driver_mib": _most_mib(),
    }


def _most_mib() -> float:
    """The most memory that this process had; getrusage counts its parent's too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


# ── In place of Ray's actors ────────────────────────────────────────────────────────────────────


def _hosts() -> list[Any]:
    import ray

    host = ray.remote(_Host).options(num_cpus=0, max_concurrency=10_000)
    return [host.remote() for _ in range(HOSTS)]


class _Host:
    """Many trials, each of which sleeps and reports as siftune's do."""

    def __init__(self) -> None:
        self._trials: dict[int, tuple[dict[str, Any], int]] = {}

    async def call(self, key: int, method: str, *words: Any, **more: Any) -> Any:
        if method in ("make", "begin", "reset"):
            self._trials[key] = (words[0], 0)
        if method in ("begin", "train"):
            return await self._train(key)
        return True

    async def _train(self, key: int) -> dict[str, Any]:
        from siftune.tuner import _REPORT, _Report

        config, epoch = self._trials[key]
        if epoch == config["epochs"]:
            return {"__duplicate__": True}
        # Not all at once.
        await asyncio.sleep(EPOCH_S * (0.5 + (key * 0.618 + epoch * 0.414) % 1))
        self._trials[key] = (config, epoch + 1)
        loss = abs(config["lr"] - 1e-3) + 1 / (epoch + 1)
        report = _Report({"loss": loss, "sent": time.time()}, "node", gpu=None, gpu_mib=None)
        result = {"loss": loss, "done": False, "training_iteration": epoch + 1, _REPORT: report}
        result |= {"time_this_iter_s": EPOCH_S, "should_checkpoint": False, "pid": os.getpid()}
        return result | {"hostname": "node", "node_ip": "127.0.0.1", "config": config}


class _ActorClass:
    """What Ray Tune takes for an actor class."""

    def __init__(self, hosts: list[Any]) -> None:
        self._hosts = hosts
        self._made = 0

    @property
    def __class__(self) -> type:  # type: ignore[override]
        import ray

        return ray.actor.ActorClass

    def options(self, **options: Any) -> "_ActorClass":
        return self

    _keys = iter(range(10**9))

    def remote(self, config: dict[str, Any], storage: Any) -> "_Actor":
        key = next(self._keys)
        actor = _Actor(self._hosts[key % len(self._hosts)], key)
        actor.make.remote(config)
        return actor


class _Actor:
    """A handle: `actor.train.remote()`."""

    def __init__(self, host: Any, key: int) -> None:
        self._host, self._key = host, key

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self._host, self._key, method)

    def _ready(self) -> "_Method":
        return _Method(self._host, self._key, "ready")

    __ray_ready__ = property(_ready)
    __ray_terminate__ = property(_ready)


class _Method:
    def __init__(self, host: Any, key: int, name: str) -> None:
        self._host, self._key, self._name = host, key, name

    def remote(self, *words: Any, **more: Any) -> Any:
        return self._host.call.remote(self._key, self._name, *words, **more)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]))))
    else:
        for name, value in measure().items():
            print(f"{name}: {value:.4g}")
