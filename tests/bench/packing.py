"""Measures trials per hour on one device: one at a time, and in several processes at once.

    python -m tests.bench.packing --trials 4 --images 3000 --epochs 2

Each trial is trained in a process that has already trained another trial.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from siftune.space import Config
from siftune.trainables import mnist
from siftune.trainables.datasets.mnist import ensure_mnist
from siftune.trainables.training.loop import default_device
from tests.bench.samples_per_s import CONFIG

SEED = 1
_PATIENCE_S = 3600.0


def measure(
    data: Path, *, trials: int = 8, images: int = 60_000, epochs: int = 3, threads: int = 1
) -> dict[str, float]:
    """Returns the trials per hour of both ways, and their ratio."""
    configs = [CONFIG | {"lr": 1e-3 / (i + 1), "epochs": epochs} for i in range(trials)]
    alone = _trials_per_hour([configs], data, images, threads)
    beside = _trials_per_hour([[config] for config in configs], data, images, threads)
    return {"alone": alone, "beside": beside, "ratio": beside / alone}


def _trials_per_hour(parts: list[list[Config]], data: Path, images: int, threads: int) -> float:
    """Trains the configs of each part one after another, with one process per part."""
    spawning = multiprocessing.get_context("spawn")
    barrier = spawning.Barrier(len(parts) + 1)
    processes = [
        spawning.Process(target=_work, args=(part, data, images, threads, barrier), daemon=True)
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


def _work(configs: list[Config], data: Path, images: int, threads: int, barrier: Barrier) -> None:
    torch.set_num_threads(threads)
    try:
        _train(configs[0] | {"epochs": 1}, data, 1200)  # warms up
        barrier.wait(_PATIENCE_S)
        for config in configs:
            _train(config, data, images)
        barrier.wait(_PATIENCE_S)
    except BaseException:
        barrier.abort()  # so that no process waits for this one
        raise


def _train(config: Config, data: Path, images: int) -> None:
    """Trains a trial and saves its state after each epoch."""
    epochs = mnist.Mnist(seed=SEED, data=data, images=images).epochs(config, start=None)
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        for _, save in epochs:
            save(Path(directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=60_000, help="a sixth is for validation")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each trial, on the CPU")
    options: dict[str, Any] = vars(parser.parse_args())
    figures = measure(ensure_mnist(options.pop("data")), **options)
    print(default_device().type, *(f"{name}={value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
