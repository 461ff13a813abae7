"""Samples per second of the trainable `mnist` against a plain DataLoader and ToTensor loop.

    python tests/bench/samples_per_s.py --data data --threads 1

The same network, optimizer, device, batch size and threads; the two take turns in one process, and
the medians of the rounds are compared, so that a machine shared with others slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from siftune.data import ensure_mnist
from siftune.trainables import mnist
from siftune.trainables.loop import default_device

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
    """Median samples per second of either loop, and the ratio. One round more warms both up."""
    dataset = Subset(
        datasets.MNIST(
            str(data),
            train=True,
            transform=transforms.Compose(
                [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
            ),
        ),
        range(images * 5 // 6),  # as many as are trained on of a part of that size
    )
    ours, plain = [], []
    for _ in range(rounds + 1):
        ours.append(_ours(data, images))
        plain.append(_plain(dataset, workers))
    siftune, loader = statistics.median(ours[1:]), statistics.median(plain[1:])
    return {"siftune": siftune, "plain": loader, "ratio": siftune / loader}


def _ours(data: Path, images: int) -> float:
    metrics, _ = next(mnist.epochs(CONFIG, start=None, seed=1, data=data, images=images))
    return metrics["samples_per_s"]


def _plain(dataset: Subset, workers: int) -> float:
    """The loop of most tutorials: one epoch's samples per second."""
    device = default_device()
    model = mnist.build_model(CONFIG).to(device)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(
        model.parameters(), lr=CONFIG["lr"], weight_decay=CONFIG["weight_decay"]
    )
    loader = DataLoader(dataset, CONFIG["batch_size"], shuffle=True, num_workers=workers)
    loss_sum = 0.0
    begin = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
    return len(dataset) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6000, help="used, a sixth not trained on")
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
