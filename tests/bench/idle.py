"""A trainable that only sleeps, to measure the overhead of a job."""

import time
from typing import Any

from ray import tune

SPACE: dict[str, Any] = {"x": tune.uniform(0, 1), "epochs": 1, "epoch_s": 0}


def train(config: dict[str, Any]) -> None:
    for _ in range(config["epochs"]):
        time.sleep(config["epoch_s"])
        tune.report({"loss": config["x"]})
