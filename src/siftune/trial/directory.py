"""A trial's own directory, trials/NAME in the study directory, with its log and its files."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TextIO

from siftune.study import layout

# A directory with more entries is hardly one from which a user starts studies.
_MAX_LINKS = 2000

# Scripts write results to directories with these names.
_OUTPUTS = frozenset(
    [
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "lightning_logs",
        "log",
        "logs",
        "mlruns",
        "models",
        "multirun",
        "output",
        "outputs",
        "results",
        "runs",
        "saved_models",
        "tb_logs",
        "wandb",
        "work_dirs",
    ]
)
# Users edit these files while a study runs, and redirect its output to the last three.
_NOT_RESULTS = frozenset(
    [".py", ".ipynb", ".yaml", ".yml", ".toml", ".md", ".sh", ".txt", ".log", ".out", ".err"]
)

LOG_BYTES = 10 << 20  # that a log keeps; it may grow to twice as many
_BOUND_S = 5.0  # between two looks at its size


def prepare(study: Path, trial: str, launched_in: Path, *, links: bool) -> Path:
    """Creates the trial's directory, unless an earlier run did, and returns it.

    With `links` it gets a symlink to each entry of the launch directory, so that relative paths to
    these entries work. New files belong to the trial. A directory for results, such as
    checkpoints/, is the trial's own and has links to the entries of the shared one.
    """
    directory = layout.trial_directory(study, trial)
    directory.mkdir(parents=True, exist_ok=True)
    if links:
        existing = {entry.name for entry in directory.iterdir()}
        for entry in _entries(launched_in):
            is_log = re.fullmatch(r"log(\.\d+)?\.txt", entry.name)  # the trial has its own
            if entry.name in existing or is_log or study.is_relative_to(entry.path):
                continue
            own = directory / entry.name
            with suppress(FileExistsError):  # another process of the trial has created it
                if _holds_results(entry):
                    own.mkdir()
                    _link(own, _entries(Path(entry.path)))
                else:
                    own.symlink_to(entry.path)
    return directory


def _link(directory: Path, entries: Iterable[os.DirEntry[str]]) -> None:
    for entry in entries:
        with suppress(FileExistsError):
            (directory / entry.name).symlink_to(entry.path)


def _entries(shared: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the entries to link. Prints a message if there are too many."""
    with os.scandir(shared) as entries:
        yield from islice(entries, _MAX_LINKS)
        if next(entries, None) is not None:
            print(
                f"{shared} has more than {_MAX_LINKS} entries: the others are not linked "
                "in the trial's directory. Use absolute paths for them, or --workdir launch"
            )


def _holds_results(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower() in _OUTPUTS and entry.is_dir()


def overwritten(launched_in: Path, *, since: float) -> list[Path]:
    """Returns the linked files that have changed. `since`: the time in seconds since 1970.

    A trial that writes to such a file changes it for all trials. Source files and logs are left
    out, because the user may have changed them.
    """
    changed = []
    for folder in (launched_in, *(launched_in / name for name in sorted(_OUTPUTS))):
        with suppress(OSError), os.scandir(folder) as entries:
            changed += [
                Path(entry.path)
                for entry in islice(entries, _MAX_LINKS)
                if entry.is_file()
                and entry.stat().st_mtime > since
                and Path(entry.name).suffix not in _NOT_RESULTS
            ]
    return changed


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
