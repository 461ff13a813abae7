"""The driver of recipe.sbatch: the trainable idle.py in a plain Tuner, one GPU a trial."""

import sys
import time
from typing import Any

import idle
import ray
from ray import tune


class FirstEpoch(tune.Callback):
    """Says when each epoch is reported: the driver's clock, as in siftune's journal."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        print("epoch at", time.time())


def main() -> None:
    ray.init(address="auto")
    tuner = tune.Tuner(
        tune.with_resources(idle.train, {"cpu": 1, "gpu": 1}),
        param_space=idle.SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=int(sys.argv[1])),
        run_config=tune.RunConfig(callbacks=[FirstEpoch()]),
    )
    assert not tuner.fit().errors


main()
