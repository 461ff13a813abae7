"""A trial that another process trains, together with the trials of its shape on this device.

To Ray Tune it is a trial like any other, with a process of its own: this one, which asks for one
epoch after the other. The first such process on a device starts the one that trains, which is
lane_server.py; it ends with the last of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch

from siftune import cluster
from siftune.failures import RankEndedError
from siftune.trainables.loop import Metrics, Save, state_file


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be trained: the arguments of `mnist.epochs`."""

    config: dict[str, Any]
    start: Path | None
    seed: int
    data: Path
    images: int | None


@dataclass(frozen=True, slots=True)
class Room:
    """Where processes that share a device find each other: a directory that no other account
    enters, and a secret that only they know."""

    directory: Path
    key: bytes

    @property
    def address(self) -> Path:
        """The socket of this process's device."""
        device = os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu"
        # A MIG instance's name alone would be half of what a socket's path may have, 107 bytes.
        return self.directory / hashlib.sha256(device.encode()).hexdigest()[:8]


def room() -> Room | None:
    """That of this study's Ray on this node; None outside of Ray."""
    if (directory := cluster.node_directory()) is None:
        return None
    own = directory / "lanes"
    own.mkdir(mode=0o700, exist_ok=True)
    return Room(own, cluster.token())


def epochs(trial: Trial, room: Room) -> Iterator[tuple[Metrics, Save]]:
    """As `run_epochs`, of a trial that trains together with others. Raises RankEndedError if the
    process that trains them ends."""
    line = _line(room)
    number = line.join(trial)
    try:
        while answer := line.next(number):
            metrics, state = answer
            yield metrics, partial(_write, state)
    finally:
        line.leave(number)


def _write(state: bytes, directory: Path) -> None:
    with state_file(directory) as file:
        file.write_bytes(state)


class _Line:
    """This process's connection to the one that trains: a lane for one trial after another."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count()
        self.lost = False

    def join(self, trial: Trial) -> int:
        """A lane for the trial, at the next epoch's beginning. The number to speak of it by."""
        number = next(self._numbers)
        self._send("join", number, trial, torch.get_num_threads())
        return number

    def next(self, number: int) -> tuple[Metrics, bytes] | None:
        """Waits for the next epoch: its metrics and state.pt; None if all are done."""
        self._send("next", number)
        try:
            answer = self._connection.recv()
            state = self._connection.recv_bytes() if isinstance(answer, dict) else b""
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, Exception):
            raise answer
        return (answer, state) if answer else None

    def leave(self, number: int) -> None:
        with suppress(RankEndedError):
            self._send("leave", number)

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> RankEndedError:
        self.lost = True
        return RankEndedError("the process that trains this device's trials together has ended")


_lines: dict[Path, _Line] = {}


def _line(room: Room) -> _Line:
    line = _lines.get(room.address)
    if line is None or line.lost:
        line = _lines[room.address] = _Line(_connect(room))
    return line


def _connect(room: Room) -> Connection:
    def connect() -> Connection:
        return Client(str(room.address), "AF_UNIX", authkey=room.key)

    with room.address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process starts it, the others wait
        try:
            return connect()
        except (OSError, EOFError):  # there is none, or the last one is about to end
            _start(room)
            return connect()


def _start(room: Room) -> None:
    """Starts the process that trains, and waits until it listens."""
    reading, writing = os.pipe()
    server: list[Any] = [
        sys.executable,
        "-m",
        "siftune.trainables.lane_server",
        room.address,
        str(writing),
    ]
    try:
        subprocess.run(
            server, input=room.key, pass_fds=[writing], start_new_session=True, check=False
        )
        os.close(writing)
        if not os.read(reading, 1):
            raise RankEndedError("the process that is to train trials together does not start")
    finally:
        os.close(reading)
