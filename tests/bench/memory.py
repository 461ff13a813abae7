"""Measures the memory of a node with idle slots, and of each additional trial.

    python -m tests.bench.memory [SLOTS]

Uses real workers in a real Ray, and a trainable that imports torch. Memory is PSS: shared memory is
divided among the processes that share it.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRAINABLE = """
import time
import torch
from ray import tune
SPACE = {"x": tune.uniform(0, 1)}
def train(config):
    tune.report({"loss": 1})
    time.sleep(600)
"""


def measure(slots: int = 4) -> dict[str, float]:
    """Returns figures in MiB.

    They are: a node's worker and fork server with idle slots, and with a trial in each slot; one
    additional trial; and Ray's own processes.
    """
    from siftune.backend import environment
    from siftune.backend.connect import connect
    from siftune.machine import resources

    resources.nodes = lambda: [resources.Node(cpus=slots, gpus=0)]  # type: ignore[assignment]
    with (
        tempfile.TemporaryDirectory() as name,
        environment.prepared(),
        connect(),
    ):
        import ray

        from siftune.backend.slots import Workers
        from siftune.trainables import TrainableSpec
        from siftune.trial.messages import Begin, Setup

        here = Path(name)
        (here / "mine.py").write_text(TRAINABLE)
        trainable = TrainableSpec(name=f"{here}/mine.py:train", data=here)
        setup = Setup(trainable=trainable, study=here / "study", launched_in=here)
        (node,) = ray.nodes()
        worker = Workers().start(setup, node["NodeID"], gpus=0, slots=slots + 1)

        def begin(number: int) -> Any:
            return worker.begin.remote(f"{number}.0", Begin(trial=f"{number}", config={}), ())

        ray.get([begin(number) for number in range(slots)])
        running = _mib_of_workers()
        ray.get(begin(slots))
        one_more = _mib_of_workers() - running
        ray.get([worker.stop.remote(f"{number}.0") for number in range(slots + 1)])
        time.sleep(1)
        idle = _mib_of_workers()
        ray_mib = _mib("raylet", "gcs_server", "dashboard", "Agent")
    return {"idle": idle, "running": running, "one_more": one_more, "ray": ray_mib}


def _mib_of_workers() -> float:
    return _mib("ray::Worker", "multiprocessing.forkserver", "multiprocessing.resource_tracker")


def _mib(*names: str) -> float:
    """Returns the PSS of this process's descendants with one of `names` in their command."""
    total = 0.0
    for process in _below(os.getpid()):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if any(name in command for name in names):
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0]) / 1024
        except OSError:  # the process has ended
            continue
    return total


def _below(parent: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    descendants, left = [], [parent]
    while left:
        here = left.pop()
        children = [process for process, above in parents.items() if above == here]
        descendants += children
        left += children
    return descendants


if __name__ == "__main__":
    for name, value in measure(*map(int, sys.argv[1:])).items():
        print(f"{name}: {value:.0f} MiB")
