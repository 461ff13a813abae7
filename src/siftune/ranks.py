"""The processes of a trial on several GPUs: one for each, placed together, and warm.

Ray Tune's process of the trial is rank 0: it trains its part, and its reports are the trial's. It
starts the others, in the GPUs that were set aside with its own, once for all its trials. What it
hears at a report, to go on or to end, it passes on.

Ray Train would start all processes anew for each trial, and train on while the scheduler decides.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch.distributed as dist
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.train._internal.session import get_session
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from siftune import cluster, parallel, zygote
from siftune.failures import RankEndedError
from siftune.space import Config

if TYPE_CHECKING:
    from siftune.trainables import Trainable

_PATIENCE = timedelta(days=1)
_GRACE_S = 30.0  # for rank 0 to notice by itself that another has ended
_GO_ON, _END = b"go on", b"end"


def train(trainable: Trainable, config: Config) -> None:
    """Trains one trial, in this process and the others, inside Ray Tune."""
    global _others
    if _others is None:
        _others = _Others(trainable.processes)
    _others.train(trainable, config)


def whereabouts() -> tuple[str, str | None]:
    """The nodes of this process's trials, and the numbers of their GPUs there."""
    found = [cluster.whereabouts(), *(_others.where if _others else [])]
    nodes = dict.fromkeys(node for node, _ in found)
    gpus = [gpu for _, gpu in found if gpu]
    return ",".join(nodes), ",".join(gpus) or None


class _Others:
    """All but rank 0, of each trial that this process trains, one after the other."""

    def __init__(self, processes: int) -> None:
        group = ray.util.get_current_placement_group()
        assert group
        actor = ray.remote(_Rank)
        self._ranks: list[Any] = [
            actor.options(
                num_cpus=group.bundle_specs[rank].get("CPU", 0),
                num_gpus=group.bundle_specs[rank].get("GPU", 0),
                max_concurrency=processes + 1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
            ).remote()
            for rank in range(1, processes)
        ]
        self.where: list[tuple[str, str | None]] = ray.get([r.where.remote() for r in self._ranks])
        self._trials = count()
        self._training: list[Any] = []  # of the trial before, as long as they have not ended

    def train(self, trainable: Trainable, config: Config) -> None:
        if self._training:
            ray.wait(self._training, num_returns=len(self._training))
        checkpoint = _tune_get_checkpoint()
        start = checkpoint.path if checkpoint else None
        session = get_session()
        assert session
        room = session.storage.trial_fs_path
        trial = str(next(self._trials))
        self._training = [
            actor.train.remote(trainable, config, start, room, rank, self._ranks[0], trial)
            for rank, actor in enumerate(self._ranks, start=1)
        ]
        store = _Meeting(self._ranks[0], trial)
        reports = count()

        def report(metrics: dict[str, Any], checkpoint: tune.Checkpoint | None = None) -> None:
            word = _END
            try:
                _tune_report(metrics, checkpoint=checkpoint)
                word = _GO_ON
            finally:  # SystemExit, where the trial is to end
                store.set(f"report{next(reports)}", word)

        over = threading.Event()
        threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            _interface()
            with parallel.joined(0, trainable.processes, store):
                _run(trainable, config, start, report, room)
            ray.get(self._training)
        except Exception as error:
            raise self._cause(error) from None
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        """Ends this process where it waits for one that has ended. Not all of them say so."""
        while not over.wait(1):
            if self._failure(timeout_s=0) and not over.wait(_GRACE_S):
                os._exit(1)

    def _failure(self, *, timeout_s: float) -> Exception | None:
        """The error of one of the others, if one has ended with an error."""
        left = self._training
        while left:
            ended, left = ray.wait(left, timeout=timeout_s)
            if not ended:
                return None
            try:
                ray.get(ended)
            except Exception as error:
                return error
        return None

    def _cause(self, error: Exception) -> Exception:
        """The error that came first: rank 0's, or another's that it follows from."""
        theirs = self._failure(timeout_s=5)
        if isinstance(theirs, RayActorError):
            return RankEndedError(" ".join(str(theirs).split()))
        follows = isinstance(error, RayTaskError) or type(error) in _BROKEN
        if follows and isinstance(theirs, RayTaskError) and type(theirs.cause) not in _BROKEN:
            return theirs
        return error


_BROKEN = (RuntimeError, dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)

_others: _Others | None = None
_tune_report, _tune_get_checkpoint = tune.report, tune.get_checkpoint


def _run(
    trainable: Trainable,
    config: Config,
    start: str | None,
    report: Callable[..., None],
    room: str,
) -> None:
    """The trial's part in this process. The user's own functions call Ray Tune's: they get these,
    which look the trial's up, because a file that was loaded once keeps what it imported."""
    global _now
    _now = report, start
    tune.report, tune.get_checkpoint = _report, _get_checkpoint
    trainable.run(config, Path(start) if start else None, report, room=Path(room))


_now: tuple[Callable[..., None], str | None]


def _report(metrics: dict[str, Any], *, checkpoint: tune.Checkpoint | None = None) -> None:
    _now[0](metrics, checkpoint=checkpoint)


def _get_checkpoint() -> tune.Checkpoint | None:
    return tune.Checkpoint(_now[1]) if _now[1] else None


class _Rank:
    """One of the others, as Ray's actor. Rank 1 keeps the place where all of them meet, so that
    only who has the job's keys gets there."""

    def __init__(self) -> None:
        zygote.take_threads()
        cluster.without_mps()
        self._meeting: Any = dist.HashStore()  # type: ignore[attr-defined]
        self._meeting.set_timeout(_PATIENCE)

    def where(self) -> tuple[str, str | None]:
        return cluster.whereabouts()

    def meet(self, method: str, key: str, *words: Any) -> Any:
        if method == "check_one":
            return self._meeting.check([key])
        return getattr(self._meeting, method)(key, *words)

    def train(
        self,
        trainable: Trainable,
        config: Config,
        start: str | None,
        room: str,
        rank: int,
        first: Any,
        trial: str,
    ) -> None:
        """Trains its part of one trial, until rank 0 says that it is over."""
        store = _Meeting(first, trial)
        reports = count()

        def report(metrics: dict[str, Any], checkpoint: tune.Checkpoint | None = None) -> None:
            if store.get(f"report{next(reports)}") == _END:
                raise SystemExit

        _interface()
        with (
            suppress(SystemExit),
            parallel.joined(rank, trainable.processes, store),
        ):
            _run(trainable, config, start, report, room)


class _Meeting(dist.Store):  # type: ignore[name-defined]
    """torch's key-value store for one trial, kept by an actor: Ray's connections ask for the job's
    keys, torch's own would be open to every account on the node."""

    def __init__(self, keeper: Any, trial: str) -> None:
        super().__init__()
        self._keeper = keeper
        self._trial = trial

    def _ask(self, method: str, key: str, *words: Any) -> Any:
        return ray.get(self._keeper.meet.remote(method, f"{self._trial}/{key}", *words))

    def set(self, key: str, value: Any) -> None:
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        return self._ask("get", key)

    def add(self, key: str, value: int) -> int:
        return self._ask("add", key, value)

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        return self._ask("compare_set", key, expected_value, desired_value)

    def delete_key(self, key: str) -> bool:
        return self._ask("delete_key", key)

    def check(self, keys: list[str]) -> bool:
        return all(self._ask("check_one", key) for key in keys)

    def wait(self, keys: list[str], timeout: timedelta = _PATIENCE) -> None:
        for key in keys:
            self._ask("get", key)


def _interface() -> None:
    """Has gloo and NCCL use the interface that Ray was given, which joins the nodes."""
    own = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, asked)
                if socket.inet_ntoa(answer[20:24]) == own:
                    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name


_SIOCGIFADDR = 0x8915
