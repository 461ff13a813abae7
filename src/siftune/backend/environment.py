"""The environment variables of Ray, which must be set before Ray is imported.

Settings of Ray that are hardly documented are collected here.
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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # no processes that trials do not use
    "RAY_COLOR_PREFIX": "0",  # no colours in a log file
}


@contextmanager
def prepared() -> Iterator[None]:
    """Sets the environment variables of Ray for a study, and restores the environment on exit.

    The variables configure either the Slurm job's Ray or a Ray on this machine. The files of the
    latter are in a private directory that is removed on exit.

    Enter this before importing the user's file: the file may import Ray, which reads its
    environment variables at import.
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
        # Ray would kill a worker if its node runs out of memory, whichever process uses it. The
        # kernel instead kills the largest process, a trial, and only that trial is retried.
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    if directory := slurm.job_directory():
        os.environ |= _ALWAYS | {"RAY_AUTH_TOKEN_PATH": str(directory / "token")}
        yield
        return
    with _private_directory() as directory:
        (directory / "token").touch(mode=0o600)
        (directory / "token").write_text(secrets.token_hex(32))
        private = {
            "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
            # Ray opens this directory to every account, so it is a subdirectory.
            "RAY_TMPDIR": str(directory / "r"),
            # The only way to make Ray use the loopback address, which no other machine reaches.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        (directory / "r").mkdir()
        os.environ |= _ALWAYS | private | _certificate(directory)
        yield


def private_directory() -> Path:
    """Returns the directory with the files of the Ray on this machine."""
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent


def _certificate(directory: Path) -> dict[str, str]:
    """Creates a TLS certificate and returns the variables that make Ray use it.

    Connections without this certificate are refused; see in_image in slurm/lib.sh. Without openssl,
    only the token protects Ray's ports.
    """
    files = {"RAY_TLS_SERVER_CERT": "tls.crt", "RAY_TLS_SERVER_KEY": "tls.key"}
    paths = {name: str(directory / file) for name, file in files.items()}
    paths["RAY_TLS_CA_CERT"] = paths["RAY_TLS_SERVER_CERT"]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365"
    command += " -subj /CN=siftune -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    outputs = ["-out", paths["RAY_TLS_SERVER_CERT"], "-keyout", paths["RAY_TLS_SERVER_KEY"]]
    try:
        subprocess.run([*command.split(), *outputs], check=True, capture_output=True)
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
    """Removes this user's directories whose drivers were killed: their locks are released."""
    for directory in parent.glob("sift-*"):
        with suppress(OSError):  # in use, or just removed
            if directory.lstat().st_uid != os.getuid():
                continue
            created = (directory / "alive").stat().st_mtime
            with (directory / "alive").open("r+") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - created > 10:  # a new driver may not have locked it yet
                    remove(directory)


def remove(directory: Path) -> None:
    """Removes the directory of a Ray that has ended."""
    # The lock goes last: if a process still writes here, the next driver tries again.
    shutil.rmtree(directory / "r", ignore_errors=True)
    if not (directory / "r").exists():
        shutil.rmtree(directory, ignore_errors=True)
