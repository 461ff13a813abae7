"""A trainable that sleeps and saves a checkpoint every epoch, for tests of how trials end."""

import json
import tempfile
import time
from pathlib import Path

from ray import tune

SPACE = {"x": tune.uniform(-1, 1), "nap": 0.2, "epochs": 9}


def train(config):
    start, checkpoint = 0, tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "epoch.json").read_text())
    for epoch in range(start + 1, config["epochs"] + 1):
        time.sleep(config["nap"])
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch.json").write_text(json.dumps(epoch))
            tune.report(
                {"loss": config["x"] ** 2 + 1 / epoch},
                checkpoint=tune.Checkpoint.from_directory(directory),
            )
