"""Trials that are trained as one program end as each of them does alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mnist import CONFIG as MNIST
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from siftune.data import Mnist, load_mnist
from siftune.errors import UsageError
from siftune.space import Space
from siftune.trainables import mnist
from siftune.trainables.fused import Lane, Update, train_epoch, train_step
from siftune.trainables.loop import STATE_FILE, Metrics, restore, state_of
from siftune.trainables.stack import Stack, stacked
from siftune.trainables.update import set_rates

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = MNIST | {
    "conv1_channels": 4,
    "conv2_channels": 6,
    "conv3_channels": 8,
    "kernel2": 5,
    "fc_dim": 32,
}
# What differs between lanes.
LANES: list[dict[str, Any]] = [
    {"lr": 2e-3, "scheduler": "cosine", "dropout": 0.0},
    {"lr": 1e-3, "scheduler": "onecycle", "weight_decay": 0.0},
    {"lr": 5e-4, "scheduler": "step", "dropout": 0.5, "epochs": 4},
]
SEED, IMAGES = 7, 600


@pytest.fixture
def double() -> Iterator[None]:
    """float64: what is left of a difference is one of method, not of the order of additions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data(mnist_directory: Path) -> Mnist:
    return load_mnist(mnist_directory, seed=SEED, device="cpu", images=IMAGES)


def lane(data: Mnist, **changed: Any) -> Lane:
    return Lane(mnist.new_training(CONFIG | changed, data, seed=SEED))


def alone(directory: Path, start: Path | None = None, **changed: Any) -> list[Metrics]:
    """Every epoch's metrics of a trial that trains alone."""
    epochs = mnist.epochs(CONFIG | changed, start=start, seed=SEED, data=directory, images=IMAGES)
    return [metrics for metrics, _ in epochs]


def assert_same(found: list[Metrics], expected: list[Metrics], *, within: float) -> None:
    assert [m["epoch"] for m in found] == [m["epoch"] for m in expected]
    for name in ("loss", "val_loss", "val_accuracy"):
        values = [m[name] for m in expected]
        assert [m[name] for m in found] == pytest.approx(values, abs=within), name


@pytest.mark.parametrize("optimizer", list(mnist.OPTIMIZERS))
def test_lanes_that_join_late_and_leave_early_end_as_alone(
    double: None, data: Mnist, mnist_directory: Path, optimizer: str
) -> None:
    shape = {"optimizer": optimizer}
    one, two, three = (lane(data, **shape, **changed) for changed in LANES)
    found: list[list[Metrics]] = [[], [], []]
    # In each round which of them train.
    for some in ([0], [0, 1], [2, 0, 1], [1, 2], [2], [2]):
        lanes = [(one, two, three)[i] for i in some]
        for i, metrics in zip(some, train_epoch(lanes, data, seed=SEED), strict=True):
            found[i].append(metrics)
    for changed, metrics in zip(LANES, found, strict=True):
        assert_same(metrics, alone(mnist_directory, **shape, **changed), within=1e-8)


def test_without_ray_a_fused_trial_trains_alone(mnist_directory: Path) -> None:
    trained = [
        next(
            mnist.epochs(
                CONFIG, start=None, seed=SEED, data=mnist_directory, images=IMAGES, fused=fused
            )
        )[0]["val_loss"]
        for fused in (False, True)
    ]
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    "shape", [{"conv3_channels": 0, "activation": "gelu"}, {"kernel1": 7, "activation": "silu"}]
)
def test_other_shapes_end_as_alone(
    double: None, data: Mnist, mnist_directory: Path, shape: dict[str, Any]
) -> None:
    lanes = [lane(data, **shape, **changed) for changed in LANES[:2]]
    found = train_epoch(lanes, data, seed=SEED)
    for changed, metrics in zip(LANES, found, strict=False):
        expected = alone(mnist_directory, **shape, **changed)[:1]
        assert_same([metrics], expected, within=1e-8)


def test_in_float32_rounding_is_what_differs(data: Mnist, mnist_directory: Path) -> None:
    """By as much, here, as for a trial that trains alone on two threads instead of one."""
    lanes = [lane(data, **changed) for changed in LANES]
    for changed, metrics in zip(LANES, train_epoch(lanes, data, seed=SEED), strict=True):
        (expected, *_) = alone(mnist_directory, **changed)
        assert metrics["loss"] == pytest.approx(expected["loss"], abs=2e-3)


def test_the_same_lanes_give_the_same_numbers(data: Mnist) -> None:
    torch.manual_seed(1)
    first = train_epoch([lane(data, **changed) for changed in LANES], data, seed=SEED)
    torch.manual_seed(2)
    again = train_epoch([lane(data, **changed) for changed in LANES], data, seed=SEED)
    assert [m["val_loss"] for m in first] == [m["val_loss"] for m in again]


def test_a_lane_that_diverges_changes_no_other(data: Mnist) -> None:
    def train(lr: float) -> list[Metrics]:
        lanes = [lane(data), lane(data, lr=lr), lane(data, lr=2e-3)]
        return [train_epoch(lanes, data, seed=SEED) for _ in range(2)][-1]

    sane, wild = train(1e-3), train(1e30)
    assert not wild[1]["loss"] < 1e9
    assert_same([wild[0], wild[2]], [sane[0], sane[2]], within=0)


@pytest.mark.parametrize("optimizer", list(mnist.OPTIMIZERS))
def test_checkpoints_serve_both_ways(
    double: None, data: Mnist, mnist_directory: Path, tmp_path: Path, optimizer: str
) -> None:
    changed = {"optimizer": optimizer, "scheduler": "onecycle"}
    whole = alone(mnist_directory, **changed)

    # Begun in a lane, on alone.
    first = lane(data, **changed)
    train_epoch([lane(data, optimizer=optimizer, lr=5e-3), first], data, seed=SEED)
    torch.save(state_of(first.training, first.epoch), tmp_path / STATE_FILE)
    assert_same(alone(mnist_directory, tmp_path, **changed), whole[1:], within=1e-8)

    # Begun alone, on in a lane.
    config = CONFIG | changed
    epochs = mnist.epochs(config, start=None, seed=SEED, data=mnist_directory, images=IMAGES)
    _, save = next(epochs)
    save(tmp_path)
    later = lane(data, **changed)
    later.epoch = restore(later.training, tmp_path)
    found = [
        train_epoch([later, lane(data, optimizer=optimizer)], data, seed=SEED)[0] for _ in range(2)
    ]
    assert_same(found, whole[1:], within=1e-8)


def test_a_lanes_state_is_as_one_that_trained_alone(data: Mnist, mnist_directory: Path) -> None:
    """Names, shapes and types, and how tensors lie in memory: torch's kernels trust it."""
    for optimizer in mnist.OPTIMIZERS:
        fused = lane(data, optimizer=optimizer)
        train_epoch([fused, lane(data, optimizer=optimizer)], data, seed=SEED)
        config = CONFIG | {"optimizer": optimizer}
        single = mnist.new_training(config, data, seed=SEED)
        single.batch_loss(torch.arange(8)).backward()
        single.optimizer.step()
        one, other = state_of(fused.training, 1), state_of(single, 1)
        assert one.keys() == other.keys()
        assert _looks(one["model"]) == _looks(other["model"])
        assert one["moments"].keys() == other["moments"].keys()
        for i in one["moments"]:
            assert _looks(one["moments"][i]) == _looks(other["moments"][i])


def _looks(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: (t.shape, t.dtype, t.stride()) for n, t in tensors.items() if t is not None}


@pytest.mark.parametrize("optimizer", list(mnist.OPTIMIZERS))
def test_a_step_waits_for_nothing(optimizer: str) -> None:
    """It runs on tensors that have a shape alone: whoever reads a value of these raises."""
    models = [mnist.build_model(CONFIG).to("meta") for _ in range(3)]
    made = [mnist.OPTIMIZERS[optimizer](model.parameters(), lr=1.0) for model in models]
    images = torch.zeros(64, 28, 28, dtype=torch.uint8, device="meta")
    labels, batch = (torch.zeros(s, dtype=torch.int64, device="meta") for s in (64, (3, 16)))
    update, masks = Update(made), torch.ones((), device="meta")
    (rates,) = update.rates([[(1e-3, None)]] * 3)
    data = Mnist(*(images, labels) * 3)
    losses = train_step(Stack(models), update, data, batch, masks, rates)
    assert losses.shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        losses.tolist()


@pytest.mark.parametrize("kind", list(mnist.OPTIMIZERS))
def test_an_update_is_torchs(double: None, kind: str) -> None:
    """With learning rate, weight decay and momentum of each lane, over steps that are resumed.
    In float32 torch's kernel for the CPU rounds 1 - 0.999 and is off by 2e-5 itself."""
    shapes, steps = [(5, 3), (7,)], 6
    torch.manual_seed(0)
    theirs = [[torch.randn(shape, requires_grad=True) for shape in shapes] for _ in range(3)]
    optimizers = [
        mnist.OPTIMIZERS[kind](weights, lr=1.0, weight_decay=0.1 * i)
        for i, weights in enumerate(theirs)
    ]
    ours = [
        mnist.OPTIMIZERS[kind](
            [w.detach().clone().requires_grad_() for w in weights], lr=1.0, weight_decay=0.1 * i
        )
        for i, weights in enumerate(theirs)
    ]
    flat = stacked(optimizer.param_groups[0]["params"] for optimizer in ours)
    configs = [
        CONFIG | {"lr": 10.0**-i, "scheduler": name}
        for i, name in enumerate(["onecycle", "none", "cosine"])
    ]
    for half in (range(3), range(3, steps)):
        update = Update(ours)
        planned = [[mnist.rates(config, step, steps) for step in half] for config in configs]
        for step, rates in zip(half, update.rates(planned), strict=True):
            for weights, optimizer, config in zip(theirs, optimizers, configs, strict=True):
                set_rates(optimizer, *mnist.rates(config, step, steps))
                for weight in weights:
                    weight.grad = torch.randn_like(weight)
                optimizer.step()
            gradients = stacked(
                [w.grad for w in weights if w.grad is not None] for weights in theirs
            )
            update.step(flat, gradients, rates)
            torch.testing.assert_close(flat, stacked(theirs), rtol=1e-9, atol=1e-9)
        update.store(len(half))


def test_a_stack_is_vmap(double: None) -> None:
    """torch's own way to train models together gives the same logits, gradients and statistics."""
    models = [mnist.build_model(CONFIG | {"dropout": 0.0}) for _ in range(3)]
    base = mnist.build_model(CONFIG | {"dropout": 0.0}).to("meta")
    images, labels = torch.randn(3, 8, 1, 28, 28), torch.randint(10, (3, 8))
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    parameters = {name: p.detach() for name, p in parameters.items()}

    def loss(parameters: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits = functional_call(base, (parameters, buffers), (images,))
        return functional.cross_entropy(logits, labels)

    stack = Stack(models)
    logits = stack(images.squeeze(2).transpose(0, 1), masks=torch.ones(()))
    ours = torch.autograd.grad(
        functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) * 3, stack.parameters
    )
    theirs = vmap(grad(loss))(parameters, buffers, images, labels)
    for our, name in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, theirs[name])
    stack.store(1)
    norms = [[m for m in model if isinstance(m, nn.BatchNorm2d)] for model in models]
    for i, norm in enumerate(norms[2]):
        assert norm.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_var, buffers[f"{1 + 4 * i}.running_var"][2])


def test_what_keeps_trials_apart_is_said_before_a_study() -> None:
    (said,) = mnist.remarks(Space.read(mnist.SPACE), 0.125, fused=True)
    assert "equal in batch_size, optimizer, conv1_channels" in said
    assert "lr" not in said
    (said,) = mnist.remarks(Space.read(CONFIG | {"lr": "loguniform(1e-4, 1e-2)"}), 0, fused=True)
    assert "trained as one program" in said
    assert mnist.remarks(Space.read(mnist.SPACE), 1) == []
    with pytest.raises(UsageError, match=r"give --gpus-per-trial 0\.125 for 8"):
        mnist.remarks(Space.read(mnist.SPACE), 1, fused=True)
