"""The trainable `resnet18`: torchvision's ResNet-18 on a folder of images.

It starts from scratch or from given weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms.v2 import functional as transforms

from siftune.space import Config
from siftune.trainables.base import BuiltIn, Metrics, Save
from siftune.trainables.datasets import DataError
from siftune.trainables.mnist import schedule
from siftune.trainables.training import parallel
from siftune.trainables.training.loop import (
    Training,
    default_device,
    load_state,
    plain,
    reproducible,
    run_epochs,
)

# The default space.
SPACE: dict[str, Any] = {
    "lr": tune.loguniform(1e-4, 1e-1),
    "batch_size": tune.choice([32, 64, 128]),
    "optimizer": tune.choice(["sgd", "adamw"]),
    "weight_decay": tune.loguniform(1e-6, 1e-1),
    "label_smoothing": tune.uniform(0.0, 0.2),
    "scheduler": tune.choice(["none", "cosine", "onecycle"]),
    "flip": tune.choice([True, False]),
    "epochs": 10,
}

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, momentum=0.9, nesterov=True, fused=True),
    "adamw": partial(AdamW, fused=True),
}
LEAST_SIZE = 64
VALIDATION_BATCH = 256


@dataclass(frozen=True)
class Images:
    """Two disjoint parts of a folder: bytes [N, 3, size, size] and class numbers, int64 [N].

    `mean` and `deviation`, [3, 1, 1], are those of the training part's bytes. All tensors are on
    one device.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    mean: Tensor
    deviation: Tensor
    classes: int


class ResNet18(BuiltIn):
    """torchvision's ResNet-18 on a folder of images with one subfolder per class."""

    name = "resnet18"
    space = SPACE
    metric = ("val_accuracy", "max")

    def __init__(
        self, *, data: Path, seed: int, folder: str = "", size: int = 64, weights: str = ""
    ) -> None:
        """`folder`: the images. They are scaled and cropped to `size` × `size`.

        A fifth of them is used for validation. `weights`: a state dict of torchvision's resnet18 to
        start from. Its last layer is not used.
        """
        super().__init__(data=data, seed=seed)
        self._folder = folder
        self._size = size
        self._weights = weights

    def prepare(self) -> None:
        """Checks the images and the options. Raises DataError if one is missing or invalid."""
        if not self._folder:
            raise DataError(
                "resnet18 needs images: set --trainable-arg folder=DIR with one subfolder per class"
            )
        _open(Path(self._folder))
        if self._weights and not Path(self._weights).is_file():
            raise DataError(f"resnet18: the file of weights {self._weights} does not exist")
        # With smaller images the last layers would see a single pixel.
        if not isinstance(self._size, int) or self._size < LEAST_SIZE:
            raise DataError(f"resnet18: size must be at least {LEAST_SIZE}, got {self._size!r}")

    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics and a function that saves the state.

        Metrics: `loss`, `val_loss`, `val_accuracy` (0 to 1), `epoch`, `samples_per_s`. All images
        are decoded once per process and stay on the device. See `run_epochs` for `start`, for
        saving, and for the exceptions.
        """
        config = plain(config)
        device = default_device()
        images = self._load(device)
        with reproducible(self.seed, 0, device):
            model = _model(images.classes, self._weights).to(device)
        forward = parallel.wrap(model)
        optimizer = OPTIMIZERS[config["optimizer"]](
            model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
        )

        def batch_loss(batch: Tensor) -> Tensor:
            inputs = _normalised(images, images.train[0][batch])
            if config["flip"]:
                mirrored = torch.rand(len(inputs), device=device) < 0.5
                inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
            return functional.cross_entropy(
                forward(inputs),
                images.train[1][batch],
                reduction="sum",
                label_smoothing=config["label_smoothing"],
            )

        training = Training(
            config=config,
            model=model,
            optimizer=optimizer,
            batch_loss=batch_loss,
            validate=partial(_score, model, images),
            schedule=partial(schedule, config),
            samples=len(images.train[0]),
            batch_size=config["batch_size"],
            epochs=config["epochs"],
            device=device,
        )
        yield from run_epochs(training, start=start, seed=self.seed)

    def evaluate(self, directory: Path) -> Metrics:
        """Returns `val_loss` and `val_accuracy` of the weights in `directory`."""
        device = default_device()
        images = self._load(device)
        model = _model(images.classes, "").to(device)
        model.load_state_dict(load_state(directory, device)["model"])
        return _score(model, images)

    def _load(self, device: torch.device) -> Images:
        return _load(self._folder, self._size, self.seed, device)


def _model(classes: int, weights: str) -> nn.Module:
    model = resnet18(num_classes=classes)
    if weights:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
        missing, unknown = model.load_state_dict(kept, strict=False)
        if unknown or missing != ["fc.weight", "fc.bias"]:
            raise ValueError(f"{weights} does not hold weights of torchvision's resnet18")
    return model.to(memory_format=torch.channels_last)


def _normalised(images: Images, pixels: Tensor) -> Tensor:
    """Converts bytes [B, 3, S, S] to float32 with mean 0 and deviation 1 in each channel."""
    return (pixels.float() - images.mean) / images.deviation


@torch.inference_mode()
def _score(model: nn.Module, images: Images) -> Metrics:
    model.eval()
    loss = torch.zeros((), device=images.mean.device)
    correct = torch.zeros((), device=images.mean.device, dtype=torch.int64)
    pixels, labels = (parallel.part(whole).split(VALIDATION_BATCH) for whole in images.val)
    for batch, truth in zip(pixels, labels, strict=True):
        logits = model(_normalised(images, batch))
        loss += functional.cross_entropy(logits, truth, reduction="sum")
        correct += (logits.argmax(1) == truth).sum()
    count = len(images.val[0])
    return {
        "val_loss": parallel.total(loss).item() / count,
        "val_accuracy": parallel.total(correct).item() / count,
    }


def _open(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except OSError as error:
        raise DataError(f"need a folder of images, one subfolder per class: {error}") from None


@lru_cache(maxsize=1)
def _load(folder: str, size: int, seed: int, device: torch.device) -> Images:
    files = _open(Path(folder))
    pixels = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for number, (picture, _) in enumerate(files):
        scaled = transforms.resize(transforms.pil_to_tensor(picture), [size], antialias=True)
        pixels[number] = transforms.center_crop(scaled, [size, size])
    labels = torch.tensor(files.targets)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    val, train = order[: len(order) // 5], order[len(order) // 5 :]
    if not len(val):
        raise DataError(f"{folder}: {len(files)} images are too few, at least 5 are needed")
    mean, deviation = _statistics(pixels[train])
    return Images(
        train=(pixels[train].to(device), labels[train].to(device)),
        val=(pixels[val].to(device), labels[val].to(device)),
        mean=mean.view(3, 1, 1).to(device),
        deviation=deviation.view(3, 1, 1).to(device),
        classes=len(files.classes),
    )


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of each channel, [3].

    Does not convert all the images to floats at once.
    """
    values = torch.arange(256.0)
    shares = [torch.bincount(pixels[:, c].flatten(), minlength=256).float() for c in range(3)]
    share = torch.stack([counts / counts.sum() for counts in shares])
    mean = (share * values).sum(1)
    deviation = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return mean, deviation.clamp(min=1)
