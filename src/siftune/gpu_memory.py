"""What this process takes of a GPU that several share, measured and bounded; of torch's memory."""

import gc
import os
import subprocess
import sys
from contextlib import suppress

# Of the driver's for each process, its context and kernels, where nvidia-smi does not tell: in a
# process namespace of one's own, with MIG. A guess on the safe side, and not measured.
_CONTEXT_MIB = 600.0

_context_mib: float | None = None
_limit_mib: float | None = None


def limit(mib: float | None) -> None:
    """Has torch raise its OutOfMemoryError where this process would take more than that; None: more
    than there is."""
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


def forget() -> None:
    """The trial before has ended: what it took is given back, and no longer counts."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def taken_mib() -> int | None:
    """The most that the trial has taken so far, with the driver's part; None if it has not used
    CUDA by torch."""
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
        held = _held_mib(os.getpid())
        # Where it is less than torch has reserved it is another process's, of another namespace.
        _context_mib = _CONTEXT_MIB if held is None or held < reserved_mib else held - reserved_mib
    return _context_mib


def _held_mib(pid: int) -> float | None:
    """What nvidia-smi says that a process holds, if it knows it."""
    command = "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits"
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=20)
        for line in done.stdout.splitlines():
            number, _, mib = line.partition(",")
            if number.strip() == str(pid) and mib.strip().isdecimal():  # else [N/A]
                return float(mib)
    return None
