"""The study directory, written and read.

The journal, trials.jsonl, is the truth: everything else in the directory follows from it. A line
is one event of one trial:

    start    config                            the trial has begun
    epoch    epoch, metrics, seconds           one epoch is trained; node, gpu, checkpoint if known;
                                               gpu_mib, what it took so far of a GPU that is shared
    restart  epoch, cause, error if any;       it goes on from the checkpoint of that epoch
             donor, config, checkpoint for PBT
    pause                                      it waits, with its checkpoint, for the scheduler
    resume                                     it goes on from there
    end      state, error if any               completed, pruned or failed

No file locks are used, which NFS and Lustre may lack or keep to one node: one process writes, and
driver.json says which.
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
    """The name of trial `number`, 0 for the first."""
    return f"{number + 1:04d}"


STATES = ("completed", "pruned", "failed")  # of trials that are over
UNDER_WAY = ("running", "paused")
# Causes of a restart that are the trial's own: it is tried again so often and no more.
TRIED_AGAIN = ("crash", "hang", "memory")


@dataclass(slots=True)
class Trial:
    """What the journal says of one trial."""

    trial: str
    config: Config
    state: str = "running"
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)  # metrics by epoch
    checkpoints: dict[int, str] = field(default_factory=dict)  # path in the study directory
    seconds: float = 0.0  # inside the trainable
    restarts: int = 0
    retries: int = 0  # those that it caused itself
    error: str | None = None
    node: str | None = None
    gpu: str | None = None
    gpu_mib: float | None = None  # the most that it took of a GPU that is shared
    needs_whole_gpu: bool = False  # it ran out of memory, and is to have a GPU of its own
    clone: str | None = None  # the copy of its donor's checkpoint, until it has trained from there

    @property
    def epoch(self) -> int:
        """The last epoch trained, 0 before the first."""
        return max(self.epochs, default=0)


def fold(trials: dict[str, Trial], event: Event) -> Trial:
    """Takes one event into `trials` and returns the trial it is of."""
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
            # Its own of that epoch and later were of other weights.
            trial.checkpoints = {e: p for e, p in trial.checkpoints.items() if e < event["epoch"]}
            trial.checkpoints |= {event["epoch"]: trial.clone} if trial.clone else {}
        if event.get("cause") == "checkpoint":  # those after it are not to be trusted
            trial.checkpoints = {e: p for e, p in trial.checkpoints.items() if e <= event["epoch"]}
    elif kind == "end":
        trial.state, trial.error = event["state"], event.get("error")
    return trial


class StorageError(OSError):
    """The study directory cannot be written. What was written before is whole."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror, str(path))

    def __str__(self) -> str:
        path = Path(self.filename)
        cure = {
            errno.ENOSPC: "make room there",
            errno.EDQUOT: "your quota there is used up: make room",
        }.get(self.errno or 0, "see to it that it can be written")
        return f"cannot write {path}: {self.strerror}; {cure}, then --resume {path.parent.name}"


class Journal:
    """The study directory as it is written. One process writes it.

    Every writing method raises StorageError where the file system refuses.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "trials.jsonl"
        try:
            # Unbuffered: a line is one write, whole in the file or absent.
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(self._path, error) from None

    def append(self, event: Event) -> None:
        """Writes one line, whole: what a kill of this process cannot take away any more."""
        line = (json.dumps(event) + "\n").encode()
        whole = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # A part of a line must not stand before the next one.
            with contextlib.suppress(OSError):
                self._file.truncate(whole)
            raise StorageError(self._path, error) from None

    def sync(self) -> None:
        """Puts the lines on the disk: what a power cut cannot take away any more."""
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise StorageError(self._path, error) from None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes NAME as JSON, replacing the old one in one step."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file so that a reader sees the old one or the new one, never a part."""
        target = self.directory / name
        try:
            with replacing(target, durable=True) as temporary:
                temporary.write_text(text)
        except OSError as error:
            raise StorageError(target, error) from None

    def close(self) -> None:
        self._file.close()


def events(directory: Path) -> Iterator[Event]:
    """The events of a study directory, in their order, up to a last line that was cut short.

    Raises JournalError if a line before the last is no event.
    """
    path = directory / "trials.jsonl"
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise JournalError(f"{path}, line {number}, is no event: mend it by hand") from None


class JournalError(ValueError):
    """trials.jsonl was damaged by something else than a kill or a power cut."""


def mend(directory: Path) -> bool:
    """Cuts a torn last line off trials.jsonl before it is appended to. True if there was one.

    Whatever it said did not happen.
    """
    path = directory / "trials.jsonl"
    content = path.read_bytes() if path.exists() else b""
    whole = _whole(content)
    if whole == len(content):
        return False
    os.truncate(path, whole)
    return True


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last whole line. After a power cut a file's end may be zeros."""
    end = len(content)
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        line = content[begin:end]
        if line.endswith(b"}\n") and b"\0" not in line:
            break
        end = begin
    return end


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the study directory, {} if it is not there."""
    return json.loads(path.read_text()) if path.exists() else {}
