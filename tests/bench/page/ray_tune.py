"""The Turpan page's script, put together from its fragments: eight random trials.

It has two changes. `num_gpus` is given, because Ray cannot ask a driver for it here. The parameters
that determine the length of a trial are fixed, so that these trials take as long as siftune's.
"""

import os

import ray
from mnist_ddp import original_main
from ray import tune

config = {
    "lr": tune.loguniform(1e-5, 5e-3),
    "batch_size": 64,
    "optimizer": tune.choice(["adam", "sgd", "adamw"]),
    "weight_decay": tune.uniform(0.0, 0.1),
    "conv1_channels": 16,
    "conv2_channels": 32,
    "conv3_channels": 0,
    "kernel1": 3,
    "kernel2": 3,
    "kernel3": tune.choice([3, 5, 7]),
    "activation": tune.choice(["relu", "gelu", "silu"]),
    "dropout": tune.uniform(0.0, 0.5),
    "fc_dim": 128,
    "scheduler": tune.choice(["none", "cosine", "step", "onecycle"]),
    "step_size": tune.choice([10, 20, 30]),
    "gamma": tune.uniform(0.1, 0.9),
    "epochs": 2,
    "num_classes": 10,
}

ray.init(
    num_cpus=max(1, int(os.environ.get("SLURM_CPUS_PER_TASK", "40"))),
    num_gpus=int(os.environ["SLURM_GPUS_ON_NODE"]),
    include_dashboard=False,
    _system_config={"enable_metrics_collection": False},
)

tuner = tune.Tuner(
    tune.with_resources(original_main, resources={"cpu": 4, "gpu": 1}),
    param_space=config,
    tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=8),
)
assert not tuner.fit().errors
