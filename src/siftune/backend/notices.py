"""Keeps Ray's own notices out of a study's output."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast


@contextmanager
def without_notices() -> Iterator[None]:
    """Drops what Ray prints in this process about its nodes, with the end of their logs.

    Ray has no option for it: `log_to_driver=False` concerns the output of workers. siftune reports
    lost nodes itself.
    """
    with redirect_stdout(cast(TextIO, _Filter(sys.stdout))):
        yield


class _Filter:
    """A text stream that passes everything on but texts that begin with (raylet)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropping: set[int] = set()  # threads of which the end of the line is to be dropped

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        if thread in self._dropping:
            self._dropping.discard(thread)
            if text == "\n":  # `print` writes it separately
                return len(text)
        if text.startswith("(raylet"):
            self._dropping.add(thread)
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
