"""Presets: named settings. `--preset NAME` selects one, and flags override its values."""

from typing import Any

DEFAULT = "mnist"

PRESETS: dict[str, dict[str, Any]] = {
    "mnist": {
        "trainable": "mnist",
        "metric": "val_accuracy",
        "mode": "max",
        "trials": 50,
    },
    "quick": {
        "trainable": "mnist",
        "trainable_options": {"images": 10_000},
        "metric": "val_accuracy",
        "mode": "max",
        "trials": 8,
    },
    # 4.9 billion parameters. On Turpan this needs --gpus-per-trial 2 or more.
    "t5-5b": {
        "trainable": "t5",
        "space": {
            "hidden_size": 2048,
            "num_heads": 32,
            "num_layers": 28,
            "d_ff": 10240,
            "dropout": "choice([0.0, 0.1])",
            "lr": "loguniform(3e-5, 1e-3)",
            "warmup": "uniform(0.01, 0.1)",
            "weight_decay": "loguniform(1e-3, 1e-1)",
            "batch_size": 32,
            "accumulation": 1,
            "recompute": True,
            "epochs": 1,
        },
        "metric": "bits_per_byte",
        "mode": "min",
        "trials": 8,
    },
}
