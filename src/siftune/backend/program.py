"""Runs a program that uses Ray itself, on the Ray of a Slurm job."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from siftune.backend import environment
from siftune.backend.connect import ClusterError, connect, wait_for_nodes
from siftune.machine import slurm

_STARTUP = Path(__file__).with_name("startup")


def run(command: Sequence[str]) -> None:
    """Replaces this process with the command, once the nodes of the job have joined its Ray.

    The command finds the cluster in $RAY_ADDRESS. Its `ray.init` joins it, whatever the arguments.
    As no home directory is mounted in the container, $HOME is the working directory: Ray Tune's
    default directory `~/ray_results` is then on the shared file system.

    Raises ClusterError outside a job, if Ray does not start, or if there is no such command.
    """
    directory = slurm.job_directory()
    if directory is None:
        raise ClusterError("this needs a job: make submit GPUS=8 RUN='python my_program.py'")
    submit = slurm.submit_command() or "make submit"
    slurm.tell_study(Path.cwd(), f"{submit} RUN={shlex.quote(shlex.join(command))}")
    with environment.prepared():
        with connect(say=lambda sentence: None):
            wait_for_nodes(directory, say=print)
        address = (directory / "address").read_text().strip()
        paths = [str(_STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"RAY_ADDRESS": address, "HOME": str(Path.cwd())}
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            raise ClusterError(f"cannot run {command[0]}: {error.strerror}") from None
