"""Where a study runs: Ray on this machine, or the Ray cluster of a Slurm job.

The only Python that reads SLURM_*. Nothing heavy is imported before it is needed.
"""

import importlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """What one node gives to trials."""

    cpus: float
    gpus: float

    def slots(self, *, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials of this size run on the node at once."""
        by_cpu = int(self.cpus / cpus_per_trial + 1e-9)
        if gpus_per_trial == 0:
            return by_cpu
        if gpus_per_trial < 1:  # a fraction stays on one GPU
            return min(by_cpu, int(self.gpus) * int(1 / gpus_per_trial + 1e-9))
        return min(by_cpu, int(self.gpus / gpus_per_trial))


def this_node() -> Node:
    """What this machine, or the Slurm step on it, may use."""
    return Node(cpus=len(os.sched_getaffinity(0)), gpus=_gpus())


def _gpus() -> int:
    # Device files first: asking torch costs seconds of import, and most machines have no GPU.
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial with no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a user's function mean what they say
    "RAY_TRAIN_V2_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: save and stop
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read: do not write them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # what is printed is ours
}


@contextmanager
def connect(node: Node) -> Iterator[None]:
    """Ray on this machine for the length of a study, reachable by nobody else.

    Its files, sockets and token are in a directory of its own, mode 0700, removed at the end: Ray
    makes its session directory open to all, and a foreign /tmp/ray is an error. Where this process
    is connected already, that connection is used and left as it is.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with _private_directory() as directory:
        _set_environment(directory / "token")
        try:
            ray.init(
                address="local",
                num_cpus=int(node.cpus),
                num_gpus=int(node.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(directory),
            )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private_directory() -> Iterator[Path]:
    # Socket paths have 107 bytes, and Ray's take most of them: hence the short name.
    directory = Path(tempfile.mkdtemp(prefix="sift-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _set_environment(token: Path) -> None:
    raylet = importlib.import_module("ray._raylet")  # compiled: types do not know it
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= _ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_ADDRESS", None)
    # Ray reads its environment when it is imported, which a user's file or the space did long ago.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
