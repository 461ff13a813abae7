"""The training loop that the trainables share: one epoch at a time, resumable, reproducible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from siftune import parallel
from siftune.trainables.replay import Replay
from siftune.trainables.update import Rates, set_rates, step_at

STATE_FILE = "state.pt"
# Fewer steps are not recorded. To record is thought to take as long as some 20 steps without:
# `make bench ARGS=gpu` measures it, and none was measured yet.
STEPS_WORTH_RECORDING = 100

Metrics = dict[str, float]
Save = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model and how it is trained. Whatever depends on the task is a function here."""

    config: dict[str, Any]
    model: nn.Module
    optimizer: Optimizer
    batch_loss: Callable[[Tensor], Tensor]  # indices int64 [B] on the device -> sum of the losses
    validate: Callable[[], Metrics]  # in evaluation mode, without gradients
    rates: Callable[[int, int], Rates]  # of step i of n
    samples: int
    batch_size: int
    epochs: int
    device: torch.device
    accumulation: int = 1  # parts in which a batch is computed
    sharded: bool = False  # whether each process has a part of model and optimizer, and saves it
    # Whether `batch_loss` is the same work for every batch, and never waits for the GPU, and the
    # optimizer one that `step_at` knows: then one GPU's steps are recorded, and replayed.
    recordable: bool = False


def default_device() -> torch.device:
    """The GPU that the trial was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config with numpy's scalars as Python's, which `torch.load(weights_only=True)` reads."""
    return {
        name: value.item() if hasattr(value, "item") else value for name, value in config.items()
    }


def check_finite(metrics: Metrics, config: dict[str, Any]) -> None:
    """Raises FloatingPointError if a metric is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} in epoch {metrics['epoch']} at lr {config['lr']:g}: "
                "lower lr, or the upper end of its domain"
            )


def epoch_seed(seed: int, epoch: int) -> int:
    """Of the random numbers of one epoch, 0: those of the initialisation."""
    return (seed * 1_000_003 + epoch) % 2**63


@contextmanager
def reproducible(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """Random numbers and kernels that follow from the seed and the epoch (0: initialisation).

    Gives a generator on the CPU for the order of the samples, the same in all processes of a trial;
    what else an epoch draws differs between them. The process's own random state and flags are as
    before at the end: the next trial in it must not see that this one was there.
    """
    derived = epoch_seed(seed, epoch)
    cudnn = torch.backends.cudnn
    on_cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_cuda else []),
        cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(derived + (parallel.rank() * 10_007 if epoch else 0))
        yield torch.Generator().manual_seed(derived)


def run_epochs(
    training: Training, *, start: Path | None, seed: int
) -> Iterator[tuple[Metrics, Save]]:
    """Trains, and yields after each epoch its metrics and a function that saves the state.

    Metrics: `loss` (mean over the training samples), those of `validate`, `epoch` (from 1, counting
    on from `start`), `samples_per_s` (training only). `save(directory)` is called in all processes
    of the trial, and good until the next epoch is asked for: it writes one file, state.pt, or where
    the training is sharded each process's part. `start` is such a directory, of however many
    processes. Nothing random is in it: every epoch draws anew from the seed and its number, so that
    an interrupted training equals an uninterrupted one whatever else ran in the process.

    The config rules, not the file: rates come from the config even where `start` was saved under
    another one (population-based training clones a trial and changes its lr).

    Raises FloatingPointError if a metric is not finite.
    """
    done = 0 if start is None else restore(training, start)
    full = _FullBatches(training) if _worth_recording(training, done) else None
    for epoch in range(done + 1, training.epochs + 1):
        with reproducible(seed, epoch, training.device) as generator:
            metrics = _train_one_epoch(training, epoch, generator, full)
            metrics |= training.validate()
        check_finite(metrics, training.config)
        yield metrics, partial(_save, training, epoch)


def _train_one_epoch(
    training: Training, epoch: int, generator: torch.Generator, full: _FullBatches | None
) -> Metrics:
    begin = time.perf_counter()
    count = math.ceil(training.samples / training.batch_size)
    steps = range((epoch - 1) * count, epoch * count)
    rates = [training.rates(step, training.epochs * count) for step in steps]
    order = torch.randperm(training.samples, generator=generator).to(training.device)
    training.model.train()
    # The loss is added up on the device and read once: to read it is to wait for the device.
    total = torch.zeros((), device=training.device)
    done = 0 if full is None else full.train(order, rates, total)
    for batch, (lr, momentum) in zip(
        order.split(training.batch_size)[done:], rates[done:], strict=True
    ):
        set_rates(training.optimizer, lr, momentum)
        _compute_gradients(training, batch, total)
        training.optimizer.step()
    loss_mean = parallel.total(total).item() / training.samples
    seconds = time.perf_counter() - begin
    return {"loss": loss_mean, "epoch": epoch, "samples_per_s": training.samples / seconds}


def _compute_gradients(training: Training, batch: Tensor, total: Tensor) -> None:
    """Of the mean loss of a batch [B]; the losses of this process's part are added to `total`."""
    training.optimizer.zero_grad(set_to_none=True)
    for some in parallel.part(batch).tensor_split(training.accumulation):
        losses = training.batch_loss(some)
        # Times the processes, of whose gradients the mean is taken.
        losses.backward(torch.full_like(losses, parallel.processes() / len(batch)))
        total += losses.detach()


class _FullBatches:
    """The steps of an epoch whose batches are full, each the same work, to be recorded: batch and
    rates are on the device, and looked up by the number of the step, which is there too."""

    def __init__(self, training: Training) -> None:
        size, device = training.batch_size, training.device
        self._training = training
        self._count = training.samples // size
        self._order = torch.empty(self._count, size, dtype=torch.int64, device=device)
        self._rates = torch.empty(self._count, 2, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._total = torch.zeros((), device=device)
        self._momentum_changes = training.rates(0, 1)[1] is not None
        self._replay = Replay() if device.type == "cuda" else None

    def train(self, order: Tensor, rates: list[Rates], total: Tensor) -> int:
        """Trains on the full batches of an order [samples], and adds their losses to `total`. How
        many steps that were."""
        self._order.copy_(order[: self._order.numel()].view_as(self._order))
        self._rates.copy_(
            torch.tensor([(lr, momentum or 0.0) for lr, momentum in rates[: self._count]])
        )
        self._step.zero_()
        self._total.zero_()
        for _ in range(self._count):
            if self._replay:
                self._replay(self._train_one)
            else:
                self._train_one()
        total += self._total
        return self._count

    def _train_one(self) -> None:
        batch = self._order.index_select(0, self._step)[0]
        lr, momentum = self._rates.index_select(0, self._step)[0]
        _compute_gradients(self._training, batch, self._total)
        step_at(self._training.optimizer, lr, momentum if self._momentum_changes else None)
        self._step += 1


def _worth_recording(training: Training, done: int) -> bool:
    """Whether the steps of the epochs that are left are to be recorded."""
    steps = (training.epochs - done) * (training.samples // training.batch_size)
    return (
        training.recordable
        and training.device.type == "cuda"
        and parallel.processes() == 1  # else the gradients of the others are waited for
        and training.accumulation == 1
        and steps >= STEPS_WORTH_RECORDING
    )


def _save(training: Training, epoch: int, directory: Path) -> None:
    if training.sharded:
        from siftune.trainables import shards  # whose imports take a while

        said = {"config": training.config, "epoch": epoch}
        shards.save(directory, training.model, training.optimizer, said)
        return
    if parallel.rank() > 0:
        return
    with state_file(directory) as file:
        torch.save(state_of(training, epoch), file)


@contextmanager
def state_file(directory: Path) -> Iterator[Path]:
    """Where to write state.pt of a directory: it is there once it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{STATE_FILE}.part"
    yield unfinished
    unfinished.replace(directory / STATE_FILE)


def state_of(training: Training, epoch: int) -> dict[str, Any]:
    """What state.pt holds: all that an epoch leaves to the next."""
    return {
        "config": training.config,
        "epoch": epoch,
        "model": training.model.state_dict(),
        "optimizer": type(training.optimizer).__name__,
        "moments": training.optimizer.state_dict()["state"],
    }


def load_state(directory: Path, device: torch.device) -> dict[str, Any]:
    """What `save` wrote to `directory`: config, epoch, model, optimizer, moments."""
    return torch.load(directory / STATE_FILE, map_location=device, weights_only=True)


def restore(training: Training, directory: Path) -> int:
    """Takes the saved model and moments; the number of epochs behind them."""
    if training.sharded:
        from siftune.trainables import shards

        return shards.load(directory, training.model, training.optimizer)["epoch"]
    state = load_state(directory, training.device)
    training.model.load_state_dict(state["model"])
    if state["optimizer"] == type(training.optimizer).__name__:
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state["moments"], "param_groups": groups})
    return state["epoch"]
