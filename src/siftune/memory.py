"""What a warm process holds on to between trials."""

import gc
import os
import sys
from pathlib import Path

from siftune.failures import Unfit

# Above what it held after its first trial: data sets on the device and libraries stay, by design.
_HOST_GROWTH_MIB = 1024
_DEVICE_GROWTH_MIB = 512

_first: tuple[float, float] | None = None


def check() -> None:
    """Called between two trials of one process. Raises Unfit if it holds much more than before."""
    global _first
    gc.collect()
    now = (_host_mib(), _device_mib())
    if _first is None:
        _first = now
        # Libraries' objects, a hundred thousand of torch's alone: to look through them again and
        # again is most of what a short trial costs.
        gc.freeze()
    host, device = (held - before for held, before in zip(now, _first, strict=True))
    if host > _HOST_GROWTH_MIB or device > _DEVICE_GROWTH_MIB:
        raise Unfit(f"holds {host:.0f} MiB of the host and {device:.0f} MiB of the device more")


def _host_mib() -> float:
    resident_pages = Path("/proc/self/statm").read_text().split()[1]
    return int(resident_pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _device_mib() -> float:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() / 2**20
