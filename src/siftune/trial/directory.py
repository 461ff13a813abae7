"""A trial's own directory, trials/NAME in the study directory, with its log and its files."""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from siftune.study import layout

# A directory with more entries is hardly one from which a user starts studies.
_MAX_LINKS = 2000

LOG_BYTES = 10 << 20  # that a log keeps; it may grow to twice as many
_BOUND_S = 5.0  # between two looks at its size


def prepare(study: Path, trial: str, launched_in: Path, *, links: bool) -> Path:
    """Creates the trial's directory, unless an earlier run did, and returns it.

    With `links` it gets a symlink to each entry of the launch directory, so that relative paths to
    these entries work. New files belong to the trial.
    """
    directory = layout.trial_directory(study, trial)
    directory.mkdir(parents=True, exist_ok=True)
    if links:
        _link(directory, launched_in, study)
    return directory


def _link(directory: Path, launched_in: Path, study: Path) -> None:
    existing = {entry.name for entry in directory.iterdir()}
    with os.scandir(launched_in) as entries:
        for number, entry in enumerate(entries):
            if number >= _MAX_LINKS:
                print(
                    f"{launched_in} has more than {_MAX_LINKS} entries: the others are not linked "
                    "in the trial's directory. Use absolute paths for them, or --workdir launch"
                )
                return
            if entry.name in existing or study.is_relative_to(entry.path):
                continue
            with suppress(FileExistsError):  # another process of the trial has created it
                (directory / entry.name).symlink_to(entry.path)


def redirect_output(log: Path) -> None:
    """Appends the output of this process and of its child processes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError, ValueError):
            stream.flush()
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.stdout, sys.stderr = _line_by_line(1), _line_by_line(2)
    threading.Thread(target=_bound, args=(log,), daemon=True).start()


def _bound(log: Path) -> None:
    """Cuts the log whenever it has grown to twice its limit: its end is kept."""
    while True:
        time.sleep(_BOUND_S)
        with suppress(OSError):
            cut(log)


def cut(log: Path, keep: int = LOG_BYTES) -> None:
    """Keeps the last `keep` bytes of a log that has twice as many. What a process writes at this
    moment may be lost. Raises OSError."""
    size = log.stat().st_size
    if size < 2 * keep:
        return
    with log.open("r+b") as file:
        file.seek(size - keep)
        file.readline()  # a part of a line
        end = file.read()
        file.truncate(0)
    with log.open("ab") as file:  # the others append too
        file.write(f"… {size - len(end)} bytes before this line were removed …\n".encode() + end)


def _line_by_line(descriptor: int) -> TextIO:
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
