"""Every benchmark, as ratios measured side by side in one run."""

import os
import platform
from pathlib import Path

import torch

from siftune.data import ensure_mnist
from tests.bench import on_cluster, overhead, samples_per_s, search


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    _show(
        "seconds that a trial costs beyond its training (64 trivial trials, 2 slots)",
        overhead.measure(),
    )
    _show("part of the time of 8 slots spent waiting for a proposal (64 trials)", search.measure())
    torch.set_num_threads(1)
    _show(
        "mnist samples per second on the CPU (1 thread, batch 64)",
        samples_per_s.measure(ensure_mnist(Path(os.environ.get("SIFTUNE_DATA", "data")))),
    )
    if os.geteuid() != 0:
        print("no jobs are measured: the virtual cluster needs root")
        return
    with on_cluster.bench() as jobs:
        _show("seconds from a job's start to its first epoch (4 nodes, 8 trials)", jobs.start())
        _show("seconds of trials that sleep, one on 1 GPU and eight on 8", jobs.scaling())


def _show(title: str, figures: dict[str, float]) -> None:
    print(title)
    print("  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
