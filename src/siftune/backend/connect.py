"""Ray for the length of a study: that of the Slurm job, or one on this machine."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siftune.backend import environment
from siftune.machine import resources, slurm
from siftune.machine.packages import without_gc

_HEAD_S = 180.0  # for the head: a cold start of all nodes' containers over a busy file system
_NODES_S = 30.0  # for the others after that, before it is said that they are not there


class ClusterError(RuntimeError):
    """Ray did not come up. In a job the message says on which node, and its log."""


@contextmanager
def connect(
    lost: Callable[[], None] | None = None, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Ray for the length of a study: that of the Slurm job, or one on this machine.

    `environment.prepared` must have been entered. Where this process is connected already, that
    connection is used and left as it is. Raises ClusterError if the job's head does not come up;
    nodes that it lacks are told to `say`. When this machine's Ray is killed, the process ends, with
    status 1, after a call of `lost` in another thread: Ray itself would wait a minute and then
    abort. (A job sees to that by itself: slurm/tune.sbatch.)
    """
    import ray

    if ray.is_initialized():
        yield
    elif directory := slurm.job_directory():
        over = threading.Event()
        missing = threading.Thread(target=_tell_missing, args=(directory, say, over), daemon=True)
        try:
            _join(directory)
            missing.start()
            yield
        finally:
            over.set()
            if missing.is_alive():
                missing.join()  # whoever asks Ray for its nodes afterwards starts another one
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
    """Ray on this machine, reachable by nobody else."""
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=int(node.cpus),
            num_gpus=int(node.gpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises the bare class
        raise ClusterError(
            f"Ray did not start on this machine, which may be busy: {error}"
        ) from error


def _watch(lost: Callable[[], None] | None, over: threading.Event) -> None:
    """Ends this process when a part of its Ray has ended."""
    parts = dict(_parts_of_ray())
    while not over.wait(0.5):
        if not any(_has_ended(process) for process in parts):
            continue
        if over.is_set():
            return
        if lost:
            lost()
        for process in parts:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        environment.remove(environment.private_directory())
        os._exit(1)


def _parts_of_ray() -> Iterator[tuple[int, str]]:
    """Process ids and names of the parts of Ray that this process has started."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread, or the child, has just ended
            for child in (task / "children").read_text().split():
                name = Path(f"/proc/{child}/comm").read_text().strip()
                if name in ("raylet", "gcs_server"):
                    yield int(child), name


def _has_ended(process: int) -> bool:
    try:
        # The state is behind the name, which is in brackets.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _join(directory: Path) -> None:
    """Connects to the job's Ray once its head is there.

    The other nodes are not waited for: trials start on each as soon as it has joined, and one that
    is lost while the job begins keeps nobody waiting.
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
                f"after {_HEAD_S:.0f} s there is no Ray on {head}, the job's first node; "
                f"the end of its log: {_log_tail(directory, head)}"
            )
        time.sleep(0.1)
    address = (directory / "address").read_text().strip()
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    (directory / "joined").touch()  # from here on a loss is the cluster's


def _tell_missing(directory: Path, say: Callable[[str], None], over: threading.Event) -> None:
    """Says which of the job's nodes have not joined after a while, and why if they said so."""
    deadline = time.monotonic() + _NODES_S
    expected = set(_nodes_of(directory))
    while (missing := sorted(expected - _alive())) and time.monotonic() < deadline:
        if over.wait(1):
            return
    for name in missing:
        say(
            f"after {_NODES_S:.0f} s {name} is not part of the job's Ray: the study goes on "
            f"without it, and with it when it comes; its log ends: {_log_tail(directory, name)}"
        )


def _nodes_of(directory: Path) -> list[str]:
    """The job's nodes, the head's first."""
    return (directory / "nodes").read_text().split()


def _log_tail(directory: Path, node: str) -> str:
    try:
        return " ".join((directory / "log" / node).read_text().split()[-60:]) or "empty"
    except OSError:
        return "there is none"


def _alive() -> set[str]:
    import ray

    return {node["NodeManagerHostname"].partition(".")[0] for node in ray.nodes() if node["Alive"]}
