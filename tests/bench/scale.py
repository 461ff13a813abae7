"""Simulates a study with many slots, as on 200 nodes with 4 GPUs each, on one machine.

    python -m tests.bench.scale SLOTS [SECONDS]

The driver is real, with study, journal, searcher, scheduler and loop, and so are Ray and all calls
through it. The trials are simulated, because 800 processes do not fit on one machine: they only
sleep, and all run in two asynchronous Ray actors.
"""

import asyncio
import contextlib
import io
import json
import math
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
    """Returns the figures for each number of slots.

    They are: reports per second, seconds from a report to its decision (median and 99th
    percentile), the driver's CPU use (1: one core) and its memory in MiB, and file operations in
    the study directory per minute.
    """
    figures = {}
    for slots in SLOTS:
        for name, value in _apart(slots, seconds).items():
            figures[f"{name}_{slots}"] = value
        figures[f"file_operations_per_minute_{slots}"] = _file_operations(slots, seconds)
    return figures


def _apart(slots: int, seconds: float, *before: str) -> dict[str, float]:
    """Runs a study in its own process and returns its figures."""
    command = [*before, sys.executable, "-m", "tests.bench.scale", str(slots), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _file_operations(slots: int, seconds: float) -> float:
    """Returns the system calls per minute that name or write to a file in the study directory.

    Uses a separate run, because strace slows the driver down.
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
    from siftune.backend import environment
    from siftune.backend.connect import connect
    from siftune.machine import resources

    resources.nodes = lambda: [resources.Node(cpus=slots, gpus=0)]  # type: ignore[assignment]
    with (
        tempfile.TemporaryDirectory(prefix="siftune-scale") as name,
        environment.prepared(),
        connect(),
    ):
        from siftune.driver import loop
        from siftune.driver.launch import launch
        from siftune.study.reading import read

        scratch = Path(name)
        loop.Workers = _workers  # type: ignore[assignment, misc]
        (scratch / "sleeper.py").write_text(TRAINABLE)
        layer = {"name": "study", "trainable": f"{scratch / 'sleeper.py'}:train", "trials": 10**6}
        layer |= {"searcher": "optuna", "scheduler": "asha", "time_limit_s": seconds}
        before = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            launch(read([layer], {}), data=scratch, results=scratch)
        cpu_s = time.process_time() - before
        summary = json.loads((scratch / "study" / "summary.json").read_text())
        lines = (scratch / "study" / "trials.jsonl").read_text().splitlines()
    journal = [json.loads(line) for line in lines]
    middle = (journal[0]["time"] + journal[-1]["time"]) / 2  # after the start
    epochs = [e for e in journal if e["event"] == "epoch" and e["time"] > middle]
    delays = sorted(event["time"] - event["metrics"]["sent"] for event in epochs)
    return {
        "reports_per_s": len(epochs) / (journal[-1]["time"] - middle),
        "delay_s": delays[len(delays) // 2],
        "delay_p99_s": delays[len(delays) * 99 // 100],
        "driver_cpus": cpu_s / summary["wall_s"],
        "driver_mib": _most_mib(),
    }


def _most_mib() -> float:
    """Returns the peak memory of this process in MiB. getrusage would include the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


# ── Simulated workers ───────────────────────────────────────────────────────────────────────────


def _workers() -> Any:
    """Starts workers whose trials run in a few asynchronous actors."""
    import ray

    host = ray.remote(_Host).options(num_cpus=0, max_concurrency=10_000)
    hosts = [host.remote() for _ in range(HOSTS)]

    class Workers:
        def start(self, setup: Any, node_id: str, *, gpus: int, slots: int) -> "_Worker":
            return _Worker(hosts, node_id)

        def kill(self, worker: Any) -> None: ...

    return Workers()


class _Host:
    """Trials that sleep and report."""

    def __init__(self) -> None:
        self._trials: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}

    async def place(self, node_id: str) -> Any:
        from siftune.backend.worker import Place

        return Place("node", node_id, ())

    async def begin(self, key: str, begin: Any, gpus: Any, first: Any) -> Any:
        self._trials[key], self._epochs[key] = begin, begin.epoch
        return await self._train(key), None

    async def next(self, key: str, answer: Any) -> Any:
        from siftune.trial.messages import Answer, End

        return End() if answer is Answer.STOP else await self._train(key)

    async def stop(self, key: str) -> None: ...

    async def _train(self, key: str) -> Any:
        from siftune.trial.messages import End, Report

        config, epoch = self._trials[key].config, self._epochs[key]
        if epoch == config["epochs"]:
            return End()
        # Spreads the reports of different trials over time.
        await asyncio.sleep(EPOCH_S * (0.5 + (int(key[:6], 16) * 0.618 + epoch * 0.414) % 1))
        self._epochs[key] = epoch + 1
        loss = abs(config["lr"] - 1e-3) + 1 / (epoch + 1)
        metrics = {"loss": loss, "sent": time.time()}
        return Report(epoch=epoch + 1, metrics=metrics, seconds=EPOCH_S)


class _Worker:
    """A worker's handle: passes `worker.next.remote(key, answer)` on to the host of that run."""

    def __init__(self, hosts: list[Any], node_id: str) -> None:
        self._hosts, self._node_id = hosts, node_id

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self._hosts, self._node_id, method)


class _Method:
    def __init__(self, hosts: list[Any], node_id: str, name: str) -> None:
        self._hosts, self._node_id, self._name = hosts, node_id, name

    def remote(self, *words: Any) -> Any:
        if self._name == "place":
            return self._hosts[0].place.remote(self._node_id)
        host = self._hosts[int(words[0][:6], 16) % len(self._hosts)]
        return getattr(host, self._name).remote(*words)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]))))
    else:
        for name, value in measure().items():
            print(f"{name}: {value:.4g}")
