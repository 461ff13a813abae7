"""Where a study runs: Ray on this machine, or the Ray cluster of a Slurm job.

The only Python that reads SLURM_*. Nothing heavy is imported before it is needed.
"""

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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a user's function mean what they say
    "RAY_TRAIN_V2_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: save and stop
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read: do not write them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # what is printed is ours
}


@contextmanager
def private() -> Iterator[Path]:
    """A directory for Ray's files, sockets and token that nobody else can enter, removed at the
    end; and the environment that makes Ray use it.

    Ray reads its environment when it is imported, and a user's file imports it: so this comes
    first. Ray makes its session directory open to all, and a foreign /tmp/ray is an error.
    Socket paths have 107 bytes, hence the short name.
    """
    directory = Path(tempfile.mkdtemp(prefix="sift-", dir="/tmp"))
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= _ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def connect(node: Node, directory: Path) -> Iterator[None]:
    """Ray on this machine for the length of a study, in the `directory` made by `private`.

    Where this process is connected already, that connection is used and left as it is.
    """
    import ray

    if ray.is_initialized():
        yield
        return
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
