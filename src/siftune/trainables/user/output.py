"""Finds the metrics of a script in what it prints, or in a file that it writes."""

import csv
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from siftune.trainables.base import Report
from siftune.trainables.user.printed import PrintedMetrics

_BAR = re.compile(r"\d%\|")  # in a progress bar of tqdm
_POLL_S = 0.3  # between two looks at the file
_END_S = 1.0  # for the last lines of children; one that lives on keeps its output open


class Printed:
    """The metrics that a script has printed, and its last error message."""

    def __init__(self, report: Report, how: PrintedMetrics) -> None:
        self.stopped = False  # by `report`
        self._report = report
        self._metric = how.metric
        self._patterns = [re.compile(pattern) for pattern in how.patterns]
        self._collected: dict[str, Any] = {}  # by patterns, since the last report
        self._errors = ""
        self._unfinished_error = ""
        self._lock = threading.Lock()
        self._reporting: int | None = None  # the thread in `report`, which may print

    @property
    def last_error(self) -> str:
        """The last line of standard error."""
        return (self._errors.strip().splitlines() or ["no message"])[-1]

    def take_error(self, text: str) -> None:
        """Reports the metrics in the lines of a text, except in progress bars."""
        self._errors = (self._errors + text)[-2000:]
        *whole, self._unfinished_error = (self._unfinished_error + text).split("\n")
        for line in whole:
            if not _BAR.search(_shown(line)):
                self.take(line)

    def take(self, line: str) -> None:
        """Reports the metrics in a line."""
        if self._reporting == threading.get_ident():
            return
        line = _shown(line)
        if (metrics := _json(line)) is not None:
            self.report(metrics)
            return
        for pattern in self._patterns:
            if match := pattern.search(line):
                named = match.groupdict() or {self._metric: match[1]}
                self._collected |= {name: _number(value) for name, value in named.items()}
        if self._metric in self._collected:
            metrics, self._collected = self._collected, {}
            self.report(metrics)

    def report(self, metrics: dict[str, Any]) -> None:
        """Reports metrics, unless the study's metric is missing."""
        if self._metric and not _has(metrics, self._metric):
            return
        with self._lock:
            self._reporting = threading.get_ident()
            try:
                self._report(metrics)
            except SystemExit:
                self.stopped = True
                raise
            finally:
                self._reporting = None


@contextmanager
def reported(report: Report, how: PrintedMetrics) -> Iterator[Printed]:
    """Reports the metrics that this process and its children print, or write to a file.

    `report` is called from the thread that prints; from another one for the lines of children and
    for a file. All lines are printed as before.
    """
    printed = Printed(report, how)
    with _children(printed) as to, _file(printed, how.file):
        lines = _Lines(printed, to)
        with redirect_stdout(lines), redirect_stderr(_Errors(printed, sys.stderr)):
            yield printed
        lines.finish()


# ── What is printed ─────────────────────────────────────────────────────────────────────────────


@contextmanager
def _children(printed: Printed) -> Iterator[TextIO]:
    """Has a thread read what children print to standard output. Yields the output itself."""
    sys.stdout.flush()
    original = os.dup(1)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    to = _text(original)
    thread = threading.Thread(target=_read, args=(reading, printed, to), daemon=True)
    thread.start()
    try:
        yield to
    finally:
        os.dup2(original, 1)  # closes the last writing end, unless a child lives on
        thread.join(timeout=_END_S)


def _text(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _read(reading: int, printed: Printed, to: TextIO) -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
        for line in lines:
            to.write(line)
            try:
                printed.take(line)
            except SystemExit:
                # The scheduler stops the trial, while its main thread waits for its children.
                os.killpg(0, signal.SIGKILL)


class _Stream(io.TextIOBase):
    """A standard stream of this process."""

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = True

    def __init__(self, printed: Printed, to: TextIO) -> None:
        self._printed = printed
        self._to = to

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> BinaryIO:
        return io.BufferedWriter(_Bytes(self), buffer_size=1)

    def reconfigure(self, **options: Any) -> None:
        """For scripts that set the encoding or the buffering, which stay as they are."""


class _Bytes(io.RawIOBase):
    """The bytes of a standard stream."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.write(bytes(data).decode(errors="backslashreplace"))
        return len(data)


class _Lines(_Stream):
    """Standard output, line by line."""

    def __init__(self, printed: Printed, to: TextIO) -> None:
        super().__init__(printed, to)
        self._unfinished = ""

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        for line in whole:
            self._to.write(line + "\n")
            self._printed.take(line)
        return len(text)

    def finish(self) -> None:
        """Takes the last line, if no newline follows it."""
        line, self._unfinished = self._unfinished, ""
        if line:
            self._to.write(line + "\n")
            self._printed.take(line)


class _Errors(_Stream):
    """Standard error, where most loggers write. The last line is remembered."""

    def fileno(self) -> int:
        return 2

    def write(self, text: str) -> int:
        written = self._to.write(text)
        self._printed.take_error(text)
        return written


def _shown(line: str) -> str:
    """Returns what a terminal shows of a line: what follows the last carriage return."""
    return line.rstrip("\r\n").rpartition("\r")[2]


def _json(line: str) -> dict[str, Any] | None:
    """Returns the dictionary in a line of JSON; None if it is another line."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _has(metrics: dict[str, Any], metric: str) -> bool:
    """Whether the metric is among them, or in a nested dictionary: val/loss."""
    value: Any = metrics
    if metric in metrics:
        return True
    for name in metric.split("/"):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _number(text: str | None) -> Any:
    """Returns the number in a text; the text itself if it is none."""
    with suppress(TypeError, ValueError):
        return float(text or "")
    return text


# ── What is written to a file ───────────────────────────────────────────────────────────────────


@contextmanager
def _file(printed: Printed, name: str | None) -> Iterator[None]:
    """Has a thread report what is added to the file, and reports the rest at the end."""
    if name is None:
        yield
        return
    file, over = _MetricFile(name), threading.Event()
    thread = threading.Thread(target=_watch, args=(file, printed, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    for metrics in file.new():
        printed.report(metrics)


def _watch(file: "_MetricFile", printed: Printed, over: threading.Event) -> None:
    while not over.wait(_POLL_S):
        for metrics in file.new():
            try:
                printed.report(metrics)
            except SystemExit:
                os.killpg(0, signal.SIGKILL)


class _MetricFile:
    """A file of metrics: the rows of a .csv or .jsonl file, or the dictionary in a .json file.

    A name with `*` stands for all files that match, such as one for each run of the trial.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._directory = Path.cwd()  # the script may change it
        self._known = {path: _rows(path) for path in self._paths()}  # of an earlier run

    def new(self) -> list[dict[str, Any]]:
        """Returns the rows since the last call; the dictionary if it has changed."""
        new: list[dict[str, Any]] = []
        for path in self._paths():
            rows, known = _rows(path), self._known.get(path, [])
            if path.suffix == ".json":
                new += rows if rows != known else []
            else:
                new += rows[len(known) :]
            if path.suffix == ".json" or len(rows) > len(known):
                self._known[path] = rows
        return new

    def _paths(self) -> list[Path]:
        given = Path(self._name)
        literal = self._directory / given
        if literal.is_file():
            return [literal]
        root = Path(given.anchor) if given.is_absolute() else self._directory
        return sorted(root.glob(str(given.relative_to(given.anchor))))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text()
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1]  # a row is complete once a newline follows
    if path.suffix == ".json":
        found = _json(" ".join(text.split()))
        return [] if found is None else [found]
    if path.suffix == ".jsonl":
        return [row for line in whole.splitlines() if (row := _json(line)) is not None]
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: _number(value) for name, value in row.items() if name and value} for row in rows]
