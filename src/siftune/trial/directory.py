"""A trial's own directory, trials/NAME in the study: its log, and the files that it writes."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

# A directory with more entries is no place that somebody launches studies from.
_MOST_LINKS = 2000


def of_trial(study: Path, trial: str) -> Path:
    return study / "trials" / trial


def prepare(study: Path, trial: str, launched_in: Path, *, links: bool) -> Path:
    """Makes the trial's directory, or finds it as an earlier run left it.

    With `links` it has a link to each entry of the directory of launch, so that relative paths
    find what lies there. What the trial makes anew is its own.
    """
    directory = of_trial(study, trial)
    directory.mkdir(parents=True, exist_ok=True)
    if links:
        _link(directory, launched_in, study)
    return directory


def _link(directory: Path, launched_in: Path, study: Path) -> None:
    there = {entry.name for entry in directory.iterdir()}
    with os.scandir(launched_in) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_LINKS:
                print(f"{launched_in} has more than {_MOST_LINKS} entries: the rest is not linked")
                return
            if entry.name in there or study.is_relative_to(entry.path):
                continue
            with suppress(FileExistsError):  # another process of the trial was quicker
                (directory / entry.name).symlink_to(entry.path)


def redirect_output(log: Path) -> None:
    """Appends the output of this process, and of those that it starts, to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError, ValueError):
            stream.flush()
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.stdout, sys.stderr = _line_by_line(1), _line_by_line(2)


def _line_by_line(descriptor: int) -> TextIO:
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
