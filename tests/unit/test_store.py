"""The processes of one trial exchange data through a board that each reaches by a pipe."""

import multiprocessing
import threading
from datetime import timedelta
from multiprocessing.connection import Connection

import pytest
import torch
import torch.distributed as dist

from siftune.trainables.training import parallel
from siftune.trial.board import Board
from siftune.trial.host import _serve
from siftune.trial.store import BoardStore

SPAWN = multiprocessing.get_context("spawn")


def asked(board: Board) -> Connection:
    """Returns a pipe to the board."""
    ours, theirs = SPAWN.Pipe()
    threading.Thread(target=_serve, args=(ours, board.call), daemon=True).start()
    return theirs


@pytest.fixture
def store() -> BoardStore:
    return BoardStore(asked(Board()), "run")


def test_it_does_what_torch_says_of_a_store(store: BoardStore) -> None:
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert (store.add("count", 2), store.add("count", 3)) == (2, 5)
    assert store.check(["key", "count"])
    assert not store.check(["key", "other"])
    assert store.compare_set("new", "", "first") == b"first"
    assert store.compare_set("new", "other", "second") == b"first"
    assert store.compare_set("new", "first", "second") == b"second"
    assert store.delete_key("key")
    assert not store.delete_key("key")
    with pytest.raises(dist.DistStoreError, match="was not set"):
        store.wait(["key"], timedelta(seconds=0.05))


def test_two_runs_do_not_see_each_other_s_keys() -> None:
    board = Board()
    first, second = BoardStore(asked(board), "one"), BoardStore(asked(board), "two")
    first.set("key", "value")
    assert not second.check(["key"])


def test_processes_that_meet_there_add_up_what_each_has() -> None:
    board, results = Board(), SPAWN.SimpleQueue()
    processes = [
        SPAWN.Process(target=_sum, args=(asked(board), rank, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert sorted(results.get() for _ in processes) == [3.0, 3.0]
    for process in processes:
        process.join()


def _sum(connection: Connection, rank: int, results: "multiprocessing.SimpleQueue[float]") -> None:
    with parallel.joined(rank, 2, BoardStore(connection, "run")):
        results.put(parallel.total(torch.tensor(float(rank + 1))).item())
