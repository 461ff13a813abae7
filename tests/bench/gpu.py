"""Compares the trainable `mnist` with a plain DataLoader loop, on a GPU.

    make bench ARGS="gpu"
    PYTHONPATH=src python -m tests.bench.gpu --data data     # needs only PyTorch and torchvision

Trials of three epochs and loops take turns in one process, after a first round that warms it up.
The second command writes only results.json, not the tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

if not importlib.util.find_spec("ray"):  # mnist's space uses Ray Tune, but is not read here
    sys.modules["ray"] = MagicMock()

from siftune.trainables import mnist
from siftune.trainables.datasets.mnist import TRAINING_IMAGES, ensure_mnist
from tests.bench import accuracy, loader_loop
from tests.bench.results import Figures, keep
from tests.bench.samples_per_s import CONFIG

EPOCHS = 3
WORKERS = min(8, os.cpu_count() or 1)
# Chosen on a CPU, where five seeds reached 99.08 to 99.27 % in the second epoch, none in the first.
FAST = CONFIG | {
    "lr": 1e-2,
    "batch_size": 128,
    "optimizer": "adamw",
    "conv3_channels": 64,
    "kernel1": 5,
    "scheduler": "onecycle",
    "epochs": 2,
}


def measure(data: Path, *, rounds: int = 3, images: int = TRAINING_IMAGES) -> Figures:
    """Returns samples per second of the trials and the loops, the training time in seconds to 99 %
    accuracy on the validation set, and accuracies in per cent.

    A sixth of the images is used for validation. Figures are printed as they are measured, because
    all of them take several minutes.
    """
    figures: Figures = {}
    for part in (partial(_speeds, rounds=rounds), _to_99, _accuracies):
        for name, value in part(data, images).items():
            figures[name] = value
            print(f"{name} {value:.4g}", flush=True)
    return figures


def _speeds(data: Path, images: int, rounds: int) -> Figures:
    samples = images - images // 6
    dataset = loader_loop.images(data, range(samples))
    plain: dict[int, list[float]] = {0: [], WORKERS: []}
    trials: list[float] = []
    for _ in range(rounds + 1):
        for workers, speeds in plain.items():
            config = CONFIG | {"epochs": 2 if workers else 1}  # the first epoch starts the workers
            speeds.append(loader_loop.train(dataset, config, workers=workers)[1][-1])
        trial = _trial(data, CONFIG | {"epochs": EPOCHS}, seed=1, images=images)
        trials.append(sum(seconds for seconds, _ in trial))
    ours = EPOCHS * samples / statistics.median(trials[1:])
    loader, with_workers = (statistics.median(speeds[1:]) for speeds in plain.values())
    return {
        "siftune": ours,
        "plain": loader,
        "plain_workers": with_workers,
        "workers": WORKERS,
        "ratio": ours / loader,
        "ratio_workers": ours / with_workers,
    }


def _to_99(data: Path, images: int) -> Figures:
    """Returns the training time in seconds to 99 % accuracy on the validation set.

    The figures are the median of five seeds, the longest time, and how many seeds reached 99 %.
    """
    _trial(data, FAST, seed=0, images=images)  # warms up
    times = []
    for seed in accuracy.SEEDS:
        spent = 0.0
        for seconds, right in _trial(data, FAST, seed=seed, images=images):
            spent += seconds
            if right >= 0.99:
                times.append(spent)
                break
    return {
        "to_99_s": statistics.median(times) if times else math.inf,
        "to_99_longest_s": max(times, default=math.inf),
        "to_99_seeds": len(times),
    }


def _accuracies(data: Path, images: int) -> Figures:
    config = CONFIG | {"epochs": EPOCHS}
    plain = [accuracy.plain(data, config, seed, images, WORKERS) for seed in accuracy.SEEDS]
    ours = [accuracy.siftune(data, config, seed, images) for seed in accuracy.SEEDS]
    return accuracy.spread("plain_accuracy", plain) | accuracy.spread("siftune_accuracy", ours)


def _trial(
    data: Path, config: dict[str, Any], *, seed: int, images: int
) -> list[tuple[float, float]]:
    """Returns each epoch's training time in seconds and its validation accuracy."""
    epochs = mnist.Mnist(seed=seed, data=data, images=images).epochs(config, start=None)
    samples = images - images // 6
    return [(samples / m["samples_per_s"], m["val_accuracy"]) for m, _ in epochs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: not measured, because this machine has no GPU")
    load = os.getloadavg()[0]
    figures = measure(ensure_mnist(options.data))
    keep("gpu", figures, load)


if __name__ == "__main__":
    main()
