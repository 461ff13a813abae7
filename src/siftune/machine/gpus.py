"""The GPUs of this machine, and the tools of their vendors.

This is the only Python module that calls nvidia-smi; slurm/gpus.sh calls it on the nodes of a job.
NVIDIA and AMD GPUs are detected, and trials see only those assigned to them. Utilisation and the
memory of a process are known for NVIDIA GPUs only.
"""

import ctypes
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_QUERY = "nvidia-smi --format=csv,noheader,nounits"
_UTILISATION = f"{_QUERY} --query-gpu=utilization.gpu --loop=5"
_PROCESSES = f"{_QUERY} --query-compute-apps=pid,used_memory"
# Maximum age of the samples of a job's nodes: a fraction of the time so far, and a limit in s.
_STALE_PART, _STALE_S = 0.05, 60.0

# ── Detection ───────────────────────────────────────────────────────────────────────────────────


def count() -> int:
    """Returns the number of GPUs that this process may use, as torch counts them."""
    # Device files first: importing torch takes seconds, and most machines have no GPU.
    if not any_here():
        return 0
    import torch

    return torch.cuda.device_count()


def memory_gib() -> float | None:
    """Returns the memory of a GPU of this node, in GiB; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30


def any_here() -> bool:
    """Returns whether this machine has a GPU of NVIDIA or AMD, also if torch cannot use it."""
    return nvidia_devices() > 0 or has_amd()


def nvidia_devices() -> int:
    """Returns the number of NVIDIA's device files."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def has_amd() -> bool:
    """Returns whether AMD's kernel driver is loaded."""
    return Path("/dev/kfd").exists()


def nvidia_driver() -> str | None:
    """Returns the version of NVIDIA's kernel driver; None if it is not loaded."""
    path = Path("/proc/driver/nvidia/version")
    return parse_driver_version(path.read_text()) if path.exists() else None


def parse_driver_version(text: str) -> str | None:
    """Returns the version in the text of /proc/driver/nvidia/version, for either kernel module."""
    match = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)(?:\s|$)", text, re.MULTILINE)
    return match[1] if match else None


def has_nvidia_smi() -> bool:
    """Returns whether nvidia-smi is installed."""
    return shutil.which("nvidia-smi") is not None


LIST_COMMAND = ["nvidia-smi", "-L"]


def parse_list(text: str) -> tuple[int, int]:
    """Returns the numbers of GPUs and of MIG instances in the output of LIST_COMMAND."""
    return len(re.findall(r"^GPU ", text, re.M)), len(re.findall(r"^\s+MIG ", text, re.M))


def close_nvml() -> None:
    """Ends NVML in this process, if torch.cuda.is_available() has started it.

    The library may run a thread, which a forked process would not have.
    """
    with suppress(OSError):  # it is not loaded
        nvml = ctypes.CDLL("libnvidia-ml.so.1", mode=os.RTLD_NOLOAD)
        for _ in range(1000):  # it counts how often it was started
            if nvml.nvmlShutdown():
                break


def visible(names: tuple[str, ...]) -> dict[str, str]:
    """Returns the environment variables that make a process see these GPUs and no others.

    `names`: as in CUDA_VISIBLE_DEVICES. AMD's variables are included if this process has them.
    """
    variables = {"CUDA_VISIBLE_DEVICES"}
    variables |= {n for n in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if n in os.environ}
    return dict.fromkeys(variables, ",".join(names))


def process_mib(pid: int) -> float | None:
    """Returns the GPU memory of a process, in MiB; None if nvidia-smi does not know it: in a
    container with its own process ids, or on a GPU divided by MIG."""
    with suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(_PROCESSES.split(), capture_output=True, text=True, timeout=20)
        for line in result.stdout.splitlines():
            number, _, mib = line.partition(",")
            if number.strip() == str(pid) and mib.strip().isdecimal():  # not [N/A]
                return float(mib)
    return None


# ── Utilisation ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Usage:
    """Samples of the utilisation of GPUs: their number, and the sum of their percentages.

    A sample is nvidia-smi's `utilization.gpu`: the percentage of the last sampling period, at most
    a second, in which a kernel ran. A GPU divided by MIG has no samples.
    """

    samples: int = 0
    percents: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.samples + other.samples, self.percents + other.percents)

    @property
    def utilisation(self) -> float | None:
        """The mean utilisation, from 0 to 1; None without samples."""
        return round(self.percents / self.samples / 100, 4) if self.samples else None


Usages = Mapping[str, Usage]  # by node


@contextmanager
def watched(job: Path | None, *, gpus: bool) -> Iterator[Callable[[], Usages]]:
    """Yields a function that returns the samples since the start.

    `job`: the directory of the Slurm job, where slurm/gpus.sh writes the samples of each node.
    Without a job, a thread samples this machine's GPUs. `gpus`: whether it has any.
    """
    if job is not None:
        yield _JobFiles(job / "gpus")
    elif gpus and has_nvidia_smi():
        with _sampled() as usages:
            yield usages
    else:
        yield dict


class _JobFiles:
    """Reads the files that the nodes of a job write, about as often as they change."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._begun = time.monotonic()
        self._next = 0.0
        self._usages: dict[str, Usage] = {}

    def __call__(self) -> Usages:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + min(_STALE_S, _STALE_PART * (now - self._begun))
            with suppress(OSError):  # the job is ending
                for path in self._directory.glob("[!.]*"):
                    samples, percents = path.read_text().split()
                    self._usages[path.name] = Usage(int(samples), int(percents))
        return self._usages


@contextmanager
def _sampled() -> Iterator[Callable[[], Usages]]:
    command = _UTILISATION.split()
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={devices}")
    # nvidia-smi buffers its lines when it writes to a pipe.
    buffered = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
    process = subprocess.Popen(
        [*buffered, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C stops the study; without a reader nvidia-smi ends
    )
    assert process.stdout is not None
    node, usage = os.uname().nodename.partition(".")[0], [Usage()]

    def read(lines: Iterator[str]) -> None:
        for line in lines:
            if line.strip().isdecimal():  # not [N/A] or an error
                usage[0] += Usage(1, int(line))

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    try:
        yield lambda: {node: usage[0]}
    finally:
        process.kill()
        process.wait()
