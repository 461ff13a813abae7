"""Fixtures for the virtual cluster, which is started if necessary and then stopped at the end."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
STATE = Path(os.environ.get("SIFTUNE_CLUSTER_DIR") or HERE.parent.parent / ".cluster")
NODES = ("node1", "node2", "node3", "node4")


def script(name: str, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs one of the shell scripts in this directory. The caller checks the exit status."""
    return subprocess.run(
        [str(HERE / name), *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def poll(
    condition: Callable[[], bool],
    deadline_s: float,
    what: str,
    log: Callable[[], str] = str,
    every_s: float = 0.2,
) -> None:
    """Returns as soon as the condition holds. Fails at the deadline.

    `what` and `log` go into the message: the event that did not happen, and further details.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"timed out after {deadline_s:.0f} s waiting for {what}; {log()}")
        time.sleep(every_s)


class Cluster:
    """The virtual cluster, and the actions that tests may take on it."""

    nodes = NODES

    def __init__(self, ours: bool) -> None:
        self.ours = ours  # started by this test run
        self.shared = STATE / "shared" / "work"  # the host's path of every place's /work

    def run(
        self, account: str, *words: str, place: str = "login", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as an account, by default on the login node."""
        return script("on.sh", place, account, *words, timeout_s=timeout_s)

    def check(self, account: str, *words: str, place: str = "login", timeout_s: float = 120) -> str:
        """Runs a command that must succeed, and returns its output."""
        done = self.run(account, *words, place=place, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words} as {account} on {place}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, account: str, *words: str, place: str = "login") -> subprocess.Popen[str]:
        """Starts a command without waiting for it. Killing the process kills the command."""
        return subprocess.Popen(
            [str(HERE / "on.sh"), place, account, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def node(self, verb: str, place: str) -> None:
        """Runs node.sh with a verb: kill, start, cut or heal."""
        done = script("node.sh", verb, place)
        assert done.returncode == 0, done.stderr

    def states(self) -> dict[str, str]:
        """Returns each node's state as Slurm prints it; `*` after it: the node does not respond."""
        lines = self.check(
            "root", "sinfo", "-h", "-N", "-p", "small", "-o", "%N %T", place="controller"
        )
        return dict(line.split() for line in lines.splitlines())

    def await_idle(self, deadline_s: float = 60) -> None:
        """Waits until every node is idle: nodes are completing for a moment after a job."""
        poll(lambda: set(self.states().values()) == {"idle"}, deadline_s, "four idle nodes")


def _bring_up() -> None:
    done = script("up.sh", timeout_s=500)
    assert done.returncode == 0, f"the cluster did not start:\n{done.stderr}"


@contextmanager
def running() -> Iterator[Cluster]:
    """Yields the running cluster. Stops it afterwards if it was started here. Needs root."""
    was_up = script("on.sh", "login", "root", "true").returncode == 0
    _bring_up()
    try:
        yield Cluster(ours=not was_up)
    finally:
        if not was_up:
            done = script("down.sh")
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("the virtual cluster needs root: namespaces, a bridge, device nodes")
    with running() as up:
        yield up


@pytest.fixture
def work(cluster: Cluster) -> Iterator[str]:
    """Creates a directory of hpc1 on the shared file system that all accounts may write to."""
    path = cluster.check("hpc1", "mktemp", "-d", "/work/test.XXXXXX").strip()
    cluster.check("hpc1", "chmod", "1777", path)
    yield path
    cluster.check("root", "rm", "-rf", path)


@pytest.fixture(scope="session")
def small_image(cluster: Cluster) -> Iterator[str]:
    """Builds a SIF with little more than a shell, as hpc1 on the login node."""
    directory = cluster.check("hpc1", "mktemp", "-d", "/work/image.XXXXXX").strip()
    cluster.check("hpc1", "chmod", "755", directory)
    text = (HERE / "small_image.sh").read_text()
    cluster.check("hpc1", "bash", "-c", text, "bash", f"{directory}/small.sif")
    yield f"{directory}/small.sif"
    cluster.check("root", "rm", "-rf", directory)


@pytest.fixture(scope="session")
def checkout(cluster: Cluster) -> str:
    return copy_checkout(cluster)


def copy_checkout(cluster: Cluster) -> str:
    """Copies the project to the shared file system and builds its image; returns the directory.

    hpc1 owns the copy and runs `make image BASE=debian` on the login node, which builds the image
    only if an input has changed. If $SIFTUNE_ARCH is set, the image is built for that architecture,
    under emulation.
    """
    architecture = os.environ.get("SIFTUNE_ARCH", "")
    place = f"/work/project-{architecture}" if architecture else "/work/project"
    path = cluster.shared / Path(place).name
    path.mkdir(exist_ok=True)
    root = HERE.parent.parent
    files = ["Makefile", "README.md", "pyproject.toml", "containers", "entrypoints", "slurm", "src"]
    pack = ["tar", "-c", "-C", str(root), "--exclude=__pycache__", "--exclude=*.egg-info", *files]
    packed = subprocess.run(pack, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(path)], input=packed, check=True)
    cluster.check("root", "chown", "-R", "hpc1:", place)
    cluster.check("root", "chmod", "-R", "a+rX", place)
    if architecture:
        emulation = script("emulate.sh")
        assert emulation.returncode == 0, emulation.stderr
    build = f"cd {place} && make image BASE=debian ARCH={architecture} OUT=tune.sif"
    cluster.check("hpc1", "bash", "-c", build, timeout_s=7200 if architecture else 1500)
    return place


@pytest.fixture(scope="session")
def data(cluster: Cluster, mnist_directory: Path) -> str:
    """Copies MNIST to the shared file system, and returns its path there."""
    return copy_data(cluster, mnist_directory)


def copy_data(cluster: Cluster, mnist_directory: Path) -> str:
    raw = cluster.shared / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in mnist_directory.glob("MNIST/raw/*-ubyte"):
        shutil.copy(file, raw)
    cluster.check("root", "chmod", "-R", "a+rX", "/work/data")
    return "/work/data"


@pytest.fixture
def submit(cluster: Cluster, checkout: str, data: str) -> Iterator[Callable[..., Any]]:
    """Runs `make submit` in a new directory that contains the project and the image."""
    from tests.cluster.jobs import Job, submit_in

    directories: list[str] = []

    def run(account: str = "hpc1", prepare: str = "true", **variables: Any) -> Job:
        directory = cluster.check(account, "mktemp", "-d", "/work/job.XXXXXX").strip()
        directories.append(directory)
        return submit_in(
            directory, cluster, checkout, account=account, prepare=prepare, **variables
        )

    yield run
    for directory in directories:
        # A job may write its last lines a moment after its end.
        again = f"for try in 1 2 3 4 5; do rm -rf {directory} && break; sleep 1; done"
        cluster.check("root", "bash", "-c", again)
