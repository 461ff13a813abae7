"""The trainable `mnist`: a convolutional network whose every part is built from the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from siftune.space import Config, when
from siftune.trainables.base import BuiltIn, Metrics, Save
from siftune.trainables.datasets.mnist import Mnist as MnistData
from siftune.trainables.datasets.mnist import ensure_mnist, load_mnist
from siftune.trainables.training import parallel
from siftune.trainables.training.loop import (
    Training,
    default_device,
    load_state,
    plain,
    reproducible,
    run_epochs,
)

# The default space. Edit it here, or override it with --set, --space or --config.
SPACE: dict[str, Any] = {
    "lr": tune.loguniform(1e-5, 5e-3),
    "batch_size": tune.choice([16, 32, 64, 128]),
    "optimizer": tune.choice(["adam", "sgd", "adamw"]),
    "weight_decay": tune.uniform(0.0, 0.1),
    "conv1_channels": tune.choice([8, 16, 32, 64]),
    "conv2_channels": tune.choice([16, 32, 64, 128]),
    "conv3_channels": tune.choice([0, 16, 32, 64, 128]),
    "kernel1": tune.choice([3, 5, 7]),
    "kernel2": tune.choice([3, 5, 7]),
    "kernel3": when("conv3_channels > 0", tune.choice([3, 5, 7])),
    "activation": tune.choice(["relu", "gelu", "silu"]),
    "dropout": tune.uniform(0.0, 0.5),
    "fc_dim": tune.choice([64, 128, 256, 512]),
    "scheduler": tune.choice(["none", "cosine", "step", "onecycle"]),
    "step_size": when("scheduler == 'step'", tune.choice([10, 20, 30])),
    "gamma": when("scheduler == 'step'", tune.uniform(0.1, 0.9)),
    "epochs": tune.choice([2, 3, 5]),
    "num_classes": 10,
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
# fused=True updates all parameters in one kernel, on the CPU too. Without momentum, SGD learns
# little in a few epochs.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(Adam, fused=True),
    "sgd": partial(SGD, momentum=0.9, fused=True),
    "adamw": partial(AdamW, fused=True),
}

PIXEL_MEAN, PIXEL_STD = 255 * 0.1307, 255 * 0.3081  # of the training set's bytes
CLASSES = 10
VALIDATION_BATCH = 500


class Mnist(BuiltIn):
    """A convolutional network on MNIST: float32 [B, 1, 28, 28] to logits [B, num_classes]."""

    name = "mnist"
    space = SPACE
    metric = ("val_accuracy", "max")

    def __init__(self, *, data: Path, seed: int, images: int | None = None) -> None:
        """`images`: how many of the 60,000 training images to use [all].

        A sixth of them is used for validation.
        """
        super().__init__(data=data, seed=seed)
        self._images = images

    def prepare(self) -> None:
        """Fetches MNIST to the directory of the data sets. Raises DataError if it cannot."""
        ensure_mnist(self.data)

    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics and a function that saves the state.

        Metrics: `loss`, `val_loss`, `val_accuracy` (0 to 1), `epoch`, `samples_per_s`. See
        `run_epochs` for `start` and saving. Raises ValueError for an invalid config or data set,
        and FloatingPointError if training diverges.
        """
        config = plain(config)
        _check(config)
        device = default_device()
        mnist = self._load(device)
        with reproducible(self.seed, 0, device):
            model = build_model(config).to(device)
        forward = parallel.wrap(model)
        optimizer = OPTIMIZERS[config["optimizer"]](
            model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
        )

        def batch_loss(batch: Tensor) -> Tensor:
            logits = forward(normalised(mnist.train_images[batch]))
            return functional.cross_entropy(logits, mnist.train_labels[batch], reduction="sum")

        def validate() -> Metrics:
            loss, accuracy = score(model, mnist.val_images, mnist.val_labels)
            return {"val_loss": loss, "val_accuracy": accuracy}

        training = Training(
            config=config,
            model=model,
            optimizer=optimizer,
            batch_loss=batch_loss,
            validate=validate,
            schedule=partial(schedule, config),
            samples=len(mnist.train_images),
            batch_size=config["batch_size"],
            epochs=config["epochs"],
            device=device,
        )
        yield from run_epochs(training, start=start, seed=self.seed)

    def evaluate(self, directory: Path) -> Metrics:
        """Returns `val_loss`, `val_accuracy`, `test_loss`, `test_accuracy` of saved weights.

        With the seed and `images` used for training, the validation metrics equal those reported
        during training.
        """
        device = default_device()
        mnist = self._load(device)
        state = load_state(directory, device)
        model = build_model(state["config"]).to(device)
        model.load_state_dict(state["model"])
        val_loss, val_accuracy = score(model, mnist.val_images, mnist.val_labels)
        test_loss, test_accuracy = score(model, mnist.test_images, mnist.test_labels)
        return {
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }

    def _load(self, device: torch.device) -> MnistData:
        return load_mnist(self.data, seed=self.seed, device=device, images=self._images)


def build_model(config: dict[str, Any]) -> nn.Sequential:
    """Returns the network: float32 [B, 1, 28, 28] to logits [B, num_classes].

    A convolutional layer with 0 channels is omitted.
    """
    activation = ACTIVATIONS[config["activation"]]
    layers: list[nn.Module] = []
    channels, side = 1, 28
    for number in (1, 2, 3):
        width = config[f"conv{number}_channels"]
        if width == 0:
            continue
        kernel = config[f"kernel{number}"]
        layers += [
            nn.Conv2d(channels, width, kernel, padding=kernel // 2),
            nn.BatchNorm2d(width),
            activation(),
            nn.MaxPool2d(2),
        ]
        channels, side = width, (side + 2 * (kernel // 2) - kernel + 1) // 2
    model = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(config["dropout"]),
        nn.Linear(channels * side * side, config["fc_dim"]),
        activation(),
        nn.Linear(config["fc_dim"], config["num_classes"]),
    )
    # The CPU's kernels are 1.3 to 1.5 times as fast in this layout. (torch's stubs lack it.)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def normalised(images: Tensor) -> Tensor:
    """Converts bytes [B, 28, 28] to float32 [B, 1, 28, 28] with mean 0 and deviation 1."""
    return (images.unsqueeze(1) - PIXEL_MEAN).div_(PIXEL_STD)


@torch.inference_mode()
def score(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Returns mean loss and accuracy (0 to 1) over all images. Each process evaluates a part."""
    count = len(images)
    images, labels = parallel.part(images), parallel.part(labels)
    model.eval()
    loss = torch.zeros((), device=images.device)
    correct = torch.zeros((), device=images.device, dtype=torch.int64)
    for batch, truth in zip(
        images.split(VALIDATION_BATCH), labels.split(VALIDATION_BATCH), strict=True
    ):
        logits = model(normalised(batch))
        loss += functional.cross_entropy(logits, truth, reduction="sum")
        correct += (logits.argmax(1) == truth).sum()
    return parallel.total(loss).item() / count, parallel.total(correct).item() / count


def schedule(config: dict[str, Any], optimizer: Optimizer, steps: int) -> LRScheduler:
    """Returns the learning rate schedule for `steps` training steps.

    none: `lr`. cosine: per epoch, from `lr` towards 0. onecycle: per step, up to `lr` and down
    again; this also sets the momentum. step: multiplied by `gamma` after every `step_size` per
    cent of the training steps, because a step size of 10 epochs would have no effect in 5 epochs.
    """
    if config["scheduler"] == "onecycle":
        return OneCycleLR(optimizer, max_lr=config["lr"], total_steps=steps)

    def factor(step: int) -> float:
        match config["scheduler"]:
            case "cosine":
                epoch = step * config["epochs"] // steps
                return (1 + math.cos(math.pi * epoch / config["epochs"])) / 2
            case "step":
                return config["gamma"] ** (100 * step // (steps * config["step_size"]))
        return 1.0

    return LambdaLR(optimizer, factor)


def _check(config: dict[str, Any]) -> None:
    """Raises ValueError with all mistakes of the config. Inactive parameters may be absent."""
    needed = [name for name in SPACE if name not in ("kernel3", "step_size", "gamma")]
    needed += ["kernel3"] if config.get("conv3_channels") else []
    needed += ["step_size", "gamma"] if config.get("scheduler") == "step" else []
    mistakes = [f"{name} is missing" for name in needed if name not in config]
    for name, known in (
        ("optimizer", list(OPTIMIZERS)),
        ("activation", list(ACTIVATIONS)),
        ("scheduler", ["none", "cosine", "step", "onecycle"]),
    ):
        if name in config and config[name] not in known:
            mistakes.append(f"{name} must be one of {', '.join(known)}, got {config[name]!r}")
    # A label beyond the last class fails an assertion on the GPU, which ends the whole process.
    if config.get("num_classes", CLASSES) < CLASSES:
        mistakes.append(f"num_classes must be at least {CLASSES}, got {config['num_classes']}")
    if mistakes:
        raise ValueError("mnist's config: " + "; ".join(mistakes))
