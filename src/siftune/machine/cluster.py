"""The resources of a study: this machine, or the nodes of a Slurm job.

The only Python that reads SLURM_*. Nothing heavy is imported before it is needed.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """What one node gives to trials."""

    cpus: float
    gpus: float

    def slots(self, *, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials of this size, at most one GPU, run on the node at once."""
        by_cpu = int(self.cpus / cpus_per_trial + 1e-9)
        if gpus_per_trial == 0:
            return by_cpu
        # A fraction stays on one GPU.
        return min(by_cpu, int(self.gpus) * int(1 / gpus_per_trial + 1e-9))


def slots(nodes: list[Node], *, cpus_per_trial: float, gpus_per_trial: float) -> int:
    """How many trials of this size run on the nodes at once.

    One on several GPUs has a process for each, with its part of the CPUs. They are on one node
    where one has that many GPUs.
    """
    processes = max(1, int(gpus_per_trial))
    cpus, gpus = cpus_per_trial / processes, gpus_per_trial / processes
    found = [node.slots(cpus_per_trial=cpus, gpus_per_trial=gpus) for node in nodes]
    if max(found, default=0) < processes:
        return sum(found) // processes
    return sum(here // processes for here in found)


def nodes() -> list[Node]:
    """What trials may use: the nodes of the Slurm job whose cluster this is, else this machine."""
    if job_directory() is None:
        return [Node(cpus=len(os.sched_getaffinity(0)), gpus=_gpus())]
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    return [Node(cpus=int(cpus), gpus=int(gpus))] * int(os.environ["SLURM_JOB_NUM_NODES"])


def job() -> str | None:
    """The Slurm job that this is a part of: of several that follow each other the first."""
    return os.environ.get("SIFTUNE_ORIGIN") or None


def slurm_job() -> tuple[str, int] | None:
    """The Slurm job that this process is part of, in words, and its GPUs here; None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    number, nodes = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_JOB_NUM_NODES", "?")
    cpus, gpus = len(os.sched_getaffinity(0)), int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    return f"job {number} on {nodes} nodes; {cpus} CPUs and {gpus} GPUs on this one", gpus


def job_directory() -> Path | None:
    """The directory that slurm/tune.sbatch made for its job: address, token, logs."""
    found = os.environ.get("SIFTUNE_JOB")
    return Path(found) if found else None


def _gpus() -> int:
    # Device files first: asking torch costs seconds of import, and most machines have no GPU.
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def gpu_gib() -> float | None:
    """The memory of a GPU of this node; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30


# Ray's files on this machine are below it, and not below TMPDIR: a socket's path has 107 bytes, of
# which Ray needs most. In a job they are below the site's NODE_TMP.
LOCAL_TMP = Path("/tmp")
