"""The driver of recipe.sbatch: runs a module's trainable in a plain Tuner, one GPU per trial.

recipe_driver.py MODULE TRIALS
"""

import importlib
import sys
import time
from typing import Any

import ray
from ray import tune


class FirstEpoch(tune.Callback):
    """Prints when each epoch is reported, by the driver's clock, as in siftune's journal."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        print("epoch at", time.time())


def main() -> None:
    module, trials = importlib.import_module(sys.argv[1]), int(sys.argv[2])
    ray.init(address="auto")
    tuner = tune.Tuner(
        tune.with_resources(module.train, {"cpu": 1, "gpu": 1}),
        param_space=module.SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials),
        run_config=tune.RunConfig(callbacks=[FirstEpoch()]),
    )
    assert not tuner.fit().errors


main()
