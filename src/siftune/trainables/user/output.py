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
        self._lock = threading.Lock()

    @property
    def last_error(self) -> str:
        """The last line of standard error."""
        return (self._errors.strip().splitlines() or ["no message"])[-1]

    def take_error(self, text: str) -> None:
        self._errors = (self._errors + text)[-2000:]

    def take(self, line: str) -> bool:
        """Reports the metrics in a line. Returns whether it is a line of JSON that was reported."""
        if (metrics := _json(line)) is not None:
            return self.report(metrics)
        for pattern in self._patterns:
            if match := pattern.search(line):
                named = match.groupdict() or {self._metric: match[1]}
                self._collected |= {name: _number(value) for name, value in named.items()}
        if self._metric in self._collected:
            metrics, self._collected = self._collected, {}
            self.report(metrics)
        return False

    def report(self, metrics: dict[str, Any]) -> bool:
        """Reports metrics, unless the study's metric is missing. Returns whether it did."""
        if self._metric and not _has(metrics, self._metric):
            return False
        with self._lock:
            try:
                self._report(metrics)
            except SystemExit:
                self.stopped = True
                raise
        return True


@contextmanager
def reported(report: Report, how: PrintedMetrics) -> Iterator[Printed]:
    """Reports the metrics that this process and its children print, or write to a file.

    `report` is called from the thread that prints; from another one for the lines of children and
    for a file. Other lines are printed as before.
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
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            try:
                if not printed.take(line):
                    to.write(line)
            except SystemExit:
                # The scheduler stops the trial, while its main thread waits for its children.
                os.killpg(0, signal.SIGKILL)


class _Lines(io.TextIOBase):
    """Standard output of this process, line by line."""

    encoding = "utf-8"

    def __init__(self, printed: Printed, to: TextIO) -> None:
        self._printed = printed
        self._to = to
        self._unfinished = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    @property
    def buffer(self) -> BinaryIO:
        """For scripts that write bytes: these lines are not read."""
        return self._to.buffer

    def reconfigure(self, **options: Any) -> None:
        """For scripts that set the encoding or the buffering, which stay as they are."""

    def write(self, text: str) -> int:
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        for line in whole:
            if not self._printed.take(line):
                self._to.write(line + "\n")
        return len(text)

    def finish(self) -> None:
        """Takes the last line, if no newline follows it."""
        line, self._unfinished = self._unfinished, ""
        if line and not self._printed.take(line):
            self._to.write(line)


class _Errors(io.TextIOBase):
    """Standard error, of which the last line is remembered."""

    encoding = "utf-8"

    def __init__(self, printed: Printed, to: TextIO) -> None:
        self._printed = printed
        self._to = to

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def reconfigure(self, **options: Any) -> None:
        """As that of standard output."""

    def write(self, text: str) -> int:
        self._printed.take_error(text)
        return self._to.write(text)


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
    file, over = _MetricFile(Path(name).absolute()), threading.Event()
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
    """A file of metrics: the rows of a .csv or .jsonl file, or the dictionary in a .json file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = len(self._read())  # from an earlier run of the trial
        self._last: Any = self._read() if path.suffix == ".json" else None

    def new(self) -> list[dict[str, Any]]:
        """Returns the rows since the last call; the dictionary if it has changed."""
        rows = self._read()
        if self._path.suffix == ".json":
            changed = rows != self._last
            self._last = rows
            return rows if changed else []
        new, self._rows = rows[self._rows :], max(len(rows), self._rows)
        return new

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self._path.read_text()
        except OSError:
            return []
        whole = text[: text.rfind("\n") + 1]  # a row is complete once a newline follows
        if self._path.suffix == ".json":
            found = _json(" ".join(text.split()))
            return [] if found is None else [found]
        if self._path.suffix == ".jsonl":
            return [row for line in whole.splitlines() if (row := _json(line)) is not None]
        rows = csv.DictReader(io.StringIO(whole))
        return [
            {name: _number(value) for name, value in row.items() if name and value} for row in rows
        ]
