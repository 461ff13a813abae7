"""Trials per hour on one device: one at a time, in processes side by side, and as one program.

    python -m tests.bench.packing --trials 4 --images 3000 --epochs 2

Trials of one shape, each as Ray Tune would have it trained, in a process that has trained before.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from siftune.data import ensure_mnist
from siftune.trainables import lanes, mnist
from siftune.trainables.lanes import Room, Trial
from siftune.trainables.loop import default_device
from tests.bench.samples_per_s import CONFIG

SEED = 1
_PATIENCE_S = 3600.0


def measure(
    data: Path, *, trials: int = 8, images: int = 60_000, epochs: int = 3, threads: int = 1
) -> dict[str, float]:
    """Trials per hour of each way, and how many times as many they are fused as one at a time."""
    configs = [CONFIG | {"lr": 1e-3 / (i + 1), "epochs": epochs} for i in range(trials)]
    every = [Trial(config, None, SEED, data, images) for config in configs]
    each = [[trial] for trial in every]
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        room = Room(Path(directory), os.urandom(16))
        figures = {
            "alone": _trials_per_hour([every], None, threads),
            "beside": _trials_per_hour(each, None, threads),
            "fused": _trials_per_hour(each, room, threads),
        }
    ratios = {"beside_ratio": figures["beside"], "fused_ratio": figures["fused"]}
    return figures | {name: value / figures["alone"] for name, value in ratios.items()}


def _trials_per_hour(parts: list[list[Trial]], room: Room | None, threads: int) -> float:
    """Of a process for each part, which trains its trials one after the other."""
    spawning = multiprocessing.get_context("spawn")
    barrier = spawning.Barrier(len(parts) + 1)
    processes = [
        spawning.Process(target=_work, args=(part, room, threads, barrier), daemon=True)
        for part in parts
    ]
    for process in processes:
        process.start()
    barrier.wait(_PATIENCE_S)
    began = time.perf_counter()
    barrier.wait(_PATIENCE_S)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return 3600 * sum(map(len, parts)) / seconds


def _work(trials: list[Trial], room: Room | None, threads: int, barrier: Barrier) -> None:
    torch.set_num_threads(threads)
    warm = Trial(trials[0].config | {"epochs": 1}, None, SEED, trials[0].data, 1200)
    try:
        _train(warm, room)
        barrier.wait(_PATIENCE_S)
        for trial in trials:
            _train(trial, room)
        barrier.wait(_PATIENCE_S)
    except BaseException:
        barrier.abort()  # nobody is to wait for this one
        raise


def _train(trial: Trial, room: Room | None) -> None:
    """All of a trial, its state saved after each epoch."""
    if room:
        epochs = lanes.epochs(trial, room)
    else:
        epochs = mnist.epochs(
            trial.config, start=None, seed=trial.seed, data=trial.data, images=trial.images
        )
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        for _, save in epochs:
            save(Path(directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=60_000, help="used, a sixth not trained on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a trial, on the CPU")
    options: dict[str, Any] = vars(parser.parse_args())
    figures = measure(ensure_mnist(options.pop("data")), **options)
    print(default_device().type, *(f"{name}={value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
