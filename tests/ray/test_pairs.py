"""Real studies on real MNIST, with every searcher and with every scheduler.

test_interrupted.py tests all pairs, killed and uninterrupted, with a faster trainable.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from siftune.schedulers import SCHEDULERS
from siftune.searchers import SEARCHERS

# Small networks and few images, so that studies end in seconds. Conditions and kinds of parameters
# are as in the default space.
SPACE = {
    "lr": "loguniform(1e-4, 1e-2)",
    "batch_size": "choice([32, 64])",
    "optimizer": "choice(['adam', 'sgd'])",
    "weight_decay": "uniform(0.0, 0.1)",
    "conv1_channels": 4,
    "conv2_channels": "choice([4, 8])",
    "conv3_channels": "choice([0, 8])",
    "kernel1": 3,
    "kernel2": 3,
    "kernel3": "choice([3, 5]) if conv3_channels > 0",
    "activation": "choice(['relu', 'gelu'])",
    "dropout": "uniform(0.0, 0.5)",
    "fc_dim": 16,
    "scheduler": "choice(['none', 'step'])",
    "step_size": "choice([10, 30]) if scheduler == 'step'",
    "gamma": "uniform(0.1, 0.9) if scheduler == 'step'",
    "epochs": 3,
    "num_classes": 10,
}
FINITE = SPACE | {
    "lr": "choice([1e-3, 1e-2])",
    "batch_size": 64,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "conv2_channels": 4,
    "activation": "relu",
    "dropout": 0.1,
    "gamma": 0.5,
    "scheduler": "none",
}
PAIRS = [
    ("random", "pbt"),
    ("grid", "none"),
    ("optuna", "hyperband"),
    ("hebo", "asha"),
    ("portfolio", "asha"),
    ("bohb", "bohb"),
    ("bayesopt", "median"),
]


def test_no_searcher_and_no_scheduler_is_left_out() -> None:
    searchers, schedulers = zip(*PAIRS, strict=True)
    assert set(searchers) == set(SEARCHERS)
    assert set(schedulers) == set(SCHEDULERS)


@pytest.mark.parametrize(("searcher", "scheduler"), PAIRS)
def test_a_study_runs_to_its_end(study: Callable[..., Any], searcher: str, scheduler: str) -> None:
    result = study(
        trainable="mnist",
        trainable_options={"images": 600},
        space=FINITE if searcher == "grid" else SPACE,
        searcher=searcher,
        scheduler=scheduler,
        trials=6,
        metric="val_loss",
    )
    assert result.status == 0
    started = [e["trial"] for e in result.of("start")]
    assert started == [f"{n:04d}" for n in range(1, 7)]
    assert Counter(e["trial"] for e in result.of("end")) == Counter(started)
    assert {e["state"] for e in result.of("end")} <= {"completed", "pruned"}
    epochs = Counter(e["trial"] for e in result.of("epoch"))
    for trial in started:
        counted = [e["epoch"] for e in result.of("epoch") if e["trial"] == trial]
        assert counted == list(range(1, epochs[trial] + 1))
    if scheduler == "none":
        assert set(epochs.values()) == {3}

    best = min(result.of("epoch"), key=lambda e: e["metrics"]["val_loss"])
    assert result.best["metrics"] == best["metrics"]
    assert (result.directory / result.best["checkpoint"]).is_file()
    assert result.summary["trials"]["running"] == 0
    assert sum(result.summary["trials"].values()) == 6
    assert 0 < result.summary["busy_fraction"] <= 1
    assert _most_at_once(result.events) <= result.summary["slots"] == 2
    assert {e["node"] for e in result.of("epoch")} == {os.uname().nodename}


def _most_at_once(events: list[dict[str, Any]]) -> int:
    """Returns the most trials inside an epoch at the same moment, by the times in the journal."""
    edges: list[tuple[float, int]] = []
    for event in events:
        if event["event"] == "epoch":
            # Cuts 10 ms off each side, because times are taken when the report arrives.
            begin, end = event["time"] - event["seconds"] + 0.01, event["time"] - 0.01
            edges += [(begin, 1), (end, -1)] if begin < end else []
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most
