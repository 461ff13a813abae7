"""The study directory, written and read.

The journal, trials.jsonl, is the truth: everything else in the directory follows from it. A line
is one event of one trial:

    start    config                            the trial has begun
    epoch    epoch, metrics, seconds           one epoch is trained; node, gpu, checkpoint if known
    restart  epoch; donor and config for PBT   it goes on from the checkpoint of that epoch
    end      state, error if any               completed, pruned or failed
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siftune.space import Config

Event = dict[str, Any]

STATES = ("completed", "pruned", "failed")


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
    error: str | None = None
    node: str | None = None
    gpu: str | None = None

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
    if kind == "epoch":
        trial.epochs[event["epoch"]] = event["metrics"]
        trial.seconds += event["seconds"]
        trial.node, trial.gpu = event.get("node"), event.get("gpu")
        if "checkpoint" in event:
            trial.checkpoints[event["epoch"]] = event["checkpoint"]
    elif kind == "restart":
        trial.restarts += "donor" not in event
        trial.config = event.get("config", trial.config)
    elif kind == "end":
        trial.state, trial.error = event["state"], event.get("error")
    return trial


class Journal:
    """The study directory as it is written. One process writes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Unbuffered and O_APPEND: a line is one write, whole in the file or absent.
        self._file = (directory / "trials.jsonl").open("ab", buffering=0)

    @classmethod
    def create(cls, directory: Path) -> "Journal":
        """A new study directory. Raises FileExistsError if there is one."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir()
        return cls(directory)

    def append(self, event: Event) -> None:
        self._file.write((json.dumps(event) + "\n").encode())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes NAME as JSON, replacing the old one in one step."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file so that a reader sees the old one or the new one, never a part."""
        temporary = self.directory / f".{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(self.directory / name)

    def close(self) -> None:
        self._file.close()


def events(directory: Path) -> Iterator[Event]:
    """The events of a study directory, in their order.

    A last line cut short by a kill is cut off the file's reading; whatever it said did not happen.
    """
    path = directory / "trials.jsonl"
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)


def mend(directory: Path) -> bool:
    """Cuts a torn last line off trials.jsonl before it is appended to. True if there was one."""
    path = directory / "trials.jsonl"
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    os.truncate(path, whole)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the study directory, {} if it is not there."""
    return json.loads(path.read_text()) if path.exists() else {}
