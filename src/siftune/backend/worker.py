"""The worker of a node: a plain actor of Ray's that starts and ends the processes of trials there.

One for each node, and not one for each slot: all trials of a node are then forked from one server,
and what they import is in the node's memory once.
"""

import fcntl
import os
import socket
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from siftune.trial.board import Board
from siftune.trial.host import Host, Server
from siftune.trial.messages import Answer, Begin, End, Message, Setup


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is, and the GPUs that it has there."""

    node: str  # name
    node_id: str  # Ray's
    gpus: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them


class Worker:
    """Trains trials on a node, each in a process of its own. Calls come from several threads."""

    def __init__(self, setup: Setup) -> None:
        # The fork server's socket: this process is killed in the end, and removes nothing.
        tempfile.tempdir = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        several = setup.trainable.processes > 1
        self._server = Server(setup, interface=_interface() if several else None)
        self._board = Board()
        self._hosts: dict[str, Host] = {}  # of runs
        self._idle: list[Host] = []  # whose processes are reused

    def place(self) -> Place:
        """Where it is; answered as soon as it is there, and as long as it lives."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(os.uname().nodename, context.get_node_id(), tuple(sorted(gpus)))

    def begin(
        self, key: str, begin: Begin, gpus: tuple[str, ...], first: Any = None
    ) -> tuple[Message, str | None]:
        """Starts a process's part of a run: its first report, or its end; and why trials cannot be
        forked, if that is so.

        `key` names that part in the calls that follow. `first`: the worker of rank 0, in a trial of
        several processes.
        """
        host = self._hosts[key] = self._take(gpus)
        board = None
        if first is not None:
            board = self._board.call if begin.rank == 0 else _Remote(first)
        return self._said(key, host.begin(begin, board)), self._server.cannot_fork

    def next(self, key: str, answer: Answer) -> Message:
        """Answers the last report: the next one, or the end."""
        return self._said(key, self._hosts[key].next(answer))

    def stop(self, key: str) -> None:
        """Kills the process of a run, for which another call waits."""
        if host := self._hosts.get(key):
            host.stop()

    def board(self, method: str, key: str, *words: Any) -> Any:
        """A call of the board that the processes of a trial meet at."""
        return self._board.call(method, key, *words)

    def _take(self, gpus: tuple[str, ...]) -> Host:
        """A host for a run: one whose process waits for a trial, or a new one."""
        for host in self._idle:
            if host.gpus == gpus:
                with suppress(ValueError):  # another thread was quicker
                    self._idle.remove(host)
                    return host
        return Host(self._server, gpus)

    def _said(self, key: str, message: Message) -> Message:
        if isinstance(message, End):
            host = self._hosts.pop(key)
            run, _, rank = key.partition(".")
            if rank == "0":
                self._board.forget(run)
            if host.is_alive:
                self._idle.append(host)
        return message


class _Remote:
    """The board of another worker."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __call__(self, method: str, key: str, *words: Any) -> Any:
        import ray

        return ray.get(self._worker.board.remote(method, key, *words))


def _interface() -> str | None:
    """The network interface with the address that Ray was given, which joins the nodes: gloo and
    NCCL are to use it."""
    import ray

    own = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, asked)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


_SIOCGIFADDR = 0x8915
