"""Paths in a study directory."""

from pathlib import Path


def trial_directory(study: Path, trial: str) -> Path:
    """Returns a trial's own directory, which holds its log and the files that it writes."""
    return study / "trials" / trial


def log(study: Path, trial: str, rank: int = 0) -> Path:
    """Returns the log of a trial's process; `rank`: of several processes of the trial."""
    return trial_directory(study, trial) / f"log{f'.{rank}' if rank else ''}.txt"


def checkpoints(study: Path, trial: str) -> Path:
    """Returns the directory of a trial's checkpoints."""
    return study / "checkpoints" / trial
