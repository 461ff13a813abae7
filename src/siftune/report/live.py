"""Rewrites report.html while a study runs, in another process, so that the driver does not wait.

A page of a running study asks the browser to load it again, so an open tab follows the study.
"""

import subprocess
import sys
import time
from pathlib import Path

RELOAD_S = 30  # between two loads of the page of a running study
FIRST_S = 10  # before the first page: it must not slow down the start of the study
_END_S = 5.0  # a study that must save soon does not wait longer
_SHARE = 0.05  # of the time that writing may take: the page of a large study takes seconds


class LivePage:
    """The report of a running study. Its driver calls `look` often, and `end` once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._due = self._began + FIRST_S

    def look(self) -> None:
        """Starts to write the page if it is due. Errors are left to the report at the end."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._process = None
            self._due = self._began + max(RELOAD_S, (now - self._began) / _SHARE)
        if now >= self._due:
            self._began = now
            # -P: a user's file in this directory may be named like a library.
            command = [sys.executable, "-P", "-m", "siftune.report.page", str(self._directory)]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def end(self) -> None:
        """Waits for the process, which must not replace the report at the end."""
        if self._process is None:
            return
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
