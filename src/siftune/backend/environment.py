"""What Ray reads from the environment when it is imported, and never again: hence set before.

This is the one place for ways of Ray's that its documentation names only in passing.
"""

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siftune.machine import resources, slurm

_ALWAYS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial with no GPU sees none
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # nor any process that no trial needs
    "RAY_COLOR_PREFIX": "0",  # no colours in a log file
}


@contextmanager
def prepared() -> Iterator[None]:
    """Ray's environment for a study of this process: that of the Slurm job, or of a Ray on this
    machine, whose files are in a directory of its own for the time.

    To be entered before Ray is imported, which the user's file does: Ray reads it only then.
    """
    before = dict(os.environ)
    try:
        with _prepared():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _prepared() -> Iterator[None]:
    os.environ.pop("RAY_ADDRESS", None)
    if "RAY_memory_usage_threshold" not in os.environ:
        # Ray would kill workers where a node is short of memory, whoever uses it. The kernel kills
        # the process that uses most, a trial: it alone is retried.
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    if directory := slurm.job_directory():
        os.environ |= _ALWAYS | {"RAY_AUTH_TOKEN_PATH": str(directory / "token")}
        yield
        return
    with _private_directory() as directory:
        (directory / "token").touch(mode=0o600)
        (directory / "token").write_text(secrets.token_hex(32))
        own = {
            "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
            # Ray opens the directory that it is given to every account: hence one below.
            "RAY_TMPDIR": str(directory / "r"),
            # Ray's only word for an address of loopback, where no other machine reaches it.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        (directory / "r").mkdir()
        os.environ |= _ALWAYS | own | _certificate(directory)
        yield


def private_directory() -> Path:
    """That of the Ray on this machine."""
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent


def _certificate(directory: Path) -> dict[str, str]:
    """TLS, so that without this certificate there is no connection: see in_image in slurm/lib.sh.

    Where there is no openssl the token alone guards Ray's ports.
    """
    own = {"RAY_TLS_SERVER_CERT": "tls.crt", "RAY_TLS_SERVER_KEY": "tls.key"}
    paths = {name: str(directory / file) for name, file in own.items()}
    paths["RAY_TLS_CA_CERT"] = paths["RAY_TLS_SERVER_CERT"]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365"
    command += " -subj /CN=siftune -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    to = ["-out", paths["RAY_TLS_SERVER_CERT"], "-keyout", paths["RAY_TLS_SERVER_KEY"]]
    try:
        subprocess.run([*command.split(), *to], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return {"RAY_USE_TLS": "0"}
    return paths | {"RAY_USE_TLS": "1"}


@contextmanager
def _private_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sift-", dir=resources.LOCAL_TMP))
    try:
        with (directory / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            _remove_dead(directory.parent)
            yield directory
    finally:
        remove(directory)


def _remove_dead(parent: Path) -> None:
    """Removes this user's whose driver was killed, and so let go of its lock."""
    for directory in parent.glob("sift-*"):
        with suppress(OSError):  # alive, or just gone
            if directory.lstat().st_uid != os.getuid():
                continue
            began = (directory / "alive").stat().st_mtime
            with (directory / "alive").open("r+") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - began > 10:  # not one that is about to take its lock
                    remove(directory)


def remove(directory: Path) -> None:
    """Removes the directory of a Ray that has ended."""
    # The lock last: where something still writes, the next driver tries again.
    shutil.rmtree(directory / "r", ignore_errors=True)
    if not (directory / "r").exists():
        shutil.rmtree(directory, ignore_errors=True)
