"""The messages between a worker and a trial's process."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune.space import Config
from siftune.trainables import TrainableSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings that all trials of a study share."""

    trainable: TrainableSpec
    study: Path  # the study directory
    launched_in: Path  # the working directory of the driver
    in_trial_directory: bool = True  # trials work in their own directory, else in `launched_in`
    reuse: bool = False  # a process trains several trials, one after another
    share_gpu: bool = False  # several trials use one GPU
    measure_gpu: bool = False  # report how much GPU memory a trial uses
    resources: tuple[dict[str, float], ...] = ({"CPU": 1.0},)  # of each process of a trial
    threads: int = 1  # threads that a process's libraries may use


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """The memory (MiB) that one trial may use on a GPU shared by several trials."""

    limit_mib: float | None  # None: all of the GPU
    # (usable memory, most trials): once the first epoch shows how much memory the trial needs, the
    # usable memory is divided among as many trials as fit. None: not divided.
    divide: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """One run of a trial, from its start or a checkpoint to its end or a pause."""

    trial: str  # its name, such as 0001
    config: Config
    epoch: int = 0  # the last epoch that the trial has completed
    checkpoint: Path | None = None  # directory of that epoch's checkpoint
    last_epoch: int | None = None  # the trial ends after it; None: when its function ends
    run: str = ""  # distinguishes this run's checkpoints from those of the trial's other runs
    gpu: GpuShare | None = None
    rank: int = 0  # of this process among those of the trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One epoch is complete. The values of ranks above 0 are ignored."""

    epoch: int
    metrics: dict[str, Any]  # JSON values
    seconds: float  # since the previous report, or since the start of the run
    checkpoint: str | None = None  # path relative to the study directory
    gpu_mib: int | None = None  # peak GPU memory so far, if measured


class Answer(enum.Enum):
    """The answer to a report."""

    CONTINUE = "continue"
    STOP = "stop"


class Cause(enum.StrEnum):
    """Why a run of a trial ended before its function returned."""

    LOST = "lost"  # its node was lost, or Ray on the node: not the trial's fault
    CRASH = "crash"  # its process ended unexpectedly, or could not read: another try may work
    HANG = "hang"  # no report for too long
    MEMORY = "memory"  # the GPU or the node ran out of memory
    CHECKPOINT = "checkpoint"  # the checkpoint to continue from cannot be read
    STORAGE = "storage"  # the study directory cannot be written, so no trial can save anything
    NODE = "node"  # the node's own disk cannot be written
    ERROR = "error"  # the trainable raised an exception; a retry would raise it again


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a run. Without a cause, the trial's function returned or was stopped."""

    cause: Cause | None = None
    error: str | None = None  # a traceback or a sentence
    kind: str | None = None  # name of the exception's class
    path: str | None = None  # the path that could not be written, for STORAGE and NODE
    killed: bool = False  # by the worker that started it
    signal: int = 0  # sent by the kernel or by another process; 0: none


Message = Report | End
