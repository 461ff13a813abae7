"""Starts the processes of trials, and speaks with them. No Ray.

They are forked from a server that has imported what trials need: the standard library's, which has
one thread and does not use CUDA. Where importing the user's file starts threads or CUDA a fork
would not be safe, and each process is a new interpreter.
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

_STOP_S = 10.0  # for a trial that is told to stop
_EXIT_S = 60.0  # for the process of a trial that has ended: what is registered with atexit

_SERVER_GONE = 255  # multiprocessing's exit code for a process whose fork server has ended

Ask = Callable[..., Any]

# Starting a process and reading the exit code of another must not overlap: multiprocessing does
# both for all processes when it starts one.
_LOCK = threading.Lock()


class Server:
    """What the processes of a worker's trials are forked from. One in a process."""

    def __init__(self, setup: Setup, *, interface: str | None = None) -> None:
        """`interface`: the network interface that the processes of a trial connect with."""
        self.setup = setup
        self.cannot_fork: str | None = None  # why, once it is known
        self._interface = interface
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["siftune.trial.warm"])
        with _environment(self._warm()):
            forkserver.ensure_running()

    def pipe(self) -> tuple[Connection, Connection]:
        return self._context.Pipe()

    def start(self, connection: Connection, board: Connection | None, gpus: tuple[str, ...]) -> Any:
        """A process of siftune.trial.process that sees these GPUs."""
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
                with _environment(self._warm()):
                    forkserver.ensure_running()  # it may have been killed
                try:
                    started.start()
                except ConnectionError:  # it has just been killed
                    time.sleep(0.05)
                else:
                    return started

    def fork_no_more(self, why: str) -> None:
        """From now on each process is a new interpreter."""
        self.cannot_fork = why
        self._context = multiprocessing.get_context("spawn")

    def _warm(self) -> dict[str, str]:
        trainable = self.setup.trainable
        own = {"PYTHONSAFEPATH": "1"}  # nothing of this directory under the name of a library
        if self._interface:
            own |= {"GLOO_SOCKET_IFNAME": self._interface, "NCCL_SOCKET_IFNAME": self._interface}
        modules = ["siftune.trial.process", *trainables.modules(trainable.name)]
        if trainable.processes > 1:
            modules.append("siftune.trial.store")
        return own | warm.wanted(trainable.name, modules)


class Host:
    """The process of a trial, or of several, one after another, where processes are reused."""

    def __init__(self, server: Server, gpus: tuple[str, ...] = ()) -> None:
        """`gpus`: those that the trial sees, as CUDA_VISIBLE_DEVICES names them."""
        self.gpus = gpus
        self._server = server
        self._process: Any = None
        self._connection: Connection | None = None
        self._killed = False
        self._oom_kills = 0

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that waits for its next trial."""
        return self._process is not None

    def begin(self, begin: Begin, board: Ask | None = None) -> Message:
        """Starts a run of a trial; its first report, or its end. `board` is where the processes of
        the trial meet, if it has several."""
        self._oom_kills = _oom_kills()
        if self._process is None and not self._start(board):
            started = self._start(board)
            assert started, "a new interpreter always goes on"
        assert self._connection is not None
        with suppress(OSError):  # it has ended: the next line finds out why
            self._connection.send(begin)
        return self._next(timeout_s=None)

    def next(self, answer: Answer) -> Message:
        """Answers the trial's last report; the next report, or the end."""
        assert self._connection is not None
        with suppress(OSError):
            self._connection.send(answer)
        return self._next(timeout_s=_STOP_S if answer is Answer.STOP else None)

    def stop(self) -> None:
        """Kills the trial's process and all that it has started, also where a thread waits."""
        if (found := self._process) is not None:
            self._killed = True
            _kill(found.pid)

    def _start(self, board: Ask | None) -> bool:
        """False if the process says that it must not go on with what it was forked from."""
        self._killed = False
        self._connection, theirs = self._server.pipe()
        asked, asks = self._server.pipe() if board else (None, None)
        self._process = self._server.start(theirs, asks, self.gpus)
        theirs.close()
        if board and asked and asks:
            asks.close()
            threading.Thread(target=_serve, args=(asked, board), daemon=True).start()
        why = None
        with suppress(EOFError, OSError):  # it has ended, and says why when it is asked
            why = self._connection.recv()
        if why:
            self._server.fork_no_more(why)
            self._end()
        return why is None

    def _next(self, timeout_s: float | None) -> Message:
        connection, found = self._connection, self._process
        assert connection is not None
        ready = wait([connection, found.sentinel], timeout_s)
        if connection not in ready and found.sentinel in ready and _is_running(found.pid):
            ready = wait([connection], timeout_s)  # only the fork server has ended
        message: Message | None = None
        with suppress(EOFError, OSError):
            if connection.poll():
                message = connection.recv()
        if isinstance(message, Report) or (message and self._server.setup.reuse):
            return message
        if not ready:
            self.stop()  # it was told to end, and does not
        code = self._end()
        return message or self._died(code)

    def _end(self) -> int:
        """Waits for the end of the process: its memory, of the GPU too, is then free. The exit
        code. Whatever the trial has started ends with it."""
        found, connection = self._process, self._connection
        deadline = time.monotonic() + _EXIT_S
        wait([found.sentinel], _EXIT_S)
        while _is_running(found.pid) and time.monotonic() < deadline:
            time.sleep(0.02)  # its fork server has ended
        self._killed = self._killed or time.monotonic() >= deadline
        _kill(found.pid)
        wait([found.sentinel])
        with _LOCK:
            found.join()
            code: int = found.exitcode
            found.close()
        if connection:
            connection.close()
        self._process = self._connection = None
        return code

    def _died(self, code: int) -> End:
        """What the exit code of a process says that ended without a word."""
        if self._killed:
            return End(cause=Cause.CRASH, error="its process was killed", killed=True)
        if code == _SERVER_GONE:
            said = "the server that its process was forked from was killed"
            return End(cause=Cause.CRASH, error=said, signal=signal.SIGTERM)
        if code >= 0:
            said = f"its process ended itself with exit status {code}"
            return End(cause=Cause.CRASH, error=said)
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGKILL and _oom_kills() > self._oom_kills:
            said = f"its process was killed with {name}: the node has run out of memory"
            return End(cause=Cause.MEMORY, error=said)
        meaning = _MEANING.get(name)
        said = f"its process ended with {name}{f', {meaning}' if meaning else ''}"
        return End(cause=Cause.CRASH, error=said, signal=-code)


_MEANING = {
    "SIGSEGV": "a segmentation fault in native code",
    "SIGBUS": "a bus error: a mapped file was cut short, or /dev/shm is full",
    "SIGABRT": "native code gave up",
    "SIGKILL": "sent by a person, by Slurm, or by the kernel for want of memory",
    "SIGTERM": "sent by a person or by Slurm",
}


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int | None) -> None:
    """Kills a trial's process, and the group of processes that it has started."""
    if pid is None:
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it may not have made its group yet
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve(asked: Connection, board: Ask) -> None:
    """Passes on what a trial's process asks the board, until the process has ended."""
    with suppress(EOFError, OSError):
        while True:
            asked.send(board(*asked.recv()))


def _oom_kills() -> int:
    """How many processes the kernel has killed on this node for want of memory."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables that a process started meanwhile has."""
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
