"""Trials in processes of their own that one other process trains together."""

import multiprocessing
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_mnist import CONFIG as MNIST

from siftune.data import load_mnist
from siftune.failures import RankEndedError
from siftune.trainables import lane_server, lanes, mnist
from siftune.trainables.fused import Lane
from siftune.trainables.lane_server import Server, _Process, train_apart
from siftune.trainables.lanes import Room, Trial
from siftune.trainables.loop import STATE_FILE, Metrics

CONFIG = MNIST | {"conv1_channels": 4, "conv2_channels": 4, "conv3_channels": 0, "fc_dim": 32}
CONFIG["optimizer"] = "sgd"  # rounding grows less with it than with Adam
del CONFIG["step_size"]
SEED, IMAGES = 7, 600

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["siftune.trainables.mnist"])


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    found = Room(tmp_path, os.urandom(16))
    yield found
    if found.address.exists():
        wait_for_end(server(found))


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    """Of trials, started as they are needed."""
    with ProcessPoolExecutor(6, mp_context=_FORKS) as pool:
        yield pool


@pytest.fixture
def trial(mnist_directory: Path) -> Callable[..., Trial]:
    def make(start: Path | None = None, images: int = IMAGES, **changed: Any) -> Trial:
        return Trial(CONFIG | changed, start, SEED, mnist_directory, images)

    return make


def server(room: Room) -> int | None:
    """The process that listens, if one does."""
    with socket.socket(socket.AF_UNIX) as asked, suppress(OSError):
        asked.connect(str(room.address))
        credentials = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.unpack("3i", credentials)[0]
    return None


def wait_for_end(process: int | None) -> None:
    deadline = time.monotonic() + 30
    while process and Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline, f"{process} does not end"
        time.sleep(0.05)


def train(trial: Trial, room: Room, keep: Path | None = None) -> list[Metrics]:
    """All epochs of a trial, in a process of its own; its last state to `keep`."""
    torch.set_num_threads(1)  # as Ray's processes have it: on busy cores more of them crawl
    found = []
    for metrics, save in lanes.epochs(trial, room):
        found.append(metrics)
        if keep:
            save(keep)
    return found


def alone(trial: Trial) -> list[Metrics]:
    torch.set_num_threads(1)
    return [
        metrics
        for metrics, _ in mnist.epochs(
            trial.config,
            start=trial.start,
            seed=trial.seed,
            data=trial.data,
            images=trial.images,
        )
    ]


def assert_as_alone(found: list[Metrics], trial: Trial) -> None:
    expected = alone(trial)
    assert [m["epoch"] for m in found] == [m["epoch"] for m in expected]
    for name in ("loss", "val_loss"):
        assert [m[name] for m in found] == pytest.approx([m[name] for m in expected], abs=1e-3)


def test_trials_of_several_processes_and_shapes_end_as_alone(
    room: Room, processes: ProcessPoolExecutor, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    trials = [
        trial(lr=1e-3),
        trial(lr=3e-3, epochs=5),
        trial(lr=2e-3, scheduler="onecycle", epochs=1),
        trial(activation="gelu"),
    ]
    started = [
        processes.submit(train, some, room, tmp_path / str(i)) for i, some in enumerate(trials)
    ]
    for i, (future, some) in enumerate(zip(started, trials, strict=True)):
        assert_as_alone(future.result(), some)
        assert [path.name for path in (tmp_path / str(i)).iterdir()] == [STATE_FILE]
        state = torch.load(tmp_path / str(i) / STATE_FILE, weights_only=True)
        assert (state["epoch"], state["config"]) == (some.config["epochs"], some.config)


def test_a_trial_goes_on_from_its_checkpoint(
    room: Room, processes: ProcessPoolExecutor, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    def first(lr: float) -> Future:
        return processes.submit(_train_once, trial(lr=lr), room, tmp_path / f"{lr}")

    for future in [first(1e-3), first(2e-3)]:
        future.result()
    trials = [trial(tmp_path / f"{lr}", lr=lr) for lr in (1e-3, 2e-3)]
    for future, some in zip(
        [processes.submit(train, some, room) for some in trials], trials, strict=True
    ):
        found = future.result()
        assert [metrics["epoch"] for metrics in found] == [2, 3]
        assert_as_alone(found, some)
    assert processes.submit(train, trial(tmp_path / "0.001", epochs=1), room).result() == []


def _train_once(trial: Trial, room: Room, keep: Path) -> None:
    """One epoch; then it is stopped, as by a scheduler."""
    torch.set_num_threads(1)
    epochs = lanes.epochs(trial, room)
    _, save = next(epochs)
    save(keep)
    epochs.close()


def test_what_is_wrong_with_a_trial_is_said_to_it_alone(
    room: Room, processes: ProcessPoolExecutor, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"no state")
    healthy = processes.submit(train, trial(epochs=4), room)
    wild = processes.submit(train, trial(lr=1e30), room)
    unread = processes.submit(train, trial(tmp_path), room)
    with pytest.raises(FloatingPointError, match=r"in epoch 1 at lr 1e\+30: lower lr"):
        wild.result()
    with pytest.raises((RuntimeError, EOFError)):
        unread.result()
    assert_as_alone(healthy.result(), trial(epochs=4))
    assert_as_alone(processes.submit(train, trial(), room).result(), trial())


def test_a_killed_server_is_a_crash_of_each_trial_and_another_one_goes_on(
    room: Room, processes: ProcessPoolExecutor, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    started = [
        processes.submit(train, trial(lr=lr, epochs=200), room, tmp_path / f"{lr}")
        for lr in (1e-3, 2e-3)
    ]
    while not all((tmp_path / f"{lr}" / STATE_FILE).exists() for lr in (1e-3, 2e-3)):
        time.sleep(0.05)
    first = server(room)
    assert first
    os.kill(first, signal.SIGKILL)
    for future in started:
        with pytest.raises(RankEndedError, match="has ended"):
            future.result()
    assert processes.submit(train, trial(), room).result()[-1]["epoch"] == 3
    assert server(room) != first


def test_it_ends_with_its_last_process_in_the_middle_of_an_epoch(
    room: Room, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    # Some 50 s an epoch; a process that is killed says nothing.
    long = trial(images=60_000, conv1_channels=32)
    killed = [_FORKS.Process(target=train, args=(long, room)) for _ in range(2)]
    for process in killed:
        process.start()
    while not (found := server(room)) or _cpu_s(found) < 8:
        time.sleep(0.1)
    for process in killed:
        process.kill()
    wait_for_end(found)


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_cannot_be_trained_together_is_trained_apart(trial: Callable[..., Trial]) -> None:
    wrong = {"scheduler": "step"}  # and no step_size
    made = [_lane(trial(**changed)) for changed in ({}, wrong, {"lr": 3e-3})]
    data = load_mnist(trial().data, seed=SEED, device="cpu", images=IMAGES)
    found, most = train_apart(made, data, seed=SEED, most=8)
    assert most == 8
    assert isinstance(found[1], KeyError)
    assert [lane.epoch for lane in made] == [1, 0, 1]
    for metrics, some in zip((found[0], found[2]), (trial(), trial(lr=3e-3)), strict=True):
        assert isinstance(metrics, dict)
        assert metrics["loss"] == pytest.approx(alone(some)[0]["loss"], abs=1e-3)


def test_what_the_memory_does_not_hold_is_trained_in_parts(
    processes: ProcessPoolExecutor, trial: Callable[..., Trial]
) -> None:
    wide = trial(conv1_channels=32, batch_size=256, lr=1e-3)
    assert processes.submit(_train_in_little_memory, wide, 400, 8).result() in (1, 2, 3, 4)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        processes.submit(_train_in_little_memory, wide, 45, 2).result()


def _train_in_little_memory(trial: Trial, mib: int, lanes: int) -> int:
    """How many lanes at once it came to, of an epoch of so many."""
    torch.set_num_threads(1)
    data = load_mnist(trial.data, seed=SEED, device="cpu", images=IMAGES)
    made = [_lane(trial) for _ in range(lanes)]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    found, most = train_apart(made, data, seed=SEED, most=100)
    for metrics in found:
        if isinstance(metrics, Exception):
            raise metrics
    assert [lane.epoch for lane in made] == [1] * lanes
    return most


def _lane(trial: Trial) -> Lane:
    data = load_mnist(trial.data, seed=SEED, device="cpu", images=trial.images)
    return Lane(mnist.new_training(trial.config, data, seed=SEED))


def test_others_do_not_get_in(
    room: Room, processes: ProcessPoolExecutor, trial: Callable[..., Trial]
) -> None:
    started = processes.submit(train, trial(epochs=10), room)
    while not server(room):
        time.sleep(0.05)
    with pytest.raises(AuthenticationError):
        Client(str(room.address), "AF_UNIX", authkey=b"guessed")
    assert len(started.result()) == 10


def test_it_ends_when_the_last_process_goes_right_after_it_spoke(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = Server(listener, b"secret")
        ours, theirs = multiprocessing.Pipe()
        server._processes[ours] = _Process()
        theirs.send(("leave", 1))
        theirs.close()
        serving = Thread(target=server.serve, daemon=True)
        serving.start()
        serving.join(10)
        assert not serving.is_alive()


def test_who_comes_while_the_last_process_goes_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Connection] = []

    class Poll:
        def __init__(self) -> None:
            self._poll = select.poll()
            self.register = self._poll.register

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            found = self._poll.poll(timeout)
            came.append(Client(str(tmp_path / "socket"), authkey=b"secret"))
            return found

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = Server(listener, b"secret")
        server._accepting.start()
        ours, theirs = multiprocessing.Pipe()
        server._processes[ours] = _Process()
        theirs.close()
        with monkeypatch.context() as patched:
            patched.setattr(lane_server, "select", SimpleNamespace(**vars(select) | {"poll": Poll}))
            assert not server._abandoned()
        server._welcome()
        server._lose(ours)
        assert len(server._processes) == 1
        assert not server._abandoned()
        came[0].close()
        assert server._abandoned()
