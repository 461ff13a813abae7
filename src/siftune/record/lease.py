"""One driver per study: driver.json names the process that runs the study.

That process touches the file regularly. This needs no file locks, which NFS and Lustre may lack or
may confine to one node. It needs three things: only one of several processes succeeds in creating a
file exclusively; a rename is atomic; every node sees when a file was last modified.

A process that wants to take over from the driver with nonce N does this:

1. It creates `.driver.N.1` exclusively. This file is its claim. If the process dies before it is
   done, the next one creates `.driver.N.2`, and so on. No claim is removed while driver.json still
   names N, so two processes never hold the same claim, and no process has to judge whether a claim
   is stale.
2. It checks that driver.json still names N. A claim on a driver that was replaced is void.
3. It deletes the draft files of N and of all earlier claims. A driver prepares its driver.json in a
   draft file, so a driver that was only suspended can no longer replace driver.json.
4. It renames its own draft to driver.json, and then removes the claims.
"""

import contextlib
import enum
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune.machine import slurm

_BEAT_S = 2.0
_SILENCE_S = 30.0  # a driver on another node counts as dead after this
_NOBODY = "nobody"  # in place of a nonce, if there was no driver before


class StudyBusyError(RuntimeError):
    """Another driver runs the study."""


class Lease:
    """The right to write one study directory, from construction to `end`.

    `job`: an identifier shared by all drivers of one Slurm job; they run one after another when the
    job is requeued. `resume`: the command that resumes the study, if it is not --resume with its
    name. The constructor takes up to 30 s if the last driver ran on another node and was
    killed. It raises StudyBusyError if another driver is running, and OSError if the directory
    cannot be read or written.
    """

    def __init__(self, directory: Path, *, job: str | None, resume: str | None = None) -> None:
        self._path = directory / "driver.json"
        self._mine = _this_process() | {"job": job, "nonce": secrets.token_hex(8)}
        if resume is not None:
            self._mine |= {"slurm_job": slurm.number(), "resume": resume}
        self._over = threading.Event()
        self.lost = False
        self._take(job)
        self._heard = _now()  # when others last heard of this driver, or earlier
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises StudyBusyError if another driver has taken over. Call it before each write to the
        study directory. It reads files only if this process was suspended for too long."""
        if _now() - self._heard > _SILENCE_S / 2:
            self.lost = self.lost or self._replaced()
        if self.lost:
            raise self._taken_over()

    def end(self, *, finished: bool = False) -> None:
        """Releases the study, so that the next driver need not wait. A second call does nothing.

        `finished`: no work is left. Otherwise the study is saved and can be resumed.
        """
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        nonce = self._mine["nonce"]
        draft = self._draft(nonce, 0)
        self._mine |= {"ended": round(time.time(), 3), "finished": finished}
        try:
            draft.write_text(json.dumps(self._mine) + "\n")
            # Checked after writing the draft: the next driver makes its claim before it deletes
            # this draft.
            if read(self._path.parent).get("nonce") == nonce and not self._claim(nonce, 1).exists():
                draft.rename(self._path)
        except OSError:
            pass  # the journal reports a full disk; without its draft this driver was replaced
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _take(self, job: str | None) -> None:
        mine = self._path.with_name(f".driver.{self._mine['nonce']}")
        try:
            while not self._follow(mine, job):
                time.sleep(0.02)
        finally:
            mine.unlink(missing_ok=True)

    def _follow(self, mine: Path, job: str | None) -> bool:
        """Replaces driver.json with the draft `mine`, in the four steps explained above.

        Returns False if another process was faster. Raises StudyBusyError if another driver is
        running.
        """
        before = _load(self._path)
        nonce, number = _nonce(before), 1
        while self._claim(nonce, number).exists():
            number += 1
        latest = before if number == 1 else _load(self._draft(nonce, number - 1))
        just_claimed = number > 1 and not latest
        if (just_claimed or not _over(latest, job)) and _alive(self._path, latest):
            if just_claimed:
                return False
            raise StudyBusyError(
                f"the study {self._path.parent.name} is being run by process {latest.get('pid')} "
                f"on {latest.get('host')}: wait until it ends, or stop it first"
            )
        mine.write_text(json.dumps(self._mine) + "\n")  # before the claim: a full disk leaves none
        try:
            self._claim(nonce, number).open("x").close()
        except FileExistsError:
            return False
        draft = self._draft(nonce, number)
        try:
            mine.rename(draft)
            return self._replace(nonce, number, draft, mine)
        except FileNotFoundError:  # a later claim has deleted the draft
            raise self._taken_over() from None
        finally:
            draft.unlink(missing_ok=True)

    def _replace(self, nonce: str, number: int, draft: Path, mine: Path) -> bool:
        """Takes steps 2 to 4. Raises FileNotFoundError if the process of a later claim is ahead."""
        if _nonce(_load(self._path)) != nonce:
            draft.rename(mine)
            self._claim(nonce, number).unlink(missing_ok=True)
            return False
        if self._claim(nonce, number + 1).exists():
            raise self._taken_over()
        for earlier in range(number):
            self._draft(nonce, earlier).unlink(missing_ok=True)
        draft.rename(self._path)
        if _nonce(_load(self._path)) != self._mine["nonce"]:
            raise self._taken_over()
        with contextlib.suppress(OSError):
            for claim in range(1, number + 1):
                self._claim(nonce, claim).unlink(missing_ok=True)
        return True

    def _taken_over(self) -> StudyBusyError:
        return StudyBusyError(f"another driver has taken over the study {self._path.parent.name}")

    def _claim(self, nonce: str, number: int) -> Path:
        """Returns the claim of the `number`th process that wants to follow the driver `nonce`."""
        return self._path.with_name(f".driver.{nonce}.{number}")

    def _draft(self, nonce: str, number: int) -> Path:
        """Returns the file that the process with this claim renames to driver.json.

        `number` 0: the draft of the driver `nonce` itself.
        """
        return self._path.with_name(f".driver.{nonce}.{number}.json")

    def _replaced(self) -> bool:
        mine = self._mine["nonce"]
        # A file system that cannot be read for a moment proves nothing.
        with contextlib.suppress(OSError):
            current = read(self._path.parent).get("nonce", mine)
            return current != mine or self._claim(mine, 1).exists()
        return False

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            now = _now()
            if self._replaced():
                self.lost = True
                return
            with contextlib.suppress(OSError):  # the journal reports a full disk
                os.utime(self._path)
                self._heard = now


class Life(enum.Enum):
    """The state of a study: whether a driver runs it, or how the last one left it."""

    RUNNING = "running"
    SAVED = "saved"  # its driver exited cleanly, with work left
    CANCELLED = "cancelled"  # the user cancelled its job, with work left
    DEAD = "dead"  # its driver was killed, with work left
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Seen:
    """The state of a study according to driver.json.

    `ago_s`: how long a dead driver has been silent, in s. `by_clock`: True if the study
    directory is not writable, so this was measured with the clock of this machine. `resume`:
    the command or the flag that resumes the study.
    """

    life: Life
    ago_s: float = 0.0
    by_clock: bool = False
    resume: str = ""


def look(directory: Path, *, complete: bool) -> Seen:
    """Returns whether a driver runs the study. `complete`: its journal has no work left.

    This does not wait. A driver on another node counts as dead if it has not touched driver.json
    for 30 s by the clock of the file system. slurm/status.sh does the same without Python.
    """
    driver = read(directory)
    resume = str(driver.get("resume", f"--resume {directory.name}"))
    if "ended" in driver:
        left = Life.CANCELLED if _was_cancelled(directory, driver) else Life.SAVED
        return Seen(Life.FINISHED if complete or driver.get("finished") else left, resume=resume)
    now, by_clock = _file_system_time(directory)
    ago_s = now - _last_sign(directory)
    if driver and (alive := _alive_here(driver)) is not None:
        by_clock = False
    else:
        # A time far in the future proves no more than one far in the past.
        alive = bool(driver) and abs(ago_s) <= _SILENCE_S
    if alive:
        return Seen(Life.RUNNING, by_clock=by_clock)
    if complete:
        return Seen(Life.FINISHED)
    if _was_cancelled(directory, driver):
        return Seen(Life.CANCELLED, resume=resume)
    return Seen(Life.DEAD, max(0.0, ago_s), by_clock, resume)


def _was_cancelled(directory: Path, driver: dict[str, Any]) -> bool:
    """Returns whether the user cancelled the job of this driver: slurm/tune.sbatch then writes the
    driver's nonce, because the driver may be killed before it could."""
    try:
        return (directory / ".driver.cancelled").read_text().strip() == _nonce(driver)
    except OSError:
        return False


def _last_sign(directory: Path) -> float:
    """Returns when the study was last heard of, in s since 1970. Studies of earlier versions have
    no driver.json."""
    names = ("driver.json", "trials.jsonl", "study.yaml")
    return next((path.stat().st_mtime for n in names if (path := directory / n).exists()), 0.0)


def _file_system_time(directory: Path) -> tuple[float, bool]:
    """Returns the file system's current time, taken from a new file, and False. If no file can be
    written there, returns this machine's time and True."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".now-", dir=directory) as file:
            return os.fstat(file.fileno()).st_mtime, False
    except OSError:
        return time.time(), True


def _now() -> float:
    """Returns a time in s that also advances while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read(directory: Path) -> dict[str, Any]:
    """Returns the driver that runs the study or ran it last; {} if there was none."""
    try:
        return _load(directory / "driver.json")
    except OSError:
        return {}


def _load(path: Path) -> dict[str, Any]:
    """Returns what a driver wrote about itself; {} if there is none. Raises OSError if it cannot be
    read."""
    try:
        driver = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return driver if isinstance(driver, dict) else {}


def _nonce(driver: dict[str, Any]) -> str:
    return str(driver.get("nonce", _NOBODY))


def _over(other: dict[str, Any], job: str | None) -> bool:
    """Returns whether the driver has written that it ended, or must have ended."""
    # Slurm starts a job again only when its earlier run has ended.
    return not other or "ended" in other or (job is not None and other.get("job") == job)


def _alive(path: Path, other: dict[str, Any]) -> bool:
    """Returns whether the driver is alive.

    For a driver on another machine, this waits up to 30 s to see if the driver's file is touched;
    no clocks are compared.
    """
    if (alive := _alive_here(other)) is not None:
        return alive
    before, deadline = _modified(path), time.monotonic() + _SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if _modified(path) != before:
            return True
    return False


def _alive_here(other: dict[str, Any]) -> bool | None:
    """Returns whether the driver is a live process of this machine and container; None if it ran on
    another machine or in another container."""
    here = _this_process()
    if any(other.get(name) != here[name] for name in ("boot", "pids")):
        return None
    return _began(other["pid"]) == other["began"]


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "began": _began(pid),
        # The machine since its last boot, and the container in which the pid is valid.
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": str(Path("/proc/self/ns/pid").readlink()),
    }


def _began(pid: int) -> int | None:
    """Returns when the process began, in ticks since boot; None if there is no such process."""
    try:
        # The fields after the name, which is in brackets and may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
