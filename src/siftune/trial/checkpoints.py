"""A trial's checkpoints, which its process writes to checkpoints/NAME in the study directory."""

import shutil
from pathlib import Path
from typing import Any

_UNSAVED = "."  # first character of the name of an unfinished checkpoint


def of_trial(study: Path, trial: str) -> Path:
    return study / "checkpoints" / trial


def unsaved(study: Path, trial: str, epoch: int, run: str) -> Path:
    """Returns the directory in which the checkpoint of an epoch is written until it is complete."""
    return of_trial(study, trial) / f"{_UNSAVED}{_name(epoch, run)}"


def keep(checkpoint: Any, study: Path, trial: str, epoch: int, run: str) -> str:
    """Stores a tune.Checkpoint as that of the trial's epoch.

    Moves a checkpoint that was written to the directory that `unsaved` returns, and copies any
    other. Returns its path relative to the study directory.
    """
    own = unsaved(study, trial, epoch, run)
    target = of_trial(study, trial) / _name(epoch, run)
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
    directory = of_trial(study, trial)
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if str(path.relative_to(study)) in kept:
            continue
        if run is not None and path.name.startswith(_UNSAVED) and path.name.endswith(run):
            continue
        shutil.rmtree(path, ignore_errors=True)


def clone(study: Path, donor: Path, trial: str, epoch: int, run: str) -> str:
    """Copies a donor's checkpoint to the trial as that of `epoch`.

    Returns its path relative to the study directory.
    """
    own, target = unsaved(study, trial, epoch, run), of_trial(study, trial) / _name(epoch, run)
    shutil.copytree(donor, own)
    own.rename(target)
    return str(target.relative_to(study))


def _name(epoch: int, run: str) -> str:
    return f"checkpoint_{epoch:06d}_{run}"
