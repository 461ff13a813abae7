"""The checkpoints of a trial, checkpoints/NAME in the study: written by its process."""

import shutil
from pathlib import Path
from typing import Any

_UNSAVED = "."  # how the name of one begins that is not whole yet


def of_trial(study: Path, trial: str) -> Path:
    return study / "checkpoints" / trial


def unsaved(study: Path, trial: str, epoch: int, run: str) -> Path:
    """Where the checkpoint of an epoch is written until it is whole."""
    return of_trial(study, trial) / f"{_UNSAVED}{_name(epoch, run)}"


def keep(checkpoint: Any, study: Path, trial: str, epoch: int, run: str) -> str:
    """Makes a tune.Checkpoint the trial's, of this epoch; its path relative to the study.

    A checkpoint that was written where `unsaved` says is moved, any other is copied.
    """
    own = unsaved(study, trial, epoch, run)
    target = of_trial(study, trial) / _name(epoch, run)
    with checkpoint.as_directory() as written:
        if Path(written) != own:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(own, ignore_errors=True)  # of a report that failed
            shutil.copytree(written, own)
    own.rename(target)
    return str(target.relative_to(study))


def remove_others(study: Path, trial: str, kept: set[str], *, run: str | None = None) -> None:
    """Removes the trial's checkpoints except `kept`, paths relative to the study.

    `run`: one that may be writing a checkpoint at this moment.
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
    """Copies a donor's checkpoint to the trial, as that of an epoch; its path in the study."""
    own, target = unsaved(study, trial, epoch, run), of_trial(study, trial) / _name(epoch, run)
    shutil.copytree(donor, own)
    own.rename(target)
    return str(target.relative_to(study))


def _name(epoch: int, run: str) -> str:
    return f"checkpoint_{epoch:06d}_{run}"
