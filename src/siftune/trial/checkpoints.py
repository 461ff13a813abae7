"""A trial's checkpoints, which its process writes to checkpoints/NAME in the study directory."""

import shutil
from pathlib import Path
from typing import Any

from siftune.study import layout

_UNSAVED = "."  # first character of the name of an unfinished checkpoint


def unsaved(study: Path, trial: str, epoch: int, run: str) -> Path:
    """Returns the directory in which the checkpoint of an epoch is written until it is complete."""
    return layout.checkpoints(study, trial) / f"{_UNSAVED}{_name(epoch, run)}"


def keep(checkpoint: Any, study: Path, trial: str, epoch: int, run: str) -> str:
    """Stores a tune.Checkpoint as the checkpoint for this epoch of the trial.

    If the checkpoint is in the directory returned by `unsaved`, it is moved; otherwise it is
    copied. Returns its path relative to the study directory.
    """
    own = unsaved(study, trial, epoch, run)
    target = layout.checkpoints(study, trial) / _name(epoch, run)
    with checkpoint.as_directory() as written:
        if Path(written) != own:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(own, ignore_errors=True)  # left by a report that failed
            shutil.copytree(written, own)
    own.rename(target)
    return str(target.relative_to(study))


def remove_others(study: Path, trial: str, kept: set[str], *, run: str | None = None) -> None:
    """Removes the trial's checkpoints except `kept`, paths relative to the study directory.

    `run`: a run that may be writing a checkpoint now. Its unfinished checkpoint is not removed.
    """
    directory = layout.checkpoints(study, trial)
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if str(path.relative_to(study)) in kept:
            continue
        if run is not None and path.name.startswith(_UNSAVED) and path.name.endswith(run):
            continue
        shutil.rmtree(path, ignore_errors=True)


def clone(study: Path, donor: Path, trial: str, epoch: int, run: str) -> str:
    """Copies a donor's checkpoint and stores it as the trial's checkpoint for `epoch`.

    Returns its path relative to the study directory.
    """
    own, target = (
        unsaved(study, trial, epoch, run),
        layout.checkpoints(study, trial) / _name(epoch, run),
    )
    shutil.copytree(donor, own)
    own.rename(target)
    return str(target.relative_to(study))


def _name(epoch: int, run: str) -> str:
    return f"checkpoint_{epoch:06d}_{run}"
