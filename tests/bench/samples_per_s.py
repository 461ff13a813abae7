"""Compares samples per second of the trainable `mnist` and of a plain DataLoader and ToTensor loop.

    python -m tests.bench.samples_per_s --data data --threads 1

Both use the same network, optimizer, device, batch size and threads. They take turns in one
process, so that other load on the machine slows both. The medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from siftune.trainables import mnist
from siftune.trainables.datasets.mnist import ensure_mnist
from siftune.trainables.training.loop import default_device
from tests.bench import loader_loop

CONFIG: dict[str, Any] = {
    "lr": 1e-3,
    "batch_size": 64,
    "optimizer": "adam",
    "weight_decay": 0.01,
    "conv1_channels": 16,
    "conv2_channels": 32,
    "conv3_channels": 32,
    "kernel1": 3,
    "kernel2": 3,
    "kernel3": 3,
    "activation": "relu",
    "dropout": 0.2,
    "fc_dim": 128,
    "scheduler": "none",
    "epochs": 1,
    "num_classes": 10,
}


def measure(
    data: Path, *, rounds: int = 5, images: int = 6000, workers: int = 0
) -> dict[str, float]:
    """Returns the median samples per second of both loops, and the ratio, after a warm-up round."""
    # As many images as siftune trains on: a sixth is for validation.
    dataset = loader_loop.images(data, range(images * 5 // 6))
    ours, plain = [], []
    for _ in range(rounds + 1):
        ours.append(_ours(data, images))
        plain.append(loader_loop.train(dataset, CONFIG, workers=workers)[1][0])
    siftune, loader = statistics.median(ours[1:]), statistics.median(plain[1:])
    return {"siftune": siftune, "plain": loader, "ratio": siftune / loader}


def _ours(data: Path, images: int) -> float:
    metrics, _ = next(mnist.Mnist(seed=1, data=data, images=images).epochs(CONFIG, start=None))
    return metrics["samples_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6000, help="a sixth is for validation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(
        ensure_mnist(options.data),
        rounds=options.rounds,
        images=options.images,
        workers=options.workers,
    )
    print(
        f"{default_device().type}, {options.threads} thread(s), batch {CONFIG['batch_size']}: "
        f"siftune {result['siftune']:.0f} samples/s, plain loop {result['plain']:.0f} samples/s, "
        f"ratio {result['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()
