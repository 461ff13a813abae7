"""The training loop of most tutorials: a DataLoader, ToTensor, and the loss after every batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from siftune.trainables import mnist
from siftune.trainables.training.loop import default_device


def images(data: Path, chosen: Sequence[int]) -> Subset:
    """Returns the images of MNIST's training set with these indices."""
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    return Subset(datasets.MNIST(str(data), transform=transforms.Compose(steps)), chosen)


def train(
    dataset: Subset, config: dict[str, Any], *, workers: int = 0
) -> tuple[nn.Module, list[float]]:
    """Trains the config's network with Adam; returns it and each epoch's samples per second."""
    device = default_device()
    model = mnist.build_model(config).to(device)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
    )
    loader = DataLoader(
        dataset,
        config["batch_size"],
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=workers > 0 and device.type == "cuda",
    )
    speeds = []
    for _ in range(config["epochs"]):
        loss_sum = 0.0
        begin = time.perf_counter()
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        speeds.append(len(dataset) / (time.perf_counter() - begin))
    return model, speeds
