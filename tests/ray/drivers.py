"""Drivers that can be killed: processes that run entrypoints/tune.py, all in one Ray.

They are forked from a process that has already done most of the imports, which take seconds. They
join the tests' Ray in the same way as a Slurm job's driver joins the job's Ray.
"""

import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import ray

ROOT = Path(__file__).parents[2]
_FORKS = multiprocessing.get_context("forkserver")
# Ray itself is not preloaded: forks of a process that has loaded it draw the same random ids, and
# Ray aborts when two of them connect at the same moment.
_FORKS.set_forkserver_preload(
    [
        "filelock",
        "fsspec",
        "google.protobuf",
        "jsonschema",
        "msgpack",
        "pandas",
        "pyarrow.fs",
        "pydantic",
        "requests",
        "tensorboardX",
        "siftune.cli.flags",
        "siftune.report",
        "siftune.searchers.bayesopt",
        "siftune.searchers.bohb",
        "siftune.searchers.cmaes",
        "siftune.searchers.hebo",
        "siftune.searchers.optuna",
    ]
)
_PATIENCE_S = 400


def job_of_this_ray(directory: Path) -> dict[str, str]:
    """Writes the files of a Slurm job to `directory`, and returns the driver's environment.

    They are the files of slurm/tune.sbatch, for the Ray that this process is connected to.
    """
    for name in ("failed", "log"):
        (directory / name).mkdir(parents=True)
    (directory / "ready").touch()
    (directory / "address").write_text(ray.get_runtime_context().gcs_address)
    (directory / "nodes").write_text(os.uname().nodename.partition(".")[0])
    shutil.copy(os.environ["RAY_AUTH_TOKEN_PATH"], directory / "token")
    cpus = int(ray.cluster_resources()["CPU"])
    return {
        "SIFTUNE_JOB": str(directory),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": str(cpus),
    }


class Driver:
    """A process that runs entrypoints/tune.py with these flags, in this directory."""

    def __init__(self, flags: list[str], *, directory: Path, environment: dict[str, str]) -> None:
        self._output = Path(tempfile.mkstemp(dir=directory, prefix="output-")[1])
        self._status = self._output.with_suffix(".status")
        self._process: BaseProcess = _FORKS.Process(
            target=_drive,
            args=(flags, directory, environment, self._output, self._status),
            daemon=True,
        )
        self._process.start()

    @property
    def said(self) -> str:
        """The output, without native stack frames, which would hide its first line."""
        lines = self._output.read_text().splitlines()
        return "\n".join(line for line in lines if "libpython" not in line)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert self._process.is_alive(), f"the driver ended too early: {self.said}"
            assert time.monotonic() < deadline, f"the study makes no progress: {self.said}"
            time.sleep(0.005)

    def wait_for(self, journal: Path, lines: int) -> None:
        """Waits until the journal has at least this many lines."""
        self.wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()
        self._process.join()

    def wait(self) -> int | None:
        """Returns the exit status; None if the driver was killed, also for not ending in time.

        multiprocessing's exit code is unreliable if several threads start processes, because each
        start reads the exit codes of all processes.
        """
        self._process.join(_PATIENCE_S)
        self._process.kill()
        text = self._status.read_text() if self._status.exists() else ""
        return int(text) if text else None


def _drive(
    flags: list[str], directory: Path, environment: dict[str, str], output: Path, status: Path
) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(directory)
    os.environ.update(environment)
    sys.argv = ["tune", *flags]
    try:
        runpy.run_path(str(ROOT / "entrypoints/tune.py"), run_name="__main__")
    except SystemExit as end:
        status.write_text(str(end.code))
        raise
