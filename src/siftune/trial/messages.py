"""The messages between a worker and the process of a trial."""

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
    study: Path  # the study's directory
    launched_in: Path  # the working directory of the driver
    in_trial_directory: bool = True  # a trial's working directory; else `launched_in`
    reuse: bool = False  # a process trains one trial after another
    share_gpu: bool = False  # several trials use one GPU
    measure_gpu: bool = False  # say how much GPU memory a trial uses
    resources: tuple[dict[str, float], ...] = ({"CPU": 1.0},)  # of each process of a trial
    threads: int = 1  # that a process's libraries may use


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """How much memory (MiB) of a GPU that several trials share one trial may use."""

    limit_mib: float | None  # None: all of the GPU
    # Once the first epoch shows what the trial uses, the GPU is divided: its usable memory, by as
    # many trials as fit, at most `most`. None: not divided.
    divide: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """One run of a trial: from its start, or from a checkpoint, to its end or a pause."""

    trial: str  # its name, as 0001
    config: Config
    epoch: int = 0  # the last epoch that it has trained
    checkpoint: Path | None = None  # directory of that epoch's checkpoint
    last_epoch: int | None = None  # the trial ends after it; None: when its function ends
    run: str = ""  # tells the checkpoints of this run of the trial from those of another
    gpu: GpuShare | None = None
    rank: int = 0  # of this process among those of the trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One epoch is trained. From ranks above 0 nothing but the fact counts."""

    epoch: int
    metrics: dict[str, Any]  # as JSON can hold them
    seconds: float  # since the report before it, or since the start of the run
    checkpoint: str | None = None  # path relative to the study's directory
    gpu_mib: int | None = None  # the most GPU memory used so far, where it is measured


class Answer(enum.Enum):
    """The answer to a report."""

    CONTINUE = "continue"
    STOP = "stop"


class Cause(enum.StrEnum):
    """Why a run of a trial ended before its function did."""

    LOST = "lost"  # its node was lost, or Ray there: not the trial's doing
    CRASH = "crash"  # its process ended by itself: a segmentation fault, a kill
    HANG = "hang"  # no report for too long
    MEMORY = "memory"  # the GPU or the node has run out of memory
    CHECKPOINT = "checkpoint"  # the checkpoint to continue from cannot be read
    STORAGE = "storage"  # the study's directory cannot be written: no trial could save anything
    NODE = "node"  # the node's own disk cannot be written
    ERROR = "error"  # an exception of the trainable: it would be the same again


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The run of a trial is over. Without a cause its function returned, or was stopped."""

    cause: Cause | None = None
    error: str | None = None  # a traceback, or a sentence
    kind: str | None = None  # name of the exception's class
    path: str | None = None  # what could not be written, for STORAGE and NODE
    killed: bool = False  # by the worker that had started it
    signal: int = 0  # that somebody else, or the kernel, has sent


Message = Report | End
