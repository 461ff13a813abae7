"""Trains one config without Ray and without a study directory, so that a debugger works.

With several processes, a debugger works in this one, which has rank 0.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.machine import gpus, resources
from siftune.space import Config
from siftune.study.reading import read_saved
from siftune.trainables import TRAINABLES, TrainableSpec
from siftune.trainables.base import Trainable
from siftune.trial import session
from siftune.trial.metrics import plain

_ERROR_S = 3.0  # after an error of this process, to see whether another one has failed first

OnEpoch = Callable[[Mapping[str, Any]], None]


class _Session:
    """The session of a single config, trained in the launch directory."""

    trial = study = "train"
    checkpoint: Path | None = None

    def __init__(self, config: Config, processes: int, on_epoch: OnEpoch | None) -> None:
        """`on_epoch`: called with the metrics of each epoch. None: they are ignored."""
        self.config = config
        self.directory = Path.cwd()
        self.resources: tuple[dict[str, float], ...] = ({"CPU": 1.0},) * processes
        self._on_epoch = on_epoch

    def report(self, metrics: Mapping[Any, Any], checkpoint: Any = None) -> None:
        if self._on_epoch:
            self._on_epoch(plain(metrics))


def train(
    spec: TrainableSpec, config: Config, on_epoch: OnEpoch, *, save_to: Path | None = None
) -> None:
    """Trains one config in `spec.processes` processes, of which this one is rank 0.

    `on_epoch` is called with the metrics of each epoch. `save_to`: the directory for the weights.
    A user-defined function saves its own weights. If another process fails, it has printed its
    error, and this process exits with 1.

    Raises UsageError if there are some GPUs, but fewer than processes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _train(spec, config, on_epoch, save_to or Path(scratch), store=Path(scratch, "store"))


def _train(
    spec: TrainableSpec, config: Config, on_epoch: OnEpoch, directory: Path, *, store: Path
) -> None:
    """`directory`: for the weights. `store`: a file in which the processes find each other."""
    trainable = spec.build()
    trainable.prepare()
    alone = _Session(config, spec.processes, on_epoch)
    if spec.processes == 1:
        _run(trainable, alone, directory)
        return
    names = _gpu_names(spec.processes)
    spawn = multiprocessing.get_context("spawn")
    others = [
        spawn.Process(target=_other, args=(rank, spec, config, directory, store, names[rank]))
        for rank in range(1, spec.processes)
    ]
    with _started(others), _joined(0, spec, store, names[0]):
        _run(trainable, alone, directory)
        for other in others:
            other.join()


def evaluate(best: Path, *, data: Path) -> dict[str, float]:
    """Returns the validation and test metrics of the weights named in a best.json.

    Raises UsageError if the file or its weights are missing, or if the trainable is user-defined.
    """
    try:
        record = json.loads(best.read_text())
        study = read_saved(best.parent)
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {best}: {error}") from None
    if not record.get("checkpoint"):
        raise UsageError(f"{best} names no weights: the trainable saved no checkpoint")
    if study.trainable not in TRAINABLES:
        raise UsageError(
            f"only built-in trainables can be evaluated here: load {record['checkpoint']} with the "
            f"code of {study.trainable}"
        )
    weights = best.parent / str(record["checkpoint"])
    if not weights.resolve().is_relative_to(best.parent.resolve()):
        raise UsageError(f"{best} names weights outside of its study: {record['checkpoint']}")
    if not weights.exists():
        raise UsageError(f"the weights {weights} do not exist")
    trainable = TRAINABLES.build(
        study.trainable, study.trainable_options, data=data, seed=study.seed
    )
    trainable.prepare()
    evaluated: dict[str, float] = trainable.evaluate(
        weights if weights.is_dir() else weights.parent
    )
    return evaluated


# ── Processes ───────────────────────────────────────────────────────────────────────────────────


def _run(trainable: Trainable, alone: _Session, directory: Path) -> None:
    session.install()
    with session.active(alone):
        trainable.run(alone.config, None, alone.report, save_in=lambda epoch: directory)


def _other(
    rank: int, spec: TrainableSpec, config: Config, directory: Path, store: Path, gpu: str
) -> None:
    """Trains as this rank, in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _joined(rank, spec, store, gpu):
        _run(spec.build(), _Session(config, spec.processes, on_epoch=None), directory)


def _gpu_names(processes: int) -> list[str]:
    """Returns the GPU of each process as CUDA_VISIBLE_DEVICES names it; "" without GPUs."""
    count = gpus.count()
    if not count:
        return [""] * processes
    if count < processes:
        raise UsageError(
            f"--processes-per-trial must be at most {count}, the number of GPUs, got {processes}: "
            "set CUDA_VISIBLE_DEVICES= to train on CPUs"
        )
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(count)]


@contextmanager
def _joined(rank: int, spec: TrainableSpec, store: Path, gpu: str) -> Iterator[None]:
    """Makes this process a member of the process group, as in a trial."""
    os.environ |= gpus.visible((gpu,)) if gpu else {}
    # All processes are on this machine, and no other one should reach them.
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    import torch
    import torch.distributed as dist

    from siftune.trainables.training import parallel

    torch.set_num_threads(resources.threads(resources.nodes()[0].cpus / spec.processes))
    untyped: Any = dist  # its type hints lack FileStore
    shared = untyped.FileStore(str(store), spec.processes)
    with parallel.joined(rank, spec.processes, shared):
        yield


@contextmanager
def _started(others: list[SpawnProcess]) -> Iterator[None]:
    """Runs the other processes. Ends this one if one of them fails, and them when it has ended."""
    done = threading.Event()
    for other in others:
        other.start()
    watching = threading.Thread(target=_watch, args=(others, done), daemon=True)
    watching.start()
    try:
        yield
    except Exception:
        # If another process has failed, its error is the cause, and `_watch` ends this process.
        watching.join(_ERROR_S)
        raise
    finally:
        done.set()
        for other in others:
            other.terminate()


def _watch(others: list[SpawnProcess], done: threading.Event) -> None:
    """Ends this process if another one fails, because it would wait for the other for ever."""
    running = {other.sentinel: rank for rank, other in enumerate(others, start=1)}
    while running:
        for ended in connection.wait(list(running)):
            rank = running.pop(ended)  # type: ignore[arg-type]
            other = others[rank - 1]
            other.join()
            if other.exitcode and not done.is_set():
                code = other.exitcode
                print(f"train: process {rank} ended with exit code {code}", file=sys.stderr)
                for each in others:
                    each.terminate()
                os._exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
