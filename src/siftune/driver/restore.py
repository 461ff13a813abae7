"""The checkpoint from which a trial continues."""

from pathlib import Path

from siftune.record.journal import Trial


def latest(directory: Path, trial: Trial, *, until: int | None = None) -> tuple[int, Path] | None:
    """Returns epoch and directory of the trial's latest checkpoint that still exists, or None.

    `directory`: the study directory. `until`: the last epoch to consider; [all].
    """
    for epoch in sorted(trial.checkpoints, reverse=True):
        path = directory / trial.checkpoints[epoch]
        if (until is None or epoch <= until) and path.is_dir():
            return epoch, path
    return None


def is_cloned(directory: Path, trial: Trial) -> bool:
    """Returns whether the trial was already cloned, before the study was interrupted."""
    return trial.clone is not None and (directory / trial.clone).is_dir()
