"""The environment variables of a Slurm job, and those that its scripts set for the driver.

No other Python module reads SLURM_* variables. Nothing heavy is imported.
"""

import os
from dataclasses import dataclass
from pathlib import Path


def job() -> str | None:
    """Returns the id of this Slurm job, or of the first job in a chain of jobs; None outside a
    job."""
    return os.environ.get("SIFTUNE_ORIGIN") or None


def job_directory() -> Path | None:
    """Returns the directory that slurm/tune.sbatch made for the address, token and logs of its job;
    None without one."""
    directory = os.environ.get("SIFTUNE_JOB")
    return Path(directory) if directory else None


def submit_command() -> str | None:
    """Returns the command that submits such a job again, without the study; None outside a job."""
    return os.environ.get("SIFTUNE_SUBMIT") or None


def number() -> str | None:
    """Returns the number by which `squeue` lists this job; None outside a job."""
    return os.environ.get("SLURM_JOB_ID") or None


def tell_study(directory: Path, resume: str) -> None:
    """Tells the scripts of this job which study it runs, and which command resumes it. Does nothing
    outside a job."""
    if job := job_directory():
        (job / "resume").write_text(f"{resume}\n")
        (job / "study").write_text(f"{directory}\n")


@dataclass(frozen=True, slots=True)
class Allocation:
    """The number of nodes of a job, and its CPUs and GPUs on each node."""

    nodes: int
    cpus: int
    gpus: int


def allocation() -> Allocation:
    """Returns the resources of the job that this process is in. Raises KeyError outside a job."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
    return Allocation(
        nodes=int(os.environ["SLURM_JOB_NUM_NODES"]),
        cpus=int(cpus),
        gpus=int(os.environ.get("SLURM_GPUS_ON_NODE", "0")),
    )


def describe_job() -> tuple[str, int] | None:
    """Returns a description of the job that this process is in, and the number of its GPUs on this
    node; None outside a job."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    number, nodes = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_JOB_NUM_NODES", "?")
    cpus, gpus = len(os.sched_getaffinity(0)), int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    return f"job {number} on {nodes} nodes; {cpus} CPUs and {gpus} GPUs on this node", gpus
