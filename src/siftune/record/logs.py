"""The logs of trials, read."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from siftune.study import layout

_BLOCK = 1 << 16  # bytes at the end of a log that are read for its last lines
_POLL_S = 0.5


def tail(study: Path, trial: str, lines: int = 10) -> list[str]:
    """Returns the last lines of a trial's log, [] if there is none."""
    try:
        with layout.log(study, trial).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _BLOCK))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def follow(path: Path, over: Callable[[], bool]) -> Iterator[str]:
    """Yields the text of a log, and what is added to it until `over()` is true."""
    position = 0
    while True:
        last = over()  # asked first: nothing is added after that
        if path.exists():
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < position:
                    position = 0  # it has been cut
                file.seek(position)
                added = file.read()
            position += len(added)
            if added:
                yield added.decode(errors="replace")
        if last:
            return
        time.sleep(_POLL_S)
