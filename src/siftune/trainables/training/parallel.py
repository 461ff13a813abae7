"""A trial on several GPUs: one process per GPU, which train one model together.

In a trial with one process, the functions here return their argument unchanged, so the same
trainable works in both cases. This module does not use Ray. The workers start the processes.
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

_TIMEOUT = timedelta(days=1)  # long, because the driver detects a trial that hangs


@contextmanager
def joined(rank: int, processes: int, store: Any) -> Iterator[None]:
    """Makes this process a member of the trial's process group within the context.

    `rank`: its rank, from 0. `store`: the torch.distributed.Store through which they meet.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=processes, store=store, timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Returns the rank of this process in its trial. Only the reports of rank 0 count."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Returns the number of processes of the trial."""
    return dist.get_world_size() if dist.is_initialized() else 1


def part(batch: Tensor) -> Tensor:
    """Returns this process's part of a batch [B, ...].

    The parts' lengths differ by at most one. A part may be empty.
    """
    return batch.tensor_split(processes())[rank()]


def total(value: Tensor) -> Tensor:
    """Sums the values of all processes, in place. Returns the same tensor."""
    if processes() > 1:
        dist.all_reduce(value)
    return value


def wrap(model: nn.Module) -> nn.Module:
    """Wraps a model, which is already on its device, so that all processes train the same weights.

    Call the returned module in each process with that process's part of the batch. Gradients are
    averaged over the processes, and batch normalisation covers the whole batch. The initial weights
    are those of rank 0. Save and load the original model: its parameter names are the same as in a
    single process.
    """
    if processes() == 1:
        return model
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _BatchNorm  # in place, which keeps its weights
    return DistributedDataParallel(model)


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Shards the model among the processes with FSDP2, torch's `fully_shard`.

    The state of an optimizer that is created afterwards is sharded as well. The parameters of
    a block are gathered only while the block is computed. On GPUs it computes in bf16.
    """
    if processes() == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = torch.bfloat16 if torch.cuda.is_available() else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for module in (*blocks, model):
        # The model itself is resharded after a forward pass too, so that each process saves a part.
        fully_shard(module, mp_policy=policy, reshard_after_forward=True)


class _Sum(torch.autograd.Function):
    """Sums the values of all processes, and in the backward pass their gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].clone())


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the parts of all processes, [B, C, ...] to the same shape.

    torch's SyncBatchNorm supports GPUs only.
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
