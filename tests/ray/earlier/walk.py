"""Counts epochs in a checkpoint, so that the metric shows a lost or repeated epoch."""

import json
import tempfile
import time
from pathlib import Path

from ray import tune

SPACE = {"x": tune.uniform(0, 1), "kind": tune.choice(["a", "b"]), "epochs": 4}


def train(config):
    steps = 0
    if checkpoint := tune.get_checkpoint():
        steps = json.loads(Path(checkpoint.path, "steps.json").read_text())
    while steps < config["epochs"]:
        steps += 1
        time.sleep(0.4)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "steps.json").write_text(json.dumps(steps))
            loss = abs(config["x"] - 0.3) + 1 / steps
            tune.report({"loss": loss, "steps": steps}, checkpoint=tune.Checkpoint(directory))
