"""Starts trial processes and communicates with them. Does not use Ray.

Trial processes are forked from the standard library's fork server. The server has imported what
trials need, has one thread and does not use CUDA. If importing the user's file starts threads or
initialises CUDA, a fork would be unsafe. Each process is then a new interpreter.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from siftune import trainables
from siftune.machine.gpus import visible
from siftune.trial import process, warm
from siftune.trial.messages import Answer, Begin, Cause, End, Message, Report, Setup

_STOP_S = 10.0  # deadline for a trial that is told to stop
_EXIT_S = 60.0  # deadline for a finished trial's process to exit: it runs its atexit functions

_SERVER_GONE = 255  # multiprocessing's exit code for a process whose fork server has ended

Ask = Callable[..., Any]

# Starting a process and reading the exit code of another must not overlap, because multiprocessing
# also reads the exit codes of all processes when it starts one.
_LOCK = threading.Lock()


class Server:
    """Starts the processes of a worker's trials from a fork server.

    A process must have at most one Server.
    """

    def __init__(self, setup: Setup, *, interface: str | None = None) -> None:
        """`interface`: the network interface through which a trial's processes connect."""
        self.setup = setup
        self.cannot_fork: str | None = None  # the reason, once it is known
        self._interface = interface
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["siftune.trial.warm"])
        with _environment(self._warm()):
            forkserver.ensure_running()

    def pipe(self) -> tuple[Connection, Connection]:
        return self._context.Pipe()

    def start(self, connection: Connection, board: Connection | None, gpus: tuple[str, ...]) -> Any:
        """Starts and returns a process of siftune.trial.process that sees these GPUs."""
        forked = isinstance(self._context, ForkServerContext)
        variables = visible(gpus)
        started = self._context.Process(
            target=process.main, args=(connection, board, self.setup, variables, forked)
        )
        with _LOCK:
            if not forked:
                with _environment(self._warm() | variables):
                    started.start()
                return started
            while True:
                # Either call starts a new fork server if the last one has been killed.
                with _environment(self._warm()):
                    forkserver.ensure_running()
                    try:
                        started.start()
                    except (ConnectionError, EOFError):  # the fork server has just been killed
                        time.sleep(0.05)
                    else:
                        return started

    def fork_no_more(self, why: str) -> None:
        """Makes each further process a new interpreter, for the reason `why`."""
        self.cannot_fork = why
        self._context = multiprocessing.get_context("spawn")

    def _warm(self) -> dict[str, str]:
        trainable = self.setup.trainable
        own = {"PYTHONSAFEPATH": "1"}  # do not import the current directory's files as libraries
        if self._interface:
            own |= {"GLOO_SOCKET_IFNAME": self._interface, "NCCL_SOCKET_IFNAME": self._interface}
        modules = ["siftune.trial.process", *trainables.modules(trainable.name)]
        if trainable.processes > 1:
            modules.append("siftune.trial.store")
        return own | warm.wanted(trainable.name, str(trainable.options.get("args", "")), modules)


class Host:
    """The process of a trial, or of several in succession if processes are reused."""

    def __init__(self, server: Server, gpus: tuple[str, ...] = ()) -> None:
        """`gpus`: the GPUs that the trial sees, as in CUDA_VISIBLE_DEVICES."""
        self.gpus = gpus
        self._server = server
        self._process: Any = None
        self._connection: Connection | None = None
        self._killed = False
        self._oom_kills = 0

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that can train the next trial."""
        return self._process is not None

    def begin(self, begin: Begin, board: Ask | None = None) -> Message:
        """Starts a run of a trial and returns its first report, or its end.

        `board`: calls the board through which the trial's processes meet, if it has several.
        """
        self._oom_kills = _oom_kills()
        if self._process is None and not self._start(board):
            started = self._start(board)
            assert started, "a new interpreter can always continue"
        assert self._connection is not None
        with suppress(OSError):  # the process has ended: the next line finds out why
            self._connection.send(begin)
        return self._next(timeout_s=None)

    def next(self, answer: Answer) -> Message:
        """Answers the trial's last report and returns the next report, or the end."""
        assert self._connection is not None
        with suppress(OSError):
            self._connection.send(answer)
        return self._next(timeout_s=_STOP_S if answer is Answer.STOP else None)

    def stop(self) -> None:
        """Kills the trial's process and its children, even while a thread waits for a message."""
        if (child := self._process) is not None:
            self._killed = True
            _kill(child.pid)

    def _start(self, board: Ask | None) -> bool:
        """Starts a process. Returns False if it reports that it must not continue as a fork."""
        self._killed = False
        self._connection, child_end = self._server.pipe()
        requests, child_requests = self._server.pipe() if board else (None, None)
        self._process = self._server.start(child_end, child_requests, self.gpus)
        child_end.close()
        if board and requests and child_requests:
            child_requests.close()
            threading.Thread(target=_serve, args=(requests, board), daemon=True).start()
        why = None
        with suppress(EOFError, OSError):  # the process has ended: `_next` finds out why
            why = self._connection.recv()
        if why:
            self._server.fork_no_more(why)
            self._end()
        return why is None

    def _next(self, timeout_s: float | None) -> Message:
        connection, child = self._connection, self._process
        assert connection is not None
        ready = wait([connection, child.sentinel], timeout_s)
        if connection not in ready and child.sentinel in ready and _is_running(child.pid):
            ready = wait([connection], timeout_s)  # only the fork server has ended
        message: Message | None = None
        with suppress(EOFError, OSError):
            if connection.poll():
                message = connection.recv()
        if isinstance(message, Report) or (message and self._server.setup.reuse):
            return message
        if not ready:
            self.stop()  # it was told to stop and has not ended
        code = self._end()
        return message or self._explain(code)

    def _end(self) -> int:
        """Waits until the process has ended, and returns its exit code.

        Its memory, also on the GPU, is then free. Everything that the trial has started is killed.
        """
        child, connection = self._process, self._connection
        deadline = time.monotonic() + _EXIT_S
        wait([child.sentinel], _EXIT_S)
        while _is_running(child.pid) and time.monotonic() < deadline:
            time.sleep(0.02)  # only its fork server has ended
        self._killed = self._killed or time.monotonic() >= deadline
        _kill(child.pid)
        wait([child.sentinel])
        with _LOCK:
            child.join()
            code: int = child.exitcode
            child.close()
        if connection:
            connection.close()
        self._process = self._connection = None
        return code

    def _explain(self, code: int) -> End:
        """Explains the exit code of a process that ended without sending a message."""
        if self._killed:
            return End(cause=Cause.CRASH, error="its process was killed", killed=True)
        if code == _SERVER_GONE:
            error = "the fork server of its process was killed"
            return End(cause=Cause.CRASH, error=error, signal=signal.SIGTERM)
        if code >= 0:
            error = f"its process ended early with exit code {code}"
            return End(cause=Cause.CRASH, error=error)
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGKILL and _oom_kills() > self._oom_kills:
            error = f"its process was killed with {name}: the node has run out of memory"
            return End(cause=Cause.MEMORY, error=error)
        meaning = _MEANING.get(name)
        error = f"its process ended with {name}{f', {meaning}' if meaning else ''}"
        return End(cause=Cause.CRASH, error=error, signal=-code)


_MEANING = {
    "SIGSEGV": "a segmentation fault in native code",
    "SIGBUS": "a bus error: a mapped file was truncated, or /dev/shm is full",
    "SIGABRT": "native code aborted",
    "SIGKILL": "sent by a user, by Slurm, or by the kernel because memory ran out",
    "SIGTERM": "sent by a user or by Slurm",
}


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int | None) -> None:
    """Kills a trial's process and its process group."""
    if pid is None:
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it may not have created its group yet
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve(requests: Connection, board: Ask) -> None:
    """Passes the requests of a trial's process on to the board until the process has ended."""
    with suppress(EOFError, OSError):
        while True:
            requests.send(board(*requests.recv()))


def _oom_kills() -> int:
    """Returns how many processes the kernel has killed on this node because memory ran out."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for processes that are started in this context."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ |= changes
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
