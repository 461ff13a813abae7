"""What Ray starts as a worker: it asks this node's zygote (zygote.py) for a fork, which then is the
worker, and stays until that has ended. Without a zygote it becomes Ray's own.

It imports as little as it can: Ray starts one for each worker.
"""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

# In the environment.
ADDRESS = "SIFTUNE_ZYGOTE"  # the path of the zygote's socket
OF_RAY = "SIFTUNE_RAY_WORKER"  # the path of Ray's own worker

# Ray's number for the first driver of a cluster, which a study's is: no other is forked for. Ray
# reads for whom a process works when it is imported, and never again.
FIRST_DRIVER = "01000000"

FORKED = b"\1"
_STREAMS = 3

Request = tuple[str, list[str], dict[str, str], list[int]]


def main() -> None:
    if os.environ.get("RAY_JOB_ID") == FIRST_DRIVER:
        _be_forked()
    os.execv(sys.executable, [sys.executable, os.environ[OF_RAY], *sys.argv[1:]])


def _be_forked() -> None:
    """Ends this process after the forked one; returns if there was none."""
    with socket.socket(socket.AF_UNIX) as zygote, contextlib.suppress(OSError):
        zygote.connect(os.environ[ADDRESS])
        _send(zygote)
        if zygote.recv(1) == FORKED:
            with contextlib.suppress(OSError):
                zygote.recv(1)
            sys.exit()


def _send(zygote: socket.socket) -> None:
    content = json.dumps([str(Path.cwd()), sys.argv[1:], dict(os.environ)]).encode()
    socket.send_fds(zygote, [len(content).to_bytes(4, "big")], range(_STREAMS))
    zygote.sendall(content)


def receive(connection: socket.socket) -> Request:
    """Directory, arguments, environment and standard streams of who asks at the other end."""
    length, streams, _, _ = socket.recv_fds(connection, 4, _STREAMS)
    with connection.makefile("rb") as file:
        directory, arguments, environment = json.loads(file.read(int.from_bytes(length, "big")))
    return directory, arguments, environment, list(streams)


if __name__ == "__main__":
    main()
