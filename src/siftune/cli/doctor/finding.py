"""The findings of `doctor`, and the functions that its checks share."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    level: str  # ok; warn: works, with a limitation; fail: does not work
    found: str
    advice: str = ""

    def line(self, name: str) -> str:
        return f"{self.level} {name}: {self.found}{f'; {self.advice}' if self.advice else ''}"


def ok(found: str) -> Finding:
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    return Finding("fail", found, advice)


@dataclass(frozen=True, slots=True)
class Place:
    """The directories where studies are written and data sets are read."""

    results: Path
    data: Path


def run_command(command: Sequence[str], *, deadline_s: float, text: str = "") -> tuple[int, str]:
    """Runs a command, and returns its exit status and its output.

    If it fails, the output is the last line of its error messages. The exit status is -1 if the
    deadline passed. `text`: its standard input.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(text, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"no answer in {deadline_s:.0f} s"  # not waited for: it may hang in a driver
    if process.returncode == 0:
        return 0, out
    lines = (errors.strip() or out.strip()).splitlines()
    ended = f"signal {-process.returncode}" if process.returncode < 0 else "no message"
    return process.returncode, lines[-1] if lines else ended
