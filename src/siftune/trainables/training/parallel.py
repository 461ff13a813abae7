"""A trial on several GPUs: a process for each, and these train one model together.

In a trial of one process every function here gives what it was given, so that a trainable is
written once. Nothing here knows of Ray: what starts the processes is ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(days=1)  # that a process hangs is noticed by what no longer reports


@contextmanager
def joined(rank: int, processes: int, store: Any) -> Iterator[None]:
    """This process as one of a trial's, from 0. They meet at a torch.distributed.Store."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, rank=rank, world_size=processes, store=store, timeout=_PATIENCE
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the trial's processes this is: 0, the one whose reports count, or another."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes the trial has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def part(batch: Tensor) -> Tensor:
    """This process's part of a batch [B, ...]. Parts differ in length by one at most, and may be
    empty."""
    return batch.tensor_split(processes())[rank()]


def total(value: Tensor) -> Tensor:
    """The sum of all processes' values; the tensor itself."""
    if processes() > 1:
        dist.all_reduce(value)
    return value


def wrap(model: nn.Module) -> nn.Module:
    """The model, on its device, such that all processes train the same one.

    Call what it gives, in each process with its own part of the batch: gradients are the mean of
    the processes', and batch normalisation is over the whole batch. Weights are process 0's at
    first. The model that is given stays the one to save and to load: its names are those that one
    process's has.
    """
    if processes() == 1:
        return model
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _BatchNorm  # in its place, with its weights
    return DistributedDataParallel(model)


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Divides the model, and what an optimizer made afterwards keeps of it, among the processes: a
    block is whole only while it computes, on GPUs in bf16. (FSDP2, torch's fully_shard.)"""
    if processes() == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = torch.bfloat16 if torch.cuda.is_available() else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for part in (*blocks, model):
        # The last, too, is divided again after a forward pass: what is saved then is a part.
        fully_shard(part, mp_policy=policy, reshard_after_forward=True)


class _Sum(torch.autograd.Function):
    """The sum of all processes' values, of which each takes a part in the loss."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].clone())


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the parts of all processes; torch's SyncBatchNorm is for GPUs only.

    [B, C, ...] to the same.
    """

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        shape = [1, -1] + [1] * (input.dim() - 2)
        others = [d for d in range(input.dim()) if d != 1]
        values = input.float()
        count = torch.full((1,), input.numel() / input.shape[1], device=input.device)
        sums = _Sum.apply(torch.cat([values.sum(others), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(others)) / count
        if self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)
