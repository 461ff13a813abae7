"""The trainable `mnist` on a GPU, against a plain DataLoader loop and against itself.

    make bench ARGS="gpu"
    PYTHONPATH=src python -m tests.bench.gpu --data data     # with PyTorch and torchvision alone

Whole trials of three epochs take turns in one process, which an earlier one has warmed up; to
record the steps is a part of each trial's time. The second form writes results.json only.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch

if not importlib.util.find_spec("ray"):  # mnist's space is in Ray Tune's words, and not read here
    sys.modules["ray"] = MagicMock()

from siftune.data import TRAINING_IMAGES, ensure_mnist
from siftune.trainables import loop, mnist
from tests.bench import accuracy, loader_loop
from tests.bench.results import Figures, keep
from tests.bench.samples_per_s import CONFIG

EPOCHS = 3
WORKERS = min(8, os.cpu_count() or 1)
# Found on a CPU, where five seeds came to 99.08 to 99.27 % in the second epoch, none in the first.
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
    """Samples per second of trials and of the loops beside them, what a step takes, seconds of
    training to 99 % of the validation set, and accuracies in per cent. A sixth of the images is
    for validation."""
    figures = _speeds(data, images, rounds) | _to_99(data, images) | _accuracies(data, images)
    with _as(bf16=True):
        return figures | {f"bf16_{name}": value for name, value in _to_99(data, images).items()}


def _speeds(data: Path, images: int, rounds: int) -> Figures:
    samples = images - images // 6
    dataset = loader_loop.images(data, range(samples))
    plain: dict[int, list[float]] = {0: [], WORKERS: []}
    seconds: dict[tuple[bool, bool], list[list[float]]] = {
        (recorded, bf16): [] for recorded in (True, False) for bf16 in (False, True)
    }
    for _ in range(rounds + 1):
        for workers, speeds in plain.items():
            config = CONFIG | {"epochs": 2 if workers else 1}  # in the first, processes are started
            speeds.append(loader_loop.train(dataset, config, workers=workers)[1][-1])
        for (recorded, bf16), trials in seconds.items():
            with _as(recorded=recorded, bf16=bf16):
                trial = _trial(data, CONFIG | {"epochs": EPOCHS}, seed=1, images=images)
                trials.append([spent for spent, _ in trial])

    def samples_per_s(recorded: bool, bf16: bool = False) -> float:
        totals = [sum(trial) for trial in seconds[recorded, bf16][1:]]
        return EPOCHS * samples / statistics.median(totals)

    def step_s(recorded: bool) -> float:  # of the last epoch, with nothing to set up
        last = [trial[-1] for trial in seconds[recorded, False][1:]]
        return statistics.median(last) / math.ceil(samples / CONFIG["batch_size"])

    loader, with_workers = (statistics.median(speeds[1:]) for speeds in plain.values())
    to_record = statistics.median(t[0] - t[-1] for t in seconds[True, False][1:])
    ours = samples_per_s(True)
    return {
        "siftune": ours,
        "unrecorded": samples_per_s(False),
        "bf16": samples_per_s(True, bf16=True),
        "bf16_unrecorded": samples_per_s(False, bf16=True),
        "plain": loader,
        "plain_workers": with_workers,
        "workers": WORKERS,
        "ratio": ours / loader,
        "ratio_workers": ours / with_workers,
        "ratio_unrecorded": ours / samples_per_s(False),
        "ratio_bf16": ours / samples_per_s(True, bf16=True),
        "step_s": step_s(True),
        "unrecorded_step_s": step_s(False),
        "to_record_s": to_record,
        "steps_worth_recording": to_record / (step_s(False) - step_s(True)),
    }


def _to_99(data: Path, images: int) -> Figures:
    """Seconds of training until 99 % of the validation set is right: the median of five seeds, the
    longest, and how many of the seeds came to it."""
    _trial(data, FAST, seed=0, images=images)  # warms up
    found = []
    for seed in accuracy.SEEDS:
        spent = 0.0
        for seconds, right in _trial(data, FAST, seed=seed, images=images):
            spent += seconds
            if right >= 0.99:
                found.append(spent)
                break
    return {
        "to_99_s": statistics.median(found) if found else math.inf,
        "to_99_longest_s": max(found, default=math.inf),
        "to_99_seeds": len(found),
    }


def _accuracies(data: Path, images: int) -> Figures:
    config = CONFIG | {"epochs": EPOCHS}
    plain = [accuracy.plain(data, config, seed, images, WORKERS) for seed in accuracy.SEEDS]
    figures = accuracy.spread("plain_accuracy", plain)
    for name, bf16 in (("siftune_accuracy", False), ("bf16_accuracy", True)):
        with _as(bf16=bf16):
            ours = [accuracy.siftune(data, config, seed, images) for seed in accuracy.SEEDS]
        figures |= accuracy.spread(name, ours)
    return figures


def _trial(
    data: Path, config: dict[str, Any], *, seed: int, images: int
) -> list[tuple[float, float]]:
    """Seconds of training and validation accuracy of each epoch."""
    epochs = mnist.epochs(config, start=None, seed=seed, data=data, images=images)
    samples = images - images // 6
    return [(samples / m["samples_per_s"], m["val_accuracy"]) for m, _ in epochs]


@contextmanager
def _as(*, recorded: bool = True, bf16: bool = False) -> Iterator[None]:
    least = loop.STEPS_WORTH_RECORDING if recorded else math.inf
    with patch.object(loop, "STEPS_WORTH_RECORDING", least), patch.object(mnist, "BF16", bf16):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: not measured, no GPU was at hand")
    load = os.getloadavg()[0]
    figures = measure(ensure_mnist(options.data))
    for name, value in figures.items():
        print(f"{name} {value:.4g}")
    keep("gpu", figures, load)


if __name__ == "__main__":
    main()
