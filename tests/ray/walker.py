"""A trainable that takes almost no time, for tests of the driver and the workers.

The loss of a trial depends on all its epochs, through the checkpoint. Curves cross: those that fall
fast do not fall far. Each epoch appends a line to the file `begun` beside this file when it starts.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune

SPACE = {
    "x": tune.uniform(-1, 1),
    "rate": tune.loguniform(1e-2, 1),
    "kind": tune.choice(["flat", "steep"]),
    "epochs": 4,
    "weights_kib": 0,  # extra data in each checkpoint; -1: no checkpoints
}
GRID = SPACE | {
    "x": tune.choice([-0.8, -0.3, 0.1, 0.4, 0.9]),
    "rate": tune.choice([0.05, 0.6]),
    "kind": "flat",
}


def train(config: dict[str, Any]) -> None:
    epoch, weight = 0, 1.0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as directory:
            epoch, weight = json.loads(Path(directory, "state.json").read_text())
    while epoch < config["epochs"]:
        epoch += 1
        with Path(__file__).with_name("begun").open("a") as file:
            file.write(f"{epoch}\n")
        time.sleep(0.03)
        weight -= config["rate"] * (weight - config["x"] ** 2)
        loss = weight + 0.1 * (config["kind"] == "steep") * epoch * config["rate"]
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps([epoch, weight]))
            if config["weights_kib"] > 0:
                Path(directory, "weights").write_bytes(os.urandom(config["weights_kib"] << 10))
            saved = tune.Checkpoint.from_directory(directory)
            tune.report({"loss": loss}, checkpoint=saved if config["weights_kib"] >= 0 else None)
