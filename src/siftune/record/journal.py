"""Writes and reads the study directory.

The journal, trials.jsonl, is the only state of a study. The other files in the directory are
derived from it. Each line is one event of one trial:

    start    config                            the trial has begun
    epoch    epoch, metrics, seconds           one epoch is trained; node, gpu, checkpoint if known;
                                               gpu_mib: memory used so far on a shared GPU
    restart  epoch, cause, error if any;       the trial continues from that epoch's checkpoint
             donor, config, checkpoint for PBT
    pause                                      the trial waits for the scheduler's decision
    resume                                     the trial continues from its last checkpoint
    end      state, error if any               completed, pruned or failed

No file locks are used, because NFS and Lustre may not support them across nodes. Instead, only one
process writes, and driver.json names it.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siftune.machine.files import replacing
from siftune.space import Config

Event = dict[str, Any]


def trial_name(number: int) -> str:
    """Returns the name of a trial. `number`: 0 for the first trial."""
    return f"{number + 1:04d}"


STATES = ("completed", "pruned", "failed")  # of trials that have ended
UNDER_WAY = ("running", "paused")
# Causes of a restart that count against --retries.
TRIED_AGAIN = ("crash", "hang", "memory")


@dataclass(slots=True)
class Trial:
    """The state of one trial, according to the journal."""

    trial: str
    config: Config
    state: str = "running"
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)  # metrics by epoch
    checkpoints: dict[int, str] = field(default_factory=dict)  # path in the study directory
    seconds: float = 0.0  # inside the trainable
    restarts: int = 0
    retries: int = 0  # restarts that count against --retries
    error: str | None = None
    node: str | None = None
    gpu: str | None = None
    gpu_mib: float | None = None  # most memory used on a shared GPU
    needs_whole_gpu: bool = False  # it ran out of memory, so it is retried with a GPU to itself
    clone: str | None = None  # the copied donor checkpoint, until an epoch is trained from it

    @property
    def epoch(self) -> int:
        """The last trained epoch; 0 before the first."""
        return max(self.epochs, default=0)


def fold(trials: dict[str, Trial], event: Event) -> Trial:
    """Applies one event to `trials`, and returns the trial of that event."""
    name, kind = event["trial"], event["event"]
    if kind == "start":
        trials[name] = Trial(name, event["config"])
    trial = trials[name]
    if kind in ("epoch", "resume", "restart"):
        trial.state = "running"
    if kind == "pause":
        trial.state = "paused"
    elif kind == "epoch":
        trial.clone = None
        trial.epochs[event["epoch"]] = event["metrics"]
        trial.seconds += event["seconds"]
        trial.node, trial.gpu = event.get("node"), event.get("gpu")
        if "gpu_mib" in event:
            trial.gpu_mib = max(event["gpu_mib"], trial.gpu_mib or 0.0)
        if "checkpoint" in event:
            trial.checkpoints[event["epoch"]] = event["checkpoint"]
    elif kind == "restart":
        trial.restarts += "donor" not in event
        trial.retries += event.get("cause") in TRIED_AGAIN
        trial.needs_whole_gpu |= event.get("cause") == "memory"
        if "donor" in event:
            trial.config, trial.clone = event["config"], event.get("checkpoint")
            # The trial's own checkpoints of that epoch and later hold other weights.
            trial.checkpoints = {e: p for e, p in trial.checkpoints.items() if e < event["epoch"]}
            trial.checkpoints |= {event["epoch"]: trial.clone} if trial.clone else {}
        if event.get("cause") == "checkpoint":  # later ones cannot be trusted
            trial.checkpoints = {e: p for e, p in trial.checkpoints.items() if e <= event["epoch"]}
    elif kind == "end":
        trial.state, trial.error = event["state"], event.get("error")
    return trial


class StorageError(OSError):
    """The study directory cannot be written. Everything written before is intact."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror, str(path))

    def __str__(self) -> str:
        path = Path(self.filename)
        fix = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "your quota is used up: free some space",
        }.get(self.errno or 0, "make it writable")
        resume = f"then run again with --resume {path.parent.name}"
        return f"cannot write {path}: {self.strerror}; {fix}, {resume}"


class Journal:
    """Writes a study directory. Only one process may do so.

    Every method that writes raises StorageError if the file system refuses.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "trials.jsonl"
        try:
            # Unbuffered: each line is one write, so it is in the file completely or not at all.
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(self._path, error) from None

    def append(self, event: Event) -> None:
        """Appends one line. Once written, it survives a kill of this process."""
        line = (json.dumps(event) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # The next line must not follow a part of this one.
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise StorageError(self._path, error) from None

    def sync(self) -> None:
        """Flushes the lines to the disk, so that they survive a power cut."""
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise StorageError(self._path, error) from None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes the file `name` as JSON, and replaces the old file atomically."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes the file `name` atomically: a reader sees the old or the new one, never a part."""
        target = self.directory / name
        try:
            with replacing(target, durable=True) as temporary:
                temporary.write_text(text)
        except OSError as error:
            raise StorageError(target, error) from None

    def close(self) -> None:
        self._file.close()


def events(directory: Path) -> Iterator[Event]:
    """Yields the events of a study directory in order. A truncated last line is skipped.

    Raises JournalError if an earlier line is not an event.
    """
    path = directory / "trials.jsonl"
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise JournalError(f"{path}, line {number} is not an event: fix it by hand") from None


class JournalError(ValueError):
    """trials.jsonl is damaged in a way that a kill or a power cut cannot cause."""


def mend(directory: Path) -> bool:
    """Removes a truncated last line from trials.jsonl, and returns whether there was one.

    Call it before lines are appended. The event in the removed line is treated as
    if it had not happened.
    """
    path = directory / "trials.jsonl"
    content = path.read_bytes() if path.exists() else b""
    whole = _whole(content)
    if whole == len(content):
        return False
    os.truncate(path, whole)
    return True


def _whole(content: bytes) -> int:
    """Returns the size up to the last complete line. After a power cut a file may end in zeros."""
    end = len(content)
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        line = content[begin:end]
        if line.endswith(b"}\n") and b"\0" not in line:
            break
        end = begin
    return end


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file of the study directory; {} if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}
