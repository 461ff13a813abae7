"""The CPUs and GPUs that trials may use, on this machine or on the nodes of a Slurm job."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from siftune.machine import gpus, slurm

_ROUNDING = 1e-9  # tolerance for quotients of fractions

# Ray's directory on this machine is created here and not in TMPDIR, because the path of a socket
# has at most 107 bytes, and Ray needs most of them. A job uses its site's NODE_TMP.
LOCAL_TMP = Path("/tmp")


@dataclass(frozen=True, slots=True)
class Node:
    """The resources that one node offers to trials."""

    cpus: float
    gpus: float

    def slots(self, *, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """Returns how many trials of this size, with at most one GPU each, run here at once."""
        by_cpu = int(self.cpus / cpus_per_trial + _ROUNDING)
        if gpus_per_trial == 0:
            return by_cpu
        # A fraction stays on one GPU.
        return min(by_cpu, int(self.gpus) * int(1 / gpus_per_trial + _ROUNDING))


def slots(
    nodes: list[Node], *, cpus_per_trial: float, gpus_per_trial: float, processes: int
) -> int:
    """Returns how many trials of this size run on the nodes at once.

    The processes of a trial have equal shares of its CPUs and GPUs. They are on one node if any
    node has enough.
    """
    cpus, gpus = cpus_per_trial / processes, gpus_per_trial / processes
    fitting = [node.slots(cpus_per_trial=cpus, gpus_per_trial=gpus) for node in nodes]
    if max(fitting, default=0) < processes:
        return sum(fitting) // processes
    return sum(here // processes for here in fitting)


def nodes() -> list[Node]:
    """Returns the nodes of the Slurm job if a cluster was started on them, else this machine."""
    if slurm.job_directory() is None:
        return [Node(cpus=len(os.sched_getaffinity(0)), gpus=gpus.count())]
    here = slurm.allocation()
    return [Node(cpus=here.cpus, gpus=here.gpus)] * here.nodes


def memory_gib() -> float:
    """Returns the memory of this machine, in GiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def threads(cpus: float) -> int:
    """Returns how many threads the libraries of a process with this number of CPUs may use.

    If the user has set OMP_NUM_THREADS to a number, that number is returned.
    """
    with suppress(KeyError, ValueError):
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, int(cpus))
