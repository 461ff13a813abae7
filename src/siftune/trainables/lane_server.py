"""The process that trains all fused trials of one device, those of one shape as one program.

It trains an epoch of all trials of a shape that have asked for one, then answers each, and waits a
moment for them to ask again: for most, Ray Tune's answer to the last epoch is to go on. So a trial
joins at the next epoch's beginning, and one that ends is not waited for. Trials of other shapes
take turns with these.

    python -m siftune.trainables.lane_server SOCKET READY    (the secret on standard input)
"""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import (
    Connection,
    Pipe,
    answer_challenge,
    deliver_challenge,
    wait,
)
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import torch

from siftune.data import Mnist, load_mnist
from siftune.space import key
from siftune.trainables import mnist
from siftune.trainables.fused import Lane, train_epoch
from siftune.trainables.lanes import Trial
from siftune.trainables.loop import Metrics, check_finite, default_device, restore, state_of

_FIRST_S = 60.0  # for the process that has started this one to connect
# How long a round waits for the trials of the one before, after it: for the scheduler's decision,
# and for a process that begins its next trial.
_GRACE_S, _GRACE_SHARE = 0.5, 0.1
# With a round that hangs, if not ten times the last one: as the driver's with a trial. Then this
# process ends, and trials go on in another one.
_LEAST_PATIENCE_S = 600.0


@dataclass(slots=True)
class _Process:
    """A process of Ray Tune's, and its trial."""

    number: int = -1
    trial: Trial | None = None
    threads: int = 1
    lane: Lane | None = None
    failure: Exception | None = None  # to be told when it asks
    asks: bool = False  # for an epoch

    @property
    def shape(self) -> Hashable:
        assert self.trial
        return key(mnist.shape(self.trial.config)), self.data

    @property
    def data(self) -> tuple[Path, int, int | None]:
        assert self.trial
        return self.trial.data, self.trial.seed, self.trial.images


@dataclass(slots=True)
class _Group:
    """Trials of one shape, as they were trained last."""

    lanes: int = 0
    ended: float = 0.0  # time.monotonic()
    seconds: float = 0.0
    most: int = sys.maxsize  # lanes for which the device has the memory

    @property
    def until(self) -> float:
        return self.ended + _GRACE_S + _GRACE_SHARE * self.seconds


class Server:
    """Trains what the processes at the other end of the socket ask for, until none is left."""

    def __init__(self, listener: socket.socket, secret: bytes) -> None:
        self._listener = listener
        self._secret = secret
        self._processes: dict[Connection, _Process] = {}
        self._groups: dict[Hashable, _Group] = {}
        self._arrived: SimpleQueue[Connection] = SimpleQueue()
        self._bell, self._ring = Pipe(duplex=False)  # rung for each that is in _arrived
        self._welcoming = Lock()
        self._accepting = Thread(target=self._accept, daemon=True)

    def serve(self) -> None:
        self._accepting.start()
        Thread(target=self._watch, daemon=True).start()
        self._hear(_FIRST_S)
        while True:
            while self._processes:
                self._hear(0)
                shape, patience_s = self._next()
                if shape is not None:
                    self._train(shape)
                elif self._processes:  # the last may just have gone
                    self._hear(patience_s)
            self._close()
            self._welcome()
            if not self._processes:
                return

    # ── Processes come, speak and go ────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        """Takes connections, at any time: who comes waits for a round, and not for several."""
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.settimeout(None)
            connection = Connection(accepted.detach())
            try:
                deliver_challenge(connection, self._secret)
                answer_challenge(connection, self._secret)
            except Exception:  # not one of ours, or gone
                connection.close()
                continue
            self._arrived.put(connection)
            self._ring.send(None)

    def _close(self) -> None:
        """Lets nobody in any more; who has come meanwhile has arrived, and is to be served."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()

    def _watch(self) -> None:
        """Ends this process in the middle of a round that nobody waits for any more."""
        while not self._abandoned():
            time.sleep(0.5)
        os._exit(0)

    def _abandoned(self) -> bool:
        gone = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP
        poll = select.poll()
        connections = list(self._processes)
        for connection in connections:
            with suppress(OSError):  # closed just now
                poll.register(connection.fileno(), select.POLLRDHUP)
        ended = [fd for fd, event in poll.poll(0) if event & gone]
        if not connections or len(ended) < len(connections):
            return False
        self._close()
        with self._welcoming:
            return self._arrived.empty() and self._processes.keys() == set(connections)

    def _welcome(self) -> None:
        with self._welcoming:
            while not self._arrived.empty():
                self._processes[self._arrived.get()] = _Process()

    def _hear(self, patience_s: float | None) -> None:
        """Takes what has been said, and waits for it if it must."""
        for speaking in wait([self._bell, *self._processes], patience_s):
            assert isinstance(speaking, Connection)
            if speaking is self._bell:
                self._bell.recv()
                self._welcome()
                continue
            try:
                self._understand(speaking, *speaking.recv())
            except (EOFError, OSError):
                self._lose(speaking)

    def _understand(self, connection: Connection, verb: str, number: int, *words: Any) -> None:
        process = self._processes[connection]
        if verb == "join":
            self._processes[connection] = self._join(number, *words)
        elif number != process.number:
            assert verb == "leave", "a process has one trial"
        elif verb == "leave":
            self._processes[connection] = _Process()
        elif process.failure:
            connection.send(process.failure)
        elif process.lane and process.lane.epoch >= process.lane.training.epochs:
            connection.send(None)
        else:
            process.asks = True

    def _join(self, number: int, trial: Trial, threads: int) -> _Process:
        process = _Process(number=number, trial=trial, threads=threads)
        try:
            training = mnist.new_training(trial.config, _data(process), seed=trial.seed)
            process.lane = Lane(training, restore(training, trial.start) if trial.start else 0)
        except Exception as error:
            traceback.print_exc()
            process.failure = _told(error)
        return process

    def _lose(self, connection: Connection) -> None:
        self._processes.pop(connection).lane = None
        connection.close()

    # ── Rounds ──────────────────────────────────────────────────────────────────────────────────

    def _next(self) -> tuple[Hashable | None, float | None]:
        """The shape to be trained now; else how long to wait for more of one's trials."""
        now = time.monotonic()
        asking: dict[Hashable, int] = {}
        for process in self._processes.values():
            if process.asks:
                asking[process.shape] = asking.get(process.shape, 0) + 1
        groups = {shape: self._groups.setdefault(shape, _Group()) for shape in asking}
        ready = [s for s, g in groups.items() if asking[s] >= g.lanes or now >= g.until]
        if ready:
            return min(ready, key=lambda shape: groups[shape].ended), None
        return None, min((g.until - now for g in groups.values()), default=None)

    def _train(self, shape: Hashable) -> None:
        """One epoch of all trials of a shape that have asked for it."""
        asking = {c: p for c, p in self._processes.items() if p.asks and p.shape == shape}
        group = self._groups[shape]
        threads = sum(process.threads for process in asking.values())
        torch.set_num_threads(min(threads, len(os.sched_getaffinity(0))))
        if group.seconds:  # of the first one nobody knows how long it takes
            patience_s = max(_LEAST_PATIENCE_S, 10 * group.seconds)
            faulthandler.dump_traceback_later(patience_s, exit=True)
        began = time.monotonic()
        lanes = [process.lane for process in asking.values() if process.lane]
        first = next(iter(asking.values()))
        outcomes, group.most = train_apart(lanes, _data(first), seed=first.data[1], most=group.most)
        faulthandler.cancel_dump_traceback_later()
        for (connection, process), outcome in zip(asking.items(), outcomes, strict=True):
            process.asks = False
            try:
                _answer(connection, process, outcome)
            except OSError:
                self._lose(connection)
        group.lanes, group.ended = len(asking), time.monotonic()
        group.seconds = group.ended - began


def train_apart(
    lanes: list[Lane], data: Mnist, *, seed: int, most: int
) -> tuple[list[Metrics | Exception], int]:
    """Metrics of an epoch of each lane, or why there are none; at most so many at once.

    Where several cannot be trained together, halves of them are, down to the one that is to blame:
    the others are none the worse for it. Also gives how many the device has the memory for. Raises
    what a broken device raises.
    """
    found: list[Metrics | Exception] = []
    parts = [lanes[i : i + most] for i in range(0, len(lanes), most)]
    while parts:
        some, *parts = parts
        try:
            found += train_epoch(some, data, seed=seed)
            continue
        except Exception as error:
            traceback.print_exc()
            failure = _told(error)
        _check_device()
        if len(some) == 1:
            found.append(failure)
            continue
        half = len(some) // 2
        parts = [some[:half], some[half:], *parts]
        if isinstance(failure, MemoryError):
            most = min(most, half)
    return found, most


def _data(process: _Process) -> Mnist:
    directory, seed, images = process.data
    return load_mnist(directory, seed=seed, device=default_device(), images=images)


def _answer(connection: Connection, process: _Process, outcome: Metrics | Exception) -> None:
    """Tells a process its metrics and state, or its trial's failure."""
    assert process.trial
    assert process.lane
    try:
        if isinstance(outcome, Exception):
            raise outcome
        check_finite(outcome, process.trial.config)
    except Exception as error:
        process.lane, process.failure = None, error
        connection.send(error)
        return
    state = io.BytesIO()
    torch.save(state_of(process.lane.training, process.lane.epoch), state)
    connection.send(outcome)
    connection.send_bytes(state.getbuffer())


def _told(error: Exception) -> Exception:
    """The error as another process can be told it, and as failures.py knows it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return MemoryError(text)
    return error if type(error).__module__ == "builtins" else RuntimeError(text)


def _check_device() -> None:
    """Raises where the device does no more work, after an error: then this process is to end, and
    trials go on in another one. Gives back memory that nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.zeros(1, device="cuda").add_(1).item()


def main() -> None:
    address, ready = Path(sys.argv[1]), int(sys.argv[2])
    secret = sys.stdin.buffer.read()
    # A child of nobody: Ray ends the children of a process with it, and others are served too.
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    with socket.socket(socket.AF_UNIX) as listener:
        address.unlink(missing_ok=True)  # of one that has ended
        listener.bind(str(address))
        listener.listen(128)
        os.write(ready, b".")
        os.close(ready)
        Server(listener, secret).serve()


if __name__ == "__main__":
    main()
