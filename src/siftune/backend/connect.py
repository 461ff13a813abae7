"""Connects to Ray for the duration of a study: the Slurm job's Ray, or one on this machine."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siftune.backend import environment
from siftune.backend.notices import without_notices
from siftune.machine import resources, slurm
from siftune.machine.packages import without_gc

_HEAD_S = 180.0  # for the head to start: containers may be cold and the file system busy
_ATTEMPTS = 4  # Ray gives itself 30 s to start, which is too little on an overloaded machine
_NODES_S = 30.0  # for the other nodes after that, before they are reported as missing


class ClusterError(RuntimeError):
    """Raised if Ray does not start. In a job the message names the node and quotes its log."""


@contextmanager
def connect(
    lost: Callable[[], None] | None = None, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Connects this process to Ray for the duration of a study.

    In a Slurm job this is the job's Ray, otherwise a new one on this machine. A connection that
    this process already has is used and left open. `environment.prepared` must have been entered.

    `say` is called for each node of the job that does not join. If the Ray on this machine is
    killed, `lost` is called in another thread and the process exits with code 1. Without this, Ray
    would wait a minute and then abort. (In a job, slurm/tune.sbatch does this.)

    Raises ClusterError if Ray does not start, here or on the job's head node.
    """
    import ray

    with without_notices():
        if ray.is_initialized():
            yield
        else:
            with _connection(lost, say):
                yield


@contextmanager
def _connection(lost: Callable[[], None] | None, say: Callable[[str], None]) -> Iterator[None]:
    import ray

    if directory := slurm.job_directory():
        over = threading.Event()
        thread = threading.Thread(target=_tell_missing, args=(directory, say, over), daemon=True)
        try:
            _join(directory)
            thread.start()
            yield
        finally:
            over.set()
            if thread.is_alive():
                thread.join()  # its call of ray.nodes() after the shutdown would start a new Ray
            ray.shutdown()
    else:
        over = threading.Event()
        try:
            _start(resources.nodes()[0])
            threading.Thread(target=_watch, args=(lost, over), daemon=True).start()
            yield
        finally:
            over.set()
            ray.shutdown()


def _start(node: resources.Node) -> None:
    """Starts Ray on this machine. Other machines and accounts cannot connect to it."""
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=int(node.cpus),
                num_gpus=int(node.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises plain Exception
            if attempt == _ATTEMPTS or "timed out" not in str(error):
                raise ClusterError(
                    f"Ray failed to start; this machine may be overloaded, try again later: {error}"
                ) from error
            _end_ray()


def _end_ray() -> None:
    """Kills the processes of a Ray that did not start in time."""
    for process, _ in _ray_processes():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process, 0)


def _watch(lost: Callable[[], None] | None, over: threading.Event) -> None:
    """Ends this process when one of its Ray processes has ended."""
    processes = dict(_ray_processes())
    while not over.wait(0.5):
        if not any(_has_ended(process) for process in processes):
            continue
        if over.is_set():
            return
        if lost:
            lost()
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        environment.remove(environment.private_directory())
        os._exit(1)


def _ray_processes() -> Iterator[tuple[int, str]]:
    """Yields ids and names of the Ray processes that this process has started."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread or the child has just ended
            for child in (task / "children").read_text().split():
                name = Path(f"/proc/{child}/comm").read_text().strip()
                if name in ("raylet", "gcs_server"):
                    yield int(child), name


def _has_ended(process: int) -> bool:
    try:
        # The state follows the process name, which is in brackets.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _join(directory: Path) -> None:
    """Connects to the job's Ray once its head is ready.

    It does not wait for the other nodes. Trials start on each node as soon as it has joined, so a
    node that is lost while the job starts delays nothing. Raises ClusterError.
    """
    import ray

    head = _nodes_of(directory)[0]
    deadline = time.monotonic() + _HEAD_S
    with without_gc():
        import ray.tune

    while not (directory / "ready").exists():
        if (refusal := directory / "failed" / head).exists():
            raise ClusterError(f"{head}: {refusal.read_text().strip()}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Ray did not start within {_HEAD_S:.0f} s on {head}, the job's first node; "
                f"the end of its log: {_log_tail(directory, head)}"
            )
        time.sleep(0.1)
    address = (directory / "address").read_text().strip()
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    (directory / "joined").touch()  # tells slurm/tune.sbatch that the cluster was up


def wait_for_nodes(directory: Path, say: Callable[[str], None]) -> None:
    """Returns once all nodes of the job have joined its Ray, or after a while without some.

    `directory`: of the job. `say` is called for each node that is missing then.
    """
    _tell_missing(directory, say, threading.Event())


def _tell_missing(directory: Path, say: Callable[[str], None], over: threading.Event) -> None:
    """Reports each of the job's nodes that has not joined in time, with the end of its log."""
    deadline = time.monotonic() + _NODES_S
    expected = set(_nodes_of(directory))
    while (missing := sorted(expected - _alive())) and time.monotonic() < deadline:
        if over.wait(1):
            return
    for name in missing:
        say(
            f"{name} has not joined the job's Ray after {_NODES_S:.0f} s: the study continues "
            "without it and uses it once it joins; "
            f"the end of its log: {_log_tail(directory, name)}"
        )


def _nodes_of(directory: Path) -> list[str]:
    """Returns the names of the job's nodes; the head is the first."""
    return (directory / "nodes").read_text().split()


def _log_tail(directory: Path, node: str) -> str:
    try:
        return " ".join((directory / "log" / node).read_text().split()[-60:]) or "(empty)"
    except OSError:
        return "(no log)"


def _alive() -> set[str]:
    import ray

    return {node["NodeManagerHostname"].partition(".")[0] for node in ray.nodes() if node["Alive"]}
