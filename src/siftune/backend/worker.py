"""The worker of a node: a Ray actor that starts and ends the processes of trials on the node.

There is one worker per node and not one per slot. All trials of a node are thus forked from one
fork server, and the modules that they import are in the node's memory only once.
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
    """The node that a worker runs on, and its GPUs there."""

    node: str  # its name
    node_id: str  # Ray's id
    gpus: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them


class Worker:
    """Runs trials on a node, each in its own process. Methods are called from several threads."""

    def __init__(self, setup: Setup) -> None:
        # The fork server's socket is in Ray's directory, because this process is killed at the end
        # and cannot remove it.
        tempfile.tempdir = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        several = setup.trainable.processes > 1
        self._server = Server(setup, interface=_interface() if several else None)
        self._board = Board()
        self._hosts: dict[str, Host] = {}  # by key, see `begin`
        self._idle: list[Host] = []  # with processes to be reused

    def place(self) -> Place:
        """Returns where the worker runs. This also shows that it is alive."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(os.uname().nodename, context.get_node_id(), tuple(sorted(gpus)))

    def begin(
        self, key: str, begin: Begin, gpus: tuple[str, ...], first: Any = None
    ) -> tuple[Message, str | None]:
        """Starts one process of a run. Returns its first report or its end, and the reason if
        trials cannot be forked.

        `key` names this process's part of the run in later calls. `first`: the worker of rank 0, in
        a trial of several processes.
        """
        host = self._hosts[key] = self._take(gpus)
        board = None
        if first is not None:
            board = self._board.call if begin.rank == 0 else _Remote(first)
        return self._pass_on(key, host.begin(begin, board)), self._server.cannot_fork

    def next(self, key: str, answer: Answer) -> Message:
        """Answers the last report. Returns the next report or the end."""
        return self._pass_on(key, self._hosts[key].next(answer))

    def stop(self, key: str) -> None:
        """Kills the process of a run. The call that waits for it returns its end."""
        if host := self._hosts.get(key):
            host.stop()

    def board(self, method: str, key: str, *words: Any) -> Any:
        """Calls a method of the board, through which the processes of a trial find each other."""
        return self._board.call(method, key, *words)

    def _take(self, gpus: tuple[str, ...]) -> Host:
        """Returns a host for a run: one with an idle process on these GPUs, or a new one."""
        for host in self._idle:
            if host.gpus == gpus:
                with suppress(ValueError):  # another thread took it first
                    self._idle.remove(host)
                    return host
        return Host(self._server, gpus)

    def _pass_on(self, key: str, message: Message) -> Message:
        """Returns the message. If it is an end, forgets the run and keeps a process for reuse."""
        if isinstance(message, End):
            host = self._hosts.pop(key)
            run, _, rank = key.partition(".")
            if rank == "0":
                self._board.forget(run)
            if host.is_alive:
                self._idle.append(host)
        return message


class _Remote:
    """Calls the board of another worker."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __call__(self, method: str, key: str, *words: Any) -> Any:
        import ray

        return ray.get(self._worker.board.remote(method, key, *words))


def _interface() -> str | None:
    """Returns the network interface with the address that Ray uses on this node, for gloo and NCCL;
    None if there is none."""
    import ray

    own = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


_SIOCGIFADDR = 0x8915
