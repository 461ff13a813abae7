"""Where a study runs: Ray on this machine, or the Ray cluster of a Slurm job.

The only Python that reads SLURM_*. Nothing heavy is imported before it is needed.
"""

import fcntl
import functools
import importlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune import imports, zygote


@dataclass(frozen=True, slots=True)
class Node:
    """What one node gives to trials."""

    cpus: float
    gpus: float

    def slots(self, *, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials of this size, at most one GPU, run on the node at once."""
        by_cpu = int(self.cpus / cpus_per_trial + 1e-9)
        if gpus_per_trial == 0:
            return by_cpu
        # A fraction stays on one GPU.
        return min(by_cpu, int(self.gpus) * int(1 / gpus_per_trial + 1e-9))


def slots(nodes: list[Node], *, cpus_per_trial: float, gpus_per_trial: float) -> int:
    """How many trials of this size run on the nodes at once.

    One on several GPUs has a process for each, with its part of the CPUs. They are on one node
    where one has that many GPUs.
    """
    processes = max(1, int(gpus_per_trial))
    cpus, gpus = cpus_per_trial / processes, gpus_per_trial / processes
    found = [node.slots(cpus_per_trial=cpus, gpus_per_trial=gpus) for node in nodes]
    if max(found, default=0) < processes:
        return sum(found) // processes
    return sum(here // processes for here in found)


def nodes() -> list[Node]:
    """What trials may use: the nodes of the Slurm job whose cluster this is, else this machine."""
    if job_directory() is None:
        return [Node(cpus=len(os.sched_getaffinity(0)), gpus=_gpus())]
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    return [Node(cpus=int(cpus), gpus=int(gpus))] * int(os.environ["SLURM_JOB_NUM_NODES"])


def nodes_now() -> list[Node]:
    """What trials may use at this moment: nodes are lost, and others join. Ray is connected."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=has.get("CPU", 0), gpus=has.get("GPU", 0)) for has in alive]


@functools.cache
def whereabouts() -> tuple[str, str | None]:
    """The node of this process of Ray's, and the numbers of its GPUs there, with commas."""
    import ray

    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    # Of a GPU's UUID as much as tells it from the others of its node.
    return os.uname().nodename, ",".join(gpu[:12] for gpu in gpus) or None


def without_mps() -> None:
    """Leaves the job's MPS aside, before CUDA is used: it is for trials that share a GPU, and there
    the crash of one process ends others."""
    os.environ.pop("CUDA_MPS_PIPE_DIRECTORY", None)


def job() -> str | None:
    """The Slurm job that this is a part of: of several that follow each other the first."""
    return os.environ.get("SIFTUNE_ORIGIN") or None


def slurm_job() -> tuple[str, int] | None:
    """The Slurm job that this process is part of, in words, and its GPUs here; None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    number, nodes = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_JOB_NUM_NODES", "?")
    cpus, gpus = len(os.sched_getaffinity(0)), int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    return f"job {number} on {nodes} nodes; {cpus} CPUs and {gpus} GPUs on this one", gpus


def job_directory() -> Path | None:
    """The directory that slurm/tune.sbatch made for its job: address, token, logs."""
    found = os.environ.get("SIFTUNE_JOB")
    return Path(found) if found else None


def _gpus() -> int:
    # Device files first: asking torch costs seconds of import, and most machines have no GPU.
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def gpu_gib() -> float | None:
    """The memory of a GPU of this node; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30


# Ray's files on this machine are below it, and not below TMPDIR: a socket's path has 107 bytes, of
# which Ray needs most. In a job they are below the site's NODE_TMP.
LOCAL_TMP = Path("/tmp")

_HEAD_S = 180.0  # for the head: a cold start of all nodes' containers over a busy file system
_NODES_S = 30.0  # for the others after that, before it is said that they are not there

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial with no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a user's function mean what they say
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # nor any that no trial needs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: save and stop
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_COLOR_PREFIX": "0",  # no colours in a log file
    "RAY_AIR_NEW_OUTPUT": "0",  # what is printed is ours
}


@contextmanager
def connect(
    lost: Callable[[], None] | None = None, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Ray for the length of a study: that of the Slurm job, or one on this machine.

    Where this process is connected already, that connection is used and left as it is. Raises
    ClusterError if the job's head does not come up; nodes that it lacks are told to `say`. When
    this machine's Ray is killed, the process ends, with status 1, after a call of `lost` in another
    thread: Ray itself would wait a minute and then abort. (A job sees to that by itself:
    slurm/tune.sbatch.)
    """
    import ray

    if ray.is_initialized():
        yield
    elif directory := job_directory():
        _set_environment(directory / "token")
        _read_environment()
        zygote.tell(directory)
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
        with _private_directory() as directory:
            token = directory / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            _set_environment(token)
            _set_certificate(directory)
            _read_environment()
            zygote.tell(directory)
            over = threading.Event()
            with zygote.zygote(directory, told_in=directory):
                try:
                    _start(directory, nodes()[0])
                    watch = (directory, lost, over)
                    threading.Thread(target=_watch, args=watch, daemon=True).start()
                    yield
                finally:
                    over.set()
                    ray.shutdown()


class ClusterError(RuntimeError):
    """Ray did not come up. In a job the message says on which node, and its log."""


def _start(directory: Path, node: Node) -> None:
    """Ray on this machine, reachable by nobody else: its files, sockets and token are in a
    directory of its own, mode 0700, and its ports on loopback. Ray opens the directory that it is
    given to every account, hence one below; a foreign /tmp/ray is an error."""
    import ray

    # Ray takes loopback for its address on no other word, and has read its environment by now.
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            num_cpus=int(node.cpus),
            num_gpus=int(node.gpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(directory / "r"),
        )
    except Exception as error:  # Ray raises the bare class
        raise ClusterError(
            f"Ray did not start on this machine, which may be busy: {error}"
        ) from error


def _watch(directory: Path, lost: Callable[[], None] | None, over: threading.Event) -> None:
    """Ends this process when a part of its Ray has ended."""
    node: Any = importlib.import_module("ray._private.worker")._global_node
    while not over.wait(0.5):
        if {"raylet", "gcs_server"} & {kind for kind, _ in node.dead_processes()}:
            if over.is_set():
                return
            if lost:
                lost()
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            _remove(directory)
            os._exit(1)


def _set_certificate(directory: Path) -> None:
    """TLS, so that without this certificate there is no connection: see in_image in slurm/lib.sh.

    Where there is no openssl the token alone guards Ray's ports.
    """
    own = {"RAY_TLS_SERVER_CERT": "tls.crt", "RAY_TLS_SERVER_KEY": "tls.key"}
    paths = {name: str(directory / file) for name, file in own.items()}
    paths["RAY_TLS_CA_CERT"] = paths["RAY_TLS_SERVER_CERT"]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365"
    command += " -subj /CN=siftune -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    to = ["-out", paths["RAY_TLS_SERVER_CERT"], "-keyout", paths["RAY_TLS_SERVER_KEY"]]
    try:
        subprocess.run([*command.split(), *to], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        os.environ["RAY_USE_TLS"] = "0"
        return
    os.environ |= paths | {"RAY_USE_TLS": "1"}


def _join(directory: Path) -> None:
    """Connects to the job's Ray once its head is there.

    The other nodes are not waited for: trials start on each as soon as it has joined, and one that
    is lost while the job begins keeps nobody waiting.
    """
    import ray

    head = _nodes_of(directory)[0]
    deadline = time.monotonic() + _HEAD_S

    def check() -> None:
        if (refusal := directory / "failed" / head).exists():
            raise ClusterError(f"{head}: {refusal.read_text().strip()}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"after {_HEAD_S:.0f} s there is no Ray on {head}, the job's first node; "
                f"the end of its log: {_log_tail(directory, head)}"
            )
        time.sleep(0.2)

    with imports.uncollected():
        import ray.tune  # takes as long as the head does

    address = await_head(directory / "address", check)
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


def await_head(file: Path, check: Callable[[], None]) -> str:
    """The address of a job's head, once it takes drivers and nodes. The head writes it to `file`.

    `check` is called between two looks; it sleeps, and raises to give up. To who comes when the
    head's port answers but its node is not yet known, a second later, Ray says to come back in 2.
    """
    while (address := _answering(file)) is None:
        check()
    return address


def _answering(file: Path) -> str | None:
    from ray.exceptions import RayError

    try:
        address = file.read_text().strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
        gcs = importlib.import_module("ray._raylet").GcsClient(address=address)
        return address if gcs.get_all_node_info(timeout=10) else None
    except (OSError, RayError):  # not there yet, or the port is another program's
        return None


def _alive() -> set[str]:
    import ray

    return {node["NodeManagerHostname"].partition(".")[0] for node in ray.nodes() if node["Alive"]}


@contextmanager
def _private_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sift-", dir=LOCAL_TMP))
    try:
        with (directory / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            _remove_dead(directory.parent)
            yield directory
    finally:
        _remove(directory)


def _remove_dead(parent: Path) -> None:
    """Removes this user's whose driver was killed, and so let go of its lock."""
    for directory in parent.glob("sift-*"):
        with suppress(OSError):  # alive, or just gone
            if directory.lstat().st_uid != os.getuid():
                continue
            began = (directory / "alive").stat().st_mtime
            with (directory / "alive").open("r+") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - began > 10:  # not one that is about to take its lock
                    _remove(directory)


def _remove(directory: Path) -> None:
    # The lock last: where something still writes, the next driver tries again.
    shutil.rmtree(directory / "r", ignore_errors=True)
    if not (directory / "r").exists():
        shutil.rmtree(directory, ignore_errors=True)


def _set_environment(token: Path) -> None:
    os.environ |= _ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_ADDRESS", None)


def _read_environment() -> None:
    raylet = importlib.import_module("ray._raylet")  # compiled: types do not know it
    # Ray reads its environment when it is imported, which a user's file or the space did long ago.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
