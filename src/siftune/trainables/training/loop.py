"""The built-in trainables' training loop: one epoch at a time, resumable and reproducible."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from siftune.machine.files import replacing
from siftune.trainables.base import Metrics, Save
from siftune.trainables.training import parallel

STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model and how it is trained. Everything that depends on the task is a function."""

    config: dict[str, Any]
    model: nn.Module
    optimizer: Optimizer
    batch_loss: Callable[[Tensor], Tensor]  # indices int64 [B] on the device -> sum of the losses
    validate: Callable[[], Metrics]  # runs in evaluation mode, without gradients
    # Returns a schedule of n steps. The rate of a step depends only on the step's number.
    schedule: Callable[[Optimizer, int], LRScheduler]
    samples: int
    batch_size: int
    epochs: int
    device: torch.device
    accumulation: int = 1  # parts in which a batch is computed, to save memory
    sharded: bool = False  # each process holds and saves a part of model and optimizer


def default_device() -> torch.device:
    """Returns the trial's GPU, or the CPU if it has none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with Python scalars, which `torch.load(weights_only=True)` can read."""
    return {
        name: value.item() if hasattr(value, "item") else value for name, value in config.items()
    }


@contextmanager
def reproducible(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """Makes random numbers and kernels depend only on the seed and the epoch (0: initialisation).

    Yields a generator on the CPU for the order of the samples, the same in all processes of a
    trial. All other random numbers of an epoch differ between the processes. On exit the process's
    random state and flags are restored, so that the next trial in the process is not affected.
    """
    derived = (seed * 1_000_003 + epoch) % 2**63
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

    Metrics: `loss` (mean over the training samples), the metrics of `validate`, `epoch` (from
    1, continuing after `start`), `samples_per_s` (training only).

    `save(directory)` must be called in all processes of the trial, before the next epoch is
    requested. It writes one file, state.pt, or each process's part if the training is sharded.
    `start` is such a directory, saved by any number of processes. It holds no random state: every
    epoch draws its random numbers from the seed and the epoch. A resumed run therefore gives
    the same result as an uninterrupted one, whatever else ran in the process.

    Learning rates come from the config, even if `start` was saved with another config
    (population-based training clones a trial and changes its lr).

    Raises FloatingPointError if a metric is not finite.
    """
    done = 0 if start is None else _restore(training, start)
    schedule = _schedule(training, done)
    for epoch in range(done + 1, training.epochs + 1):
        with reproducible(seed, epoch, training.device) as generator:
            metrics = _train_one_epoch(training, epoch, generator, schedule)
            metrics |= training.validate()
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} in epoch {epoch} at lr {training.config['lr']:g}: "
                    "lower lr, or the upper bound of its domain"
                )
        yield metrics, partial(_save, training, epoch)


def _schedule(training: Training, done: int) -> LRScheduler:
    """Returns the schedule of the whole training, at the first step after `done` epochs."""
    steps = math.ceil(training.samples / training.batch_size)
    schedule = training.schedule(training.optimizer, training.epochs * steps)
    if done:
        schedule.last_epoch = min(done, training.epochs) * steps - 1
        with warnings.catch_warnings(action="ignore"):  # torch expects an optimizer step first
            schedule.step()
    return schedule


def _train_one_epoch(
    training: Training, epoch: int, generator: torch.Generator, schedule: LRScheduler
) -> Metrics:
    begin = time.perf_counter()
    order = torch.randperm(training.samples, generator=generator).to(training.device)
    training.model.train()
    # The loss is summed on the device and read once, because reading it waits for the device.
    total = torch.zeros((), device=training.device)
    for batch in order.split(training.batch_size):
        training.optimizer.zero_grad(set_to_none=True)
        for indices in parallel.part(batch).tensor_split(training.accumulation):
            losses = training.batch_loss(indices)
            # DistributedDataParallel and FSDP2 average the gradients of the processes.
            (losses * (parallel.processes() / len(batch))).backward()
            total += losses.detach()
        training.optimizer.step()
        schedule.step()
    loss_mean = parallel.total(total).item() / training.samples
    seconds = time.perf_counter() - begin
    return {"loss": loss_mean, "epoch": epoch, "samples_per_s": training.samples / seconds}


def _save(training: Training, epoch: int, directory: Path) -> None:
    if training.sharded:
        from siftune.trainables.training import shards  # slow to import

        metadata = {"config": training.config, "epoch": epoch}
        shards.save(directory, training.model, training.optimizer, metadata)
        return
    if parallel.rank() > 0:
        return
    state = {
        "config": training.config,
        "epoch": epoch,
        "model": training.model.state_dict(),
        "optimizer": type(training.optimizer).__name__,
        "moments": training.optimizer.state_dict()["state"],
    }
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / STATE_FILE) as unfinished:
        torch.save(state, unfinished)


def load_state(directory: Path, device: torch.device) -> dict[str, Any]:
    """Returns what `save` wrote to `directory`: config, epoch, model, optimizer, moments."""
    return torch.load(directory / STATE_FILE, map_location=device, weights_only=True)


def _restore(training: Training, directory: Path) -> int:
    """Loads the saved model and moments. Returns the number of completed epochs."""
    if training.sharded:
        from siftune.trainables.training import shards

        return shards.load(directory, training.model, training.optimizer)["epoch"]
    state = load_state(directory, training.device)
    training.model.load_state_dict(state["model"])
    if state["optimizer"] == type(training.optimizer).__name__:
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state["moments"], "param_groups": groups})
    return state["epoch"]
