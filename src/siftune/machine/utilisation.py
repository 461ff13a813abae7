"""How busy the GPUs themselves are: what the driver's nvidia-smi sees while a study runs.

In a job slurm/node.sh has it look on every node, and adds up in a file of the node's in the job's
directory; here a thread does. What it tells, `utilization.gpu`, is the part of the second before
the look, or less, in which a kernel ran. A GPU divided by MIG has no such figure.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMAND = "nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop=5"
_PART, _MOST_S = 0.05, 60.0  # how far behind what is read may be: of the time so far, and at most


@dataclass(frozen=True, slots=True)
class Usage:
    """What was seen of some GPUs: how often one was looked at, and the sum of the percents."""

    samples: int = 0
    percents: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.samples + other.samples, self.percents + other.percents)

    @property
    def utilisation(self) -> float | None:
        """From 0 to 1; None where nothing was seen."""
        return round(self.percents / self.samples / 100, 4) if self.samples else None


Usages = Mapping[str, Usage]  # by node


def to_summary(usages: Usages) -> dict[str, Any]:
    """The entries of summary.json: the mean over all GPUs and the time, and each node's."""
    return {
        "gpu_utilisation": sum(usages.values(), Usage()).utilisation,
        "gpu_nodes": {
            node: {"samples": usage.samples, "utilisation": usage.utilisation}
            for node, usage in sorted(usages.items())
            if usage.samples
        },
    }


def from_summary(content: Mapping[str, Any]) -> Usages:
    return {
        node: Usage(seen["samples"], 100 * seen["utilisation"] * seen["samples"])
        for node, seen in content.get("gpu_nodes", {}).items()
    }


def total(one: Usages, other: Usages) -> Usages:
    return {node: one.get(node, Usage()) + other.get(node, Usage()) for node in {**one, **other}}


@contextmanager
def watched(job: Path | None, *, gpus: bool) -> Iterator[Callable[[], Usages]]:
    """Gives what says what was seen since the start. `job`: the directory of the Slurm job that
    this is a part of; without one this machine's GPUs are looked at, if it has any."""
    if job is not None:
        yield _Files(job / "gpus")
    elif gpus and shutil.which("nvidia-smi"):
        with _looking() as seen:
            yield seen
    else:
        yield dict


class _Files:
    """Reads what the nodes of a job have written, not much oftener than they write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._begun = time.monotonic()
        self._next = 0.0
        self._seen: dict[str, Usage] = {}

    def __call__(self) -> Usages:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + min(_MOST_S, _PART * (now - self._begun))
            with suppress(OSError):  # the job ends
                for path in self._directory.glob("[!.]*"):
                    samples, percents = path.read_text().split()
                    self._seen[path.name] = Usage(int(samples), int(percents))
        return self._seen


@contextmanager
def _looking() -> Iterator[Callable[[], Usages]]:
    command = _COMMAND.split()
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    # Line by line, which it is not bound to write into a pipe by itself.
    buffered = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
    process = subprocess.Popen(
        [*buffered, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is the study's; without its reader it ends by itself
    )
    assert process.stdout is not None
    node, seen = os.uname().nodename.partition(".")[0], [Usage()]

    def read(lines: Iterator[str]) -> None:
        for line in lines:
            if line.strip().isdecimal():  # else [N/A], or an error
                seen[0] += Usage(1, int(line))

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    try:
        yield lambda: {node: seen[0]}
    finally:
        process.kill()
        process.wait()
