"""The processes of trials have imported Ray Tune, and torch if they need it, before they begin.

On each node one process, the zygote, imports them, once, and is forked whenever Ray starts a worker
there: that takes a hundredth of the time, and workers share the memory of what was imported. What
Ray itself starts is worker.py, which asks for the fork and stays as long as it lives. Should there
be no zygote any more, it becomes a worker as Ray's own do.
"""

import functools
import gc
import importlib.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from siftune import worker

# To import them starts nothing of CUDA's, and no thread, which would not outlive a fork.
_BEFORE_RAY = ("pandas", "threadpoolctl")
# The last two Ray imports in each worker as it begins.
_WITH_RAY = ("siftune.tuner", "pyarrow.json", "pydantic.v1")

_TOLD = "imports"  # the file

_forked = False


@contextmanager
def zygote(directory: Path, told_in: Path) -> Iterator[None]:
    """One for the Ray that this thread starts on this node meanwhile. Its socket is in `directory`,
    which must be open to nobody else. What the driver tells it is in `told_in`."""
    spec = importlib.util.find_spec("ray")
    assert spec
    assert spec.submodule_search_locations
    of_ray = Path(spec.submodule_search_locations[0]) / "_private/workers/default_worker.py"
    address = directory / "zygote"
    address.unlink(missing_ok=True)  # of a Ray before this one
    os.environ |= {worker.ADDRESS: str(address), worker.OF_RAY: str(of_ray)}
    # Listens before it has imported anything: who comes early waits.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(1024)
        process = subprocess.Popen(
            # -P: not what lies in this directory under the name of a library.
            [sys.executable, "-P", "-m", "siftune.zygote", str(listener.fileno()), str(told_in)],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            # Or libraries would start threads, for all CPUs: see take_threads.
            env={"OMP_NUM_THREADS": "1"} | os.environ,
        )
    # Ray takes another program for its workers on no other word.
    parameter: Any = importlib.import_module("ray._private.parameter")
    rays = parameter.RayParams
    parameter.RayParams = functools.partial(rays, worker_path=worker.__file__)
    try:
        yield
    finally:
        parameter.RayParams = rays
        process.kill()
        process.wait()


def tell(directory: Path) -> None:
    """Says in a driver, which has imported the user's file, what its trials will need: in the
    directory that zygotes look into, and before any trial begins."""
    new = directory / f"{_TOLD}.new"
    new.write_text("torch" if "torch" in sys.modules else "")
    new.replace(directory / _TOLD)


def take_threads() -> None:
    """To be called in a worker once Ray has said, by OMP_NUM_THREADS, how many CPUs it has: what
    reads that when it is imported was imported before."""
    if not _forked:
        return
    import threadpoolctl

    count = int(os.environ.get("OMP_NUM_THREADS", "1"))
    threadpoolctl.threadpool_limits(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def serve(listener: socket.socket, directory: Path) -> None:
    """Forks for whoever asks, until the process that started this one is gone. Returns in the
    forked processes, after their work."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked ones
    gc.disable()
    for name in (*_BEFORE_RAY, *_told(directory, parent)):
        importlib.import_module(name)
    # Ray reads these when it is imported, and never again.
    ours = {"RAY_RAYLET_PID": _raylet(parent), "RAY_JOB_ID": worker.FIRST_DRIVER}
    os.environ |= ours
    with _names_of_the_system():
        for name in _WITH_RAY:
            importlib.import_module(name)
    gc.freeze()  # what a collection looks through is copied, and nothing of this is garbage
    gc.enable()
    listener.settimeout(1)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            if os.fork() == 0:
                listener.close()
                _become_worker(connection, ours)
                return


@contextmanager
def _names_of_the_system() -> Iterator[None]:
    """Ray names its classes of actors at random when they are imported. Were its own generator to
    begin here, all forked processes would go on with it, and give the same names to what they
    make."""
    actor: Any = importlib.import_module("ray.actor")
    rays = actor.ActorClassID
    actor.ActorClassID = SimpleNamespace(from_random=lambda: rays(os.urandom(rays.size())))
    try:
        yield
    finally:
        actor.ActorClassID = rays


def _told(directory: Path, parent: int) -> list[str]:
    """What the driver said, once it has."""
    while os.getppid() == parent:
        with suppress(OSError):
            return (directory / _TOLD).read_text().split()
        time.sleep(0.1)
    sys.exit()


def _raylet(parent: int) -> str:
    """The process id of the raylet, once `parent` has started it."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while os.getppid() == parent:
        for child in children.read_text().split():
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "raylet\n":
                    return child
        time.sleep(0.05)
    sys.exit()


def _become_worker(connection: socket.socket, ours: dict[str, str]) -> None:
    """What was asked for at the other end of the connection, which is closed when this ends."""
    global _forked
    _forked = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    directory, arguments, environment, streams = worker.receive(connection)
    if not ours.items() <= environment.items():
        return  # of another Ray: the other end sees to it
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ |= environment
    os.chdir(directory)
    connection.sendall(worker.FORKED)
    sys.argv = [environment[worker.OF_RAY], *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # The module that others know by its name, not a second one of the name __main__.
    module = importlib.import_module("siftune.zygote")
    module.serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
