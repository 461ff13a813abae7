"""The commands for a cluster in the documentation work as written, in their order.

A user on the login node runs them. Only the site and the job number are replaced.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import HERE, Cluster, poll
from tests.cluster.jobs import Job, submitted

README = HERE.parent.parent / "README.md"
TRAINABLES = HERE.parent.parent / "src" / "siftune" / "trainables" / "README.md"


# The search space on the Turpan page.
SPACE = """
from ray import tune

config = {
    "lr": tune.loguniform(1e-5, 5e-3),
    "batch_size": tune.choice([16, 32, 64, 128]),
    "optimizer": tune.choice(["adam", "sgd", "adamw"]),
    "weight_decay": tune.uniform(0.0, 0.1),
    "conv1_channels": tune.choice([8, 16, 32, 64]),
    "conv2_channels": tune.choice([16, 32, 64, 128]),
    "conv3_channels": tune.choice([0, 16, 32, 64, 128]),
    "kernel1": tune.choice([3, 5, 7]),
    "kernel2": tune.choice([3, 5, 7]),
    "kernel3": tune.choice([3, 5, 7]),
    "activation": tune.choice(["relu", "gelu", "silu"]),
    "dropout": tune.uniform(0.0, 0.5),
    "fc_dim": tune.choice([64, 128, 256, 512]),
    "scheduler": tune.choice(["none", "cosine", "step", "onecycle"]),
    "step_size": tune.choice([10, 20, 30]),
    "gamma": tune.uniform(0.1, 0.9),
    "epochs": tune.choice([2, 3, 5]),
    "num_classes": 10,
}
"""
# An epoch of all of MNIST with the page's DataLoader and these values takes 30 s on a busy core.
QUICK = "--set epochs=1 --set batch_size=128 --set conv1_channels=8 --set conv2_channels=16 "
QUICK += "--set conv3_channels=0 --set kernel1=3 --set kernel2=3"


def commands(page: Path, heading: str) -> list[str]:
    """Returns the lines of the first indented block under the heading."""
    section = page.read_text().partition(f"\n{heading}\n")[2]
    block = re.search(r"((?:    .*\n)+)", section)
    assert block
    return [line.strip() for line in block[1].splitlines()]


class User:
    """A user who has unpacked the tarball of `make dist` and follows the README."""

    def __init__(self, cluster: Cluster, directory: str) -> None:
        self._cluster = cluster
        self._directory = directory
        self._job: Job | None = None
        self._study = ""
        self.judges: dict[str, Callable[[str], None]] = {
            "make image ": self._image,
            "apptainer run tune.sif data ": self._data,
            "make submit ": self.submit,
            "make status ": self._status,
            "make cancel ": self._cancel,
        }

    def _run(self, line: str) -> str:
        done: subprocess.CompletedProcess[str] = self._cluster.run(
            "hpc1", "bash", "-c", f"cd {self._directory} && {line}", timeout_s=900
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, f"{line}\n{output}"
        return output

    def _image(self, line: str) -> None:
        assert "tune.sif is up to date" in self._run(line)

    def _data(self, line: str) -> None:
        assert "MNIST is in data" in self._run(line)

    def train(self, line: str) -> None:
        assert "loss=" in self._run(line)

    def submit(self, line: str) -> None:
        number = submitted(self._run(line))
        job = self._job = Job(self._cluster, "hpc1", self._directory, number)
        if study := re.search(r"NAME=(\S+)", line):
            self._study = study[1]
        poll(
            lambda: "epoch 1 " in job.log() or not job.queued("PD,R"), 600, "a first epoch", job.log
        )
        assert "epoch 1 " in job.log(), job.log()

    def _status(self, line: str) -> None:
        output = self._run(line)
        assert "RUNNING" in output
        assert f"{self._study}: " in output
        assert re.search(r"\n  best \S+ [\d.]+ in trial \d+", output), output

    def _cancel(self, line: str) -> None:
        assert self._job, "nothing was submitted before"
        self._run(re.sub(r"\bJOB=\d+", f"JOB={self._job.number}", line))
        self._job.wait(deadline_s=60)
        poll(lambda: self._job is not None and self._job.left() == "", 15, "the job's clean-up")

    def write(self, name: str, text: str) -> None:
        self._run(f"cat > {name} <<'END'\n{text}\nEND")

    def ended(self) -> str:
        """Waits for the job to succeed, and returns its log."""
        assert self._job, "nothing was submitted before"
        log = self._job.wait()
        assert self._job.status() == 0, log
        return log

    def leave(self) -> None:
        """Cancels a job that a failed test left running."""
        if self._job and self._job.queued("PD,R"):
            self._cluster.run("hpc1", "scancel", self._job.number)
            self._job.wait(deadline_s=60)


@pytest.fixture
def user(cluster: Cluster, checkout: str, data: str) -> Iterator[User]:
    """Yields a user in a directory with the checkout and its image.

    MNIST is already there, because its mirrors may be unreachable; `data` then only verifies it.
    """
    directory = cluster.check("hpc1", "mktemp", "-d", "/work/user.XXXXXX").strip()
    link = f"cp -rl {checkout}/. {directory} && cp -r {data} {directory}/data"
    cluster.check("hpc1", "bash", "-c", link)
    user = User(cluster, directory)
    yield user
    user.leave()
    # A job may write its last lines a moment after its end.
    again = f"for try in 1 2 3 4 5; do rm -rf {directory} && break; sleep 1; done"
    cluster.check("root", "bash", "-c", again)


def test_every_command_of_the_readme_works_on_a_cluster(user: User) -> None:
    for line in commands(README, "## On a cluster"):
        line = line.replace("SITE=turpan", "SITE=virtual")
        judge = [judge for words, judge in user.judges.items() if line.startswith(words)]
        assert judge, f"this test does not know how to check the command: {line}"
        judge[0](line)


def test_the_script_of_the_turpan_page_runs_as_it_is(user: User) -> None:
    user.write("mnist_ddp.py", (HERE.parent / "bench" / "page" / "mnist_ddp.py").read_text())
    user.write("my_space.py", SPACE)
    train, submit = commands(TRAINABLES, "## From the Turpan page")
    user.train(f"export APPTAINER_BIND=/work && {train} {QUICK}")
    submit = submit.replace("SITE=turpan", "SITE=virtual").replace("GPUS=8", "GPUS=2")
    user.submit(submit.replace("--trials 50", f"--trials 2 {QUICK}"))
    assert "2 completed" in user.ended()
