"""Several processes train the same model as one process does: real processes, over gloo."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_mnist import CONFIG, SEED
from torch import nn

from siftune.trainables import mnist
from siftune.trainables.training import parallel
from siftune.trainables.training.loop import STATE_FILE, Metrics

EXACT = CONFIG | {"dropout": 0.0, "optimizer": "sgd", "epochs": 2}
ONE_IMAGE = 0.005  # one of 216 images, as a change of the accuracy


Pool = list[ProcessPoolExecutor]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Yields one process per rank, because torch keeps a process's rank until the process ends."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        yield [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(3)]


def run(pool: Pool, function: Any, count: int, meeting: Path, *words: Any) -> Any:
    """Runs the function in `count` processes that have joined; returns each one's result."""
    started = [
        executor.submit(_joined, rank, count, str(meeting), function, *words)
        for rank, executor in enumerate(pool[:count])
    ]
    return [executor.result() for executor in started]


def _joined(rank: int, count: int, meeting: str, function: Any, *words: Any) -> Any:
    torch.set_num_threads(1)
    with parallel.joined(rank, count, dist.FileStore(meeting, count)):
        return function(*words)


def train(data: Path, directory: Path, start: Path | None, **changed: Any) -> list[Metrics]:
    """Returns each epoch's metrics without its speed, and leaves the last state in `directory`."""
    metrics = []
    config = EXACT | changed
    for epoch, save in mnist.Mnist(seed=SEED, data=data, images=1300).epochs(config, start=start):
        save(directory)
        metrics.append({k: v for k, v in epoch.items() if k != "samples_per_s"})
    return metrics


def train_odd(data: Path, directory: Path, start: Path | None) -> list[Metrics]:
    return train(data, directory, start, batch_size=541)  # last batch of 2: one part empty


@pytest.mark.parametrize(("function", "count"), [(train, 2), (train_odd, 3)])
def test_several_processes_train_what_one_does(
    pool: Pool, mnist_directory: Path, tmp_path: Path, function: Any, count: int
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = function(mnist_directory, alone, None)
    first, *others = run(pool, function, count, tmp_path / "m", mnist_directory, together, None)
    assert all(other == first for other in others)
    for reference, same in zip(expected, first, strict=True):
        assert reference == pytest.approx(same, rel=1e-3, abs=ONE_IMAGE)
    weights = [torch.load(d / STATE_FILE, weights_only=True)["model"] for d in (alone, together)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=1e-3)


def test_what_two_processes_saved_one_goes_on_from(
    pool: Pool, mnist_directory: Path, tmp_path: Path
) -> None:
    whole = train(mnist_directory, tmp_path / "whole", None)
    run(pool, _one_epoch, 2, tmp_path / "m", mnist_directory, tmp_path / "state")
    (second,) = train(mnist_directory, tmp_path / "rest", tmp_path / "state")
    assert second == pytest.approx(whole[1], rel=1e-3, abs=ONE_IMAGE)


def _one_epoch(data: Path, directory: Path) -> None:
    _, save = next(mnist.Mnist(seed=SEED, data=data, images=1300).epochs(EXACT, start=None))
    save(directory)


def test_batch_normalisation_is_over_all_parts(pool: Pool, tmp_path: Path) -> None:
    alone = _normalise()
    parts = run(pool, _normalise, 2, tmp_path / "m")
    for value, *halves in zip(alone, *parts, strict=True):
        together = torch.cat(halves) if len(halves[0]) < len(value) else halves[0]
        torch.testing.assert_close(together, value, rtol=1e-5, atol=1e-6)


def _normalise() -> tuple[torch.Tensor, ...]:
    """Returns the output [7, 5], the gradient [7, 5] and the layer's running statistics [5]."""
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(5)
    wrapped = parallel.wrap(layer)
    batch = parallel.part(3 + 2 * torch.randn(7, 5)).requires_grad_()
    output = wrapped(batch)
    (output**3).sum().backward()
    assert batch.grad is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return output.detach(), batch.grad, layer.running_mean, layer.running_var


def test_dropout_differs_between_processes(pool: Pool, tmp_path: Path) -> None:
    first, second = run(pool, _draw, 2, tmp_path / "m")
    assert first[0] != second[0]
    assert first[1] == second[1]


def _draw() -> tuple[float, int]:
    """Returns a random number that a trainable draws, and one from the order of the samples."""
    from siftune.trainables.training.loop import reproducible

    with reproducible(SEED, 1, torch.device("cpu")) as generator:
        return torch.rand(()).item(), int(torch.randint(10**6, (), generator=generator))
