"""Measures accuracy on MNIST's test set: the trainable `mnist` and a plain DataLoader loop.

Both use the same configs, images and seeds.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from siftune.trainables import mnist
from siftune.trainables.datasets.mnist import TRAINING_IMAGES, load_mnist
from siftune.trainables.training.loop import default_device
from tests.bench import loader_loop
from tests.bench.results import Figures
from tests.bench.samples_per_s import CONFIG

SEEDS = range(1, 6)


def measure(data: Path, *, images: int = 12_000, epochs: int = 2) -> Figures:
    """Returns mean and standard deviation of both accuracies, in per cent.

    A sixth of the images is not used for training.
    """
    config = CONFIG | {"epochs": epochs}
    ours = [siftune(data, config, seed, images) for seed in SEEDS]
    theirs = [plain(data, config, seed, images) for seed in SEEDS]
    return spread("siftune", ours) | spread("plain", theirs)


def spread(name: str, values: list[float]) -> Figures:
    return {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values)}


def siftune(data: Path, config: dict[str, Any], seed: int, images: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        for metrics, save in mnist.Mnist(seed=seed, data=data, images=images).epochs(
            config, start=None
        ):
            if metrics["epoch"] == config["epochs"]:
                save(Path(directory))
        scores = mnist.Mnist(seed=seed, data=data, images=images).evaluate(Path(directory))
    return 100 * scores["test_accuracy"]


def plain(data: Path, config: dict[str, Any], seed: int, images: int, workers: int = 0) -> float:
    # The same images that load_mnist chooses for training.
    order = torch.randperm(TRAINING_IMAGES, generator=torch.Generator().manual_seed(seed))
    dataset = loader_loop.images(data, order[images // 6 : images].tolist())
    torch.manual_seed(seed)
    model, _ = loader_loop.train(dataset, config, workers=workers)
    data_set = load_mnist(data, seed=seed, device=default_device(), images=images)
    return 100 * mnist.score(model, data_set.test_images, data_set.test_labels)[1]
