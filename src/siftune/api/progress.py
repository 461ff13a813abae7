"""Shows the progress of a study to a script or a notebook.

A terminal and a notebook get a table that is redrawn, and the driver's sentences above it. Any
other output, such as a log file, gets every line of the driver.
"""

import io
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from siftune.driver.console import EVENT
from siftune.errors import UsageError
from siftune.record import history
from siftune.record.journal import JournalError
from siftune.report import table

_REDRAW_S = 1.0
_SHARE = 0.1  # of the time that redraws may take, because they read the journal
_COLUMNS = 110  # of the table in a notebook
_PRE = '<pre style="font-family: monospace; line-height: 1.2; overflow-x: auto">{code}</pre>'


class Screen(Protocol):
    height: int  # the most lines of the table

    def say(self, line: str) -> None:
        """Shows a line of the driver."""

    def draw(self, drawn: Any) -> None:
        """Shows the table, in place of the last one."""

    def close(self) -> None: ...


class Progress:
    """Shows the driver's lines, and the table of the study in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._screen = _screen()
        self._next = time.monotonic()

    def say(self, line: str) -> None:
        self._screen.say(line)

    def redraw(self, *, now: bool = False) -> None:
        """Redraws the table if it is time to, or `now`."""
        began = time.monotonic()
        if isinstance(self._screen, Lines) or (not now and began < self._next):
            return
        try:
            seen = table.snapshot(history.load(self._directory))
        except (UsageError, JournalError):  # study.yaml is not written yet, or the driver says why
            return
        self._screen.draw(table.draw(seen, height=self._screen.height))
        took = time.monotonic() - began
        self._next = began + max(_REDRAW_S, took / _SHARE)

    def close(self) -> None:
        self.redraw(now=True)
        self._screen.close()


class Lines:
    """Prints every line."""

    height = 0

    def say(self, line: str) -> None:
        print(line, end="", flush=True)

    def draw(self, drawn: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Terminal:
    """Keeps the table below the driver's sentences."""

    def __init__(self) -> None:
        console = Console()
        self.height = console.height
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def say(self, line: str) -> None:
        if not EVENT.match(line):
            self._live.console.print(line.rstrip("\n"), markup=False, highlight=False)

    def draw(self, drawn: Any) -> None:
        self._live.update(drawn, refresh=True)

    def close(self) -> None:
        self._live.stop()


class Notebook:
    """Updates one output of the cell. The driver's sentences are its other output."""

    height = table.ROWS + 8

    def __init__(self) -> None:
        self._handle: Any = None

    def say(self, line: str) -> None:
        if not EVENT.match(line):
            print(line, end="", flush=True)

    def draw(self, drawn: Any) -> None:
        from IPython.display import display

        paper = Console(
            file=io.StringIO(), record=True, width=_COLUMNS, force_jupyter=False, color_system=None
        )
        paper.print(drawn)
        html = paper.export_html(clear=False, inline_styles=True, code_format=_PRE)
        data = {"text/html": html, "text/plain": paper.export_text()}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self) -> None:
        pass


def _screen() -> Screen:
    if Console().is_jupyter:
        return Notebook()
    return Terminal() if sys.stdout.isatty() else Lines()
