"""Tasks with a known optimum: functions, and functions with learning curves.

No task trains a model. The learning curves are modelled: the loss falls exponentially to the value
of the function, at a rate that depends on the config, so that curves cross; and it is noisy.
"""

import itertools
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from siftune.space import Config

EPOCHS = 27


@dataclass(frozen=True)
class Task:
    """`loss`: the loss of a config after all epochs, None for a failure. `minimum`: its minimum.

    `speed`: 0 to 1, how fast a config learns; None if a trial reports once. `cost`: simulated
    seconds of an epoch. `apart`: not looked at while searchers were improved.
    """

    name: str
    space: dict[str, Any]
    loss: Callable[[Config], float | None]
    minimum: float
    speed: Callable[[Config], float] | None = None
    cost: Callable[[Config], float] = lambda config: 60.0
    apart: bool = False

    @property
    def epochs(self) -> int:
        return EPOCHS if self.speed else 1

    def curve(self, config: Config) -> list[float] | None:
        """Returns the loss after each epoch, the same for the same config; None for a failure."""
        loss = self.loss(config)
        if loss is None or self.speed is None:
            return None if loss is None else [loss]
        rng = np.random.default_rng(zlib.crc32(json.dumps(config, sort_keys=True).encode()))
        epochs = np.arange(1, EPOCHS + 1)
        curve = loss + np.exp(-epochs / (1.5 + 8 * (1 - self.speed(config))))
        return [float(y) for y in curve + rng.normal(0, 0.01, EPOCHS)]


_A = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14]])
_A = np.vstack([_A, [[3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]])
_P = [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991]]
_P += [[2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
_HARTMANN = {
    "a": "loguniform(1e-5, 1e-1)",
    "b": "uniform(0, 1)",
    "c": "uniform(0, 1)",
    "d": "loguniform(1e-4, 1e-1)",
    "e": "uniform(0, 1)",
    "f": "uniform(0, 1)",
    "kind": "choice(['u', 'v', 'w'])",
}


def hartmann(config: Config) -> float:
    """Hartmann's function of six variables, two of them on a log scale, and a category."""
    x = [_log(config["a"], 1e-5, 1e-1), config["b"], config["c"]]
    x += [_log(config["d"], 1e-4, 1e-1), config["e"], config["f"]]
    exponents = (_A * (np.array(x) - np.array(_P) / 1e4) ** 2).sum(axis=1)
    value = (np.array([1, 1.2, 3, 3.2]) * np.exp(-exponents)).sum()
    return float({"u": 0.0, "v": 0.3, "w": 0.6}[config["kind"]] - value)


def branin(config: Config) -> float:
    """Branin's function with an integer."""
    x, y = config["x"], config["y"]
    curve = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return curve**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def conditional(config: Config) -> float:
    """Two optimizers, each with parameters of its own."""
    if config["optimizer"] == "sgd":
        return 0.2 + (_log(config["lr_sgd"], 1e-3, 1) - 0.6) ** 2 + (config["momentum"] - 0.9) ** 2
    inner = (_log(config["lr_adam"], 1e-5, 1e-1) - 0.5) ** 2 + (config["beta"] - 0.7) ** 2
    return inner + 0.1 * abs(config["depth"] - 3)


def too_large(config: Config) -> float | None:
    """The best configs are near a region where trials fail, as for want of memory."""
    if config["width"] * config["batch_size"] > 32_768:
        return None
    size = math.log2(config["width"] * config["batch_size"] / 32_768)
    return 0.05 * abs(size) + (_log(config["lr"], 1e-5, 1e-1) - 0.4) ** 2


def rosenbrock(config: Config) -> float:
    """Rosenbrock's function of four variables, with an integer and a category."""
    x = [config["x0"], config["x1"], config["x2"], config["x3"] / 10]
    value = sum(100 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x))
    return math.log10(1 + value) + 0.5 * (config["kind"] == "b")


def network(config: Config) -> float:
    """A loss that depends on its config as a small network's does."""
    best = {"sgd": -1.0, "adam": -2.7, "adamw": -2.5}[config["optimizer"]]
    loss = 0.15 * abs(math.log10(config["lr"]) - best) ** 1.5
    loss += 0.05 * abs(math.log2(config["width"]) - 7) + 1.2 * (config["dropout"] - 0.2) ** 2
    return loss + 0.05 * abs(math.log10(config["decay"]) + 4) + 0.1 * (config["optimizer"] == "sgd")


def boosting(config: Config) -> float:
    """A loss that depends on its config as gradient boosting's does."""
    loss = 0.3 * (_log(config["lr"], 1e-3, 1) - 0.6) ** 2 + 0.02 * abs(config["depth"] - 6)
    loss += 0.2 * (config["subsample"] - 0.8) ** 2
    return loss + 0.1 * (_log(config["l2"], 1e-8, 10) - 0.5) ** 2


def _log(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


TASKS = {
    task.name: task
    for task in (
        Task("hartmann", _HARTMANN, hartmann, -3.32237),
        Task("branin", {"x": "uniform(-5, 10)", "y": "randint(0, 16)"}, branin, 0.4040),
        Task(
            "conditional",
            {
                "optimizer": "choice(['sgd', 'adam'])",
                "lr_sgd": "loguniform(1e-3, 1) if optimizer == 'sgd'",
                "momentum": "uniform(0, 1) if optimizer == 'sgd'",
                "lr_adam": "loguniform(1e-5, 1e-1) if optimizer == 'adam'",
                "beta": "uniform(0, 1) if optimizer == 'adam'",
                "depth": "randint(1, 9) if optimizer == 'adam'",
            },
            conditional,
            0.0,
        ),
        Task(
            "too large",
            {
                "width": "choice([64, 128, 256, 512, 1024])",
                "batch_size": "choice([16, 32, 64, 128, 256])",
                "lr": "loguniform(1e-5, 1e-1)",
            },
            too_large,
            0.0,
            apart=True,
        ),
        Task(
            "rosenbrock",
            {f"x{k}": "uniform(-2, 2)" for k in range(3)}
            | {"x3": "randint(-20, 21)", "kind": "choice(['a', 'b'])"},
            rosenbrock,
            0.0,
            apart=True,
        ),
        Task(
            "hartmann curves",
            _HARTMANN | {"epochs": EPOCHS},
            hartmann,
            -3.32237,
            speed=lambda config: 1 - _log(config["a"], 1e-5, 1e-1),
        ),
        Task(
            "network curves",
            {
                "lr": "loguniform(1e-5, 1)",
                "width": "lograndint(8, 512)",
                "dropout": "uniform(0, 0.7)",
                "decay": "loguniform(1e-6, 1e-2)",
                "optimizer": "choice(['sgd', 'adam', 'adamw'])",
                "epochs": EPOCHS,
            },
            network,
            0.0,
            speed=lambda config: _log(config["lr"], 1e-5, 1),
            cost=lambda config: 60 * (1 + config["width"] / 256),
        ),
        Task(
            "boosting curves",
            {
                "lr": "loguniform(1e-3, 1)",
                "depth": "randint(1, 13)",
                "subsample": "uniform(0.3, 1)",
                "l2": "loguniform(1e-8, 10)",
                "epochs": EPOCHS,
            },
            boosting,
            0.0,
            speed=lambda config: _log(config["lr"], 1e-3, 1),
            cost=lambda config: 10.0 * config["depth"],
            apart=True,
        ),
    )
}
