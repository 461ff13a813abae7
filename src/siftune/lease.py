"""One driver per study: driver.json says who drives it, and is touched while they do.

Not a lock: those may be missing on NFS and Lustre, or hold on one node only. What is needed is that
of those who make a file one succeeds, that a file is renamed whole, and that its time of change is
seen by all.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

_BEAT_S = 2.0
_SILENCE_S = 30.0  # of a driver on another node, after which it is taken for dead
_CLAIM_S = 10.0  # in which a driver that is alive has surely changed driver.json


class StudyBusyError(RuntimeError):
    """Another driver runs the study."""


class Lease:
    """The right to write one study directory, from its making to `end`.

    `job`: what the drivers of one Slurm job, which follow each other when it is requeued, have in
    common. Raises StudyBusyError if another driver is at work; telling that it is not takes up to
    30 s where it ran on another node and was killed. Raises OSError if nothing can be written.
    """

    def __init__(self, directory: Path, *, job: str | None) -> None:
        self._path = directory / "driver.json"
        self._mine = _this_process() | {"job": job, "nonce": secrets.token_hex(8)}
        self._over = threading.Event()
        self.lost = False
        while True:
            other = read(directory)
            if not _over(other, job) and _alive(self._path, other):
                raise StudyBusyError(
                    f"the study {directory.name} is being run by process {other.get('pid')} on "
                    f"{other.get('host')}: wait for its end, or stop it first"
                )
            if self._replace(other):
                break
        self._heard = _now()  # at the latest when the others last heard of this driver
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises StudyBusyError if another driver has taken over: to be called before the study
        directory is written. Costs nothing unless this process has slept too long."""
        if _now() - self._heard > _SILENCE_S / 2:
            self.lost = self.lost or self._replaced()
        if self.lost:
            raise StudyBusyError(
                f"another driver has taken over the study {self._path.parent.name}"
            )

    def end(self) -> None:
        """Gives it back, so that the next driver need not wait."""
        self._over.set()
        self._thread.join()
        before = dict(self._mine)
        self._mine["ended"] = round(time.time(), 3)
        with contextlib.suppress(OSError):  # a full disk is the journal's to tell
            self._replace(before)

    def _replace(self, other: dict[str, Any]) -> bool:
        """Writes this driver into driver.json in the place of `other`; False if somebody else was
        quicker. One driver does this at a time."""
        claim = self._path.with_name(".driver.claim")
        try:
            claim.open("x").close()
        except FileExistsError:
            deadline = _now() + _CLAIM_S
            while claim.exists():
                time.sleep(0.02)
                if _now() > deadline:  # it died in between
                    claim.unlink(missing_ok=True)
            return False
        temporary = self._path.with_name(f".driver.{self._mine['nonce']}")
        try:
            if read(self._path.parent) != other:
                return False
            temporary.write_text(json.dumps(self._mine) + "\n")
            temporary.replace(self._path)
            return True
        finally:
            temporary.unlink(missing_ok=True)
            claim.unlink(missing_ok=True)

    def _replaced(self) -> bool:
        # A file that cannot be read for a moment says nothing.
        return read(self._path.parent).get("nonce", self._mine["nonce"]) != self._mine["nonce"]

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            now = _now()
            if self._replaced():
                self.lost = True
                return
            with contextlib.suppress(OSError):  # a full disk is the journal's to tell
                os.utime(self._path)
                self._heard = now


def _now() -> float:
    """In s, and it goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read(directory: Path) -> dict[str, Any]:
    """Who drives the study, or did last; {} if nobody has."""
    try:
        return json.loads((directory / "driver.json").read_text())
    except (OSError, ValueError):
        return {}


def _over(other: dict[str, Any], job: str | None) -> bool:
    """Whether it says itself that it has ended, or cannot but have."""
    # Slurm starts a job again only when its earlier run is over.
    return not other or "ended" in other or (job is not None and other.get("job") == job)


def _alive(path: Path, other: dict[str, Any]) -> bool:
    here = _this_process()
    if all(other.get(name) == here[name] for name in ("boot", "pids")):
        return _began(other["pid"]) == other["began"]
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + _SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "began": _began(pid),
        # Of which machine, since it was last started, and of which container that number is.
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": str(Path("/proc/self/ns/pid").readlink()),
    }


def _began(pid: int) -> int | None:
    """When the process began, in ticks since the machine did; None if there is none of that id."""
    try:
        # Behind the name, which is in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
