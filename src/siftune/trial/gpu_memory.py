"""The memory that this process uses of a GPU which several trials share, measured and limited."""

import gc
import os
import sys

from siftune.machine import gpus

# What the driver uses for a process, its context and kernels, where nvidia-smi does not tell: in a
# process namespace of its own, with MIG. A guess on the safe side, not measured.
_CONTEXT_MIB = 600.0

_context_mib: float | None = None
_limit_mib: float | None = None


def limit(mib: float | None) -> None:
    """Has torch raise its OutOfMemoryError where this process would use more than `mib` of its GPU.
    None: no limit but the GPU's."""
    import torch

    global _limit_mib
    _limit_mib = mib
    # As torch.manual_seed does: now, or when the trial begins to use CUDA, if it does.
    torch.cuda._lazy_call(_apply)


def _apply() -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory / 2**20
    driver = _CONTEXT_MIB if _context_mib is None else _context_mib
    allowed = total if _limit_mib is None else _limit_mib - driver
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, allowed / total)))


def part_mib(used_mib: float, usable_mib: float, most: int) -> float:
    """The memory that each trial may use of a GPU with `usable_mib`, where each uses `used_mib` and
    as many share it as fit, at most `most`."""
    return usable_mib / fitting(usable_mib, used_mib, most)


def fitting(usable_mib: float, trial_mib: float, most: int) -> int:
    """How many trials of that size share a GPU, at most `most`; one that is too large is alone."""
    return max(1, min(most, int(usable_mib / max(1.0, trial_mib))))


def forget() -> None:
    """Gives back what the trial before used in this process, and counts from zero."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used_mib() -> int | None:
    """The most that the trial has used so far, with the driver's part; None if it has not used
    CUDA through torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    reserved = torch.cuda.memory_reserved() / 2**20
    peak = torch.cuda.max_memory_reserved() / 2**20
    return round(peak + _driver_mib(reserved))


def _driver_mib(reserved_mib: float) -> float:
    """What the driver has for this process, besides what torch has reserved. Asked once."""
    global _context_mib
    if _context_mib is None:
        held = gpus.process_mib(os.getpid())
        # Where it is less than torch has reserved it is another process's, of another namespace.
        _context_mib = _CONTEXT_MIB if held is None or held < reserved_mib else held - reserved_mib
    return _context_mib
