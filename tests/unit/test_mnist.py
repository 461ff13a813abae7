"""The trainable `mnist` is reproducible and resumable, and trains with every value of its space."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from siftune.trainables import mnist
from siftune.trainables.training.loop import STATE_FILE, Metrics

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "lr": 1e-3,
    "batch_size": 64,
    "optimizer": "adam",
    "weight_decay": 0.01,
    "conv1_channels": 8,
    "conv2_channels": 16,
    "conv3_channels": 16,
    "kernel1": 3,
    "kernel2": 3,
    "kernel3": 3,
    "activation": "relu",
    "dropout": 0.3,
    "fc_dim": 64,
    "scheduler": "none",
    "step_size": 20,
    "gamma": 0.5,
    "epochs": 3,
    "num_classes": 10,
}
SEED, IMAGES = 7, 1200


@pytest.fixture
def data(mnist_directory: Path) -> dict[str, Any]:
    return {"seed": SEED, "data": mnist_directory, "images": IMAGES}


def train(data: dict[str, Any], start: Path | None = None, **changed: Any) -> list[Metrics]:
    """Returns the metrics of every epoch, without its speed."""
    epochs = mnist.Mnist(**data).epochs(CONFIG | changed, start=start)
    return [timeless(metrics) for metrics, _ in epochs]


def timeless(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def train_one_epoch(data: dict[str, Any], directory: Path, **changed: Any) -> Metrics:
    metrics, save = next(mnist.Mnist(**data).epochs(CONFIG | changed, start=None))
    save(directory)
    return timeless(metrics)


def test_space_is_the_default_space() -> None:
    assert set(mnist.SPACE) == set(CONFIG)
    assert mnist.SPACE["kernel3"].condition == "conv3_channels > 0"
    assert mnist.SPACE["gamma"].condition == "scheduler == 'step'"


def test_every_epoch_reports_and_the_loss_goes_down(data: dict[str, Any]) -> None:
    config = CONFIG | {"batch_size": 16}
    reported = [metrics for metrics, _ in mnist.Mnist(**data).epochs(config, start=None)]
    assert [metrics["epoch"] for metrics in reported] == [1, 2, 3]
    assert set(reported[0]) == {"loss", "val_loss", "val_accuracy", "epoch", "samples_per_s"}
    assert reported[-1]["loss"] < reported[0]["loss"] / 2
    assert reported[-1]["val_loss"] < reported[0]["val_loss"]
    assert reported[-1]["val_accuracy"] > 0.8


def test_two_runs_with_one_seed_give_the_same_numbers(data: dict[str, Any]) -> None:
    first = train(data)
    # Between the two runs, the process trains another trial.
    train(data, scheduler="onecycle", optimizer="sgd", epochs=1)
    torch.manual_seed(99)
    assert train(data) == first
    assert train(data | {"seed": SEED + 1}) != first


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"scheduler": "cosine", "optimizer": "adamw"},
        {"scheduler": "step", "optimizer": "sgd"},
        {"scheduler": "onecycle"},
    ],
)
@pytest.mark.parametrize("after", [1, 2])
def test_interrupted_training_equals_uninterrupted(
    data: dict[str, Any], tmp_path: Path, changed: dict[str, Any], after: int
) -> None:
    whole = []
    for metrics, save in mnist.Mnist(**data).epochs(CONFIG | changed, start=None):
        whole.append(timeless(metrics))
        if metrics["epoch"] == after:
            save(tmp_path)
        torch.rand(3)  # the caller may draw random numbers in between
    assert train(data, start=tmp_path, **changed) == whole[after:]


def test_finished_training_has_nothing_left_to_do(data: dict[str, Any], tmp_path: Path) -> None:
    train_one_epoch(data, tmp_path, epochs=1)
    assert train(data, start=tmp_path, epochs=1) == []


def test_process_is_left_as_it_was(data: dict[str, Any]) -> None:
    torch.manual_seed(3)
    random, flags = torch.get_rng_state(), torch.backends.cudnn.deterministic
    for _ in mnist.Mnist(**data).epochs(CONFIG | {"epochs": 2}, start=None):
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.backends.cudnn.deterministic == flags
        assert torch.is_grad_enabled()


def test_config_rules_over_the_checkpoint(data: dict[str, Any], tmp_path: Path) -> None:
    # Population-based training clones a trial and continues with another rate or optimizer.
    train_one_epoch(data, tmp_path)
    kept = train(data, start=tmp_path)
    assert [metrics["epoch"] for metrics in kept] == [2, 3]
    assert train(data, start=tmp_path, lr=5e-3) != kept
    assert train(data, start=tmp_path, weight_decay=0.1) != kept
    assert len(train(data, start=tmp_path, optimizer="sgd")) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("optimizer", name) for name in mnist.OPTIMIZERS),
        *(("activation", name) for name in mnist.ACTIVATIONS),
        *(("scheduler", name) for name in ("none", "cosine", "step", "onecycle")),
        *(("batch_size", size) for size in (16, 32, 64, 128)),
        *((f"kernel{number}", kernel) for number in (1, 2, 3) for kernel in (3, 5, 7)),
        ("conv3_channels", 0),
        ("conv3_channels", 128),
    ],
)
def test_every_value_trains(data: dict[str, Any], name: str, value: Any) -> None:
    (metrics,) = train(data | {"images": 390}, **{name: value, "epochs": 1})  # a partial last batch
    assert metrics["loss"] < 3


def test_inactive_parameters_may_be_absent_and_do_not_matter(data: dict[str, Any]) -> None:
    two_layers = CONFIG | {"conv3_channels": 0, "epochs": 1}
    bare = {k: v for k, v in two_layers.items() if k not in ("kernel3", "step_size", "gamma")}
    runs = [
        [timeless(metrics) for metrics, _ in mnist.Mnist(**data).epochs(config, start=None)]
        for config in (bare, two_layers, two_layers | {"kernel3": 7, "gamma": 0.1})
    ]
    assert runs[0] == runs[1] == runs[2]


def test_network_is_built_from_the_config() -> None:
    model = mnist.build_model(CONFIG | {"kernel2": 5, "num_classes": 12})
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0]) for c in convolutions] == [(8, 3), (16, 5), (16, 3)]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 12)
    two = mnist.build_model(CONFIG | {"conv3_channels": 0})
    assert sum(isinstance(layer, nn.Conv2d) for layer in two) == 2


def test_evaluate_reproduces_the_validation_of_the_saved_epoch(
    data: dict[str, Any], tmp_path: Path
) -> None:
    reported = train_one_epoch(data, tmp_path)
    scores = mnist.Mnist(**data).evaluate(tmp_path)
    assert scores["val_accuracy"] == reported["val_accuracy"]
    assert scores["val_loss"] == reported["val_loss"]
    assert 0.3 < scores["test_accuracy"] < 1
    assert scores["test_loss"] > 0


def test_state_is_one_file_that_loads_safely(data: dict[str, Any], tmp_path: Path) -> None:
    # Searchers may propose NumPy numbers, which torch.load refuses with weights_only=True.
    train_one_epoch(data, tmp_path, lr=np.float64(1e-3), batch_size=np.int64(64))
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["epoch"] == 1
    assert state["config"] == CONFIG


def test_divergence_says_where_and_what_to_do(data: dict[str, Any]) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1 at lr 1e\+30: lower lr"):
        train(data, lr=1e30, optimizer="sgd")


def test_all_mistakes_in_a_config_come_together(data: dict[str, Any]) -> None:
    config = CONFIG | {"optimizer": "adamax", "activation": "tanh", "num_classes": 5}
    del config["fc_dim"]
    with pytest.raises(ValueError, match="fc_dim is missing") as caught:
        next(mnist.Mnist(**data).epochs(config, start=None))
    assert "optimizer must be one of adam, sgd, adamw, got 'adamax'" in str(caught.value)
    assert "activation must be one of relu, gelu, silu, got 'tanh'" in str(caught.value)
    assert "num_classes must be at least 10, got 5" in str(caught.value)


def rates(steps: int, **changed: Any) -> list[float]:
    """Returns the learning rate of each step."""
    optimizer = mnist.OPTIMIZERS["sgd"]([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = mnist.schedule(CONFIG | changed, optimizer, steps)
    used = []
    for _ in range(steps):
        used += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return used


def test_step_counts_in_per_cent_of_the_training() -> None:
    expected = [1.0] * 30 + [0.5] * 30 + [0.25] * 30 + [0.125] * 10
    assert rates(100, scheduler="step", step_size=30, gamma=0.5) == expected


def test_cosine_goes_down_once_an_epoch() -> None:
    assert rates(6, scheduler="cosine", epochs=2) == pytest.approx([1.0] * 3 + [0.5] * 3)
