"""Measures and limits the memory that this process uses on a GPU shared by several trials."""

import gc
import os
import sys

from siftune.machine import gpus

# Memory that the GPU driver uses for a process (its context and kernels), for when nvidia-smi does
# not report it: in a separate process namespace, or with MIG. An H200 used 676 MiB.
_CONTEXT_MIB = 700.0

_context_mib: float | None = None
_limit_mib: float | None = None


def limit(mib: float | None) -> None:
    """Makes torch raise OutOfMemoryError when this process needs more than `mib` MiB of its GPU.

    None: no limit except the GPU's own memory.
    """
    import torch

    global _limit_mib
    _limit_mib = mib
    # As in torch.manual_seed: takes effect now, or when the trial first uses CUDA.
    torch.cuda._lazy_call(_apply)


def _apply() -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory / 2**20
    driver = _CONTEXT_MIB if _context_mib is None else _context_mib
    allowed = total if _limit_mib is None else _limit_mib - driver
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, allowed / total)))


def part_mib(used_mib: float, usable_mib: float, most: int) -> float:
    """Returns the memory in MiB that each trial may use on a GPU with `usable_mib` MiB.

    Each trial needs `used_mib` MiB. As many trials share the GPU as fit, but at most `most`.
    """
    return usable_mib / fitting(usable_mib, used_mib, most)


def fitting(usable_mib: float, trial_mib: float, most: int) -> int:
    """Returns how many trials of `trial_mib` MiB share a GPU: at least 1 and at most `most`."""
    return max(1, min(most, int(usable_mib / max(1.0, trial_mib))))


def forget() -> None:
    """Frees the GPU memory that the previous trial left in this process and resets the peak."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used_mib() -> int | None:
    """Returns the trial's peak GPU memory in MiB, including the driver's part.

    Returns None if the trial has not used CUDA through torch.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    reserved = torch.cuda.memory_reserved() / 2**20
    peak = torch.cuda.max_memory_reserved() / 2**20
    return round(peak + _driver_mib(reserved))


def _driver_mib(reserved_mib: float) -> float:
    """Returns the driver's memory for this process in MiB, without torch's. Measured once."""
    global _context_mib
    if _context_mib is None:
        held = gpus.process_mib(os.getpid())
        # If it is less than torch has reserved, it is that of a process in another namespace.
        _context_mib = _CONTEXT_MIB if held is None or held < reserved_mib else held - reserved_mib
    return _context_mib
