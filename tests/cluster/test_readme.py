"""The README's commands for a cluster: each as it stands there, in its order, by a user on the
login node. What is exchanged: the site, and the number of the job."""

import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import HERE, Cluster, poll
from tests.cluster.jobs import Job

README = HERE.parent.parent / "README.md"


def commands() -> list[str]:
    """The lines of the first block under the heading."""
    section = README.read_text().partition("\n## On a cluster\n")[2]
    block = re.search(r"((?:    .*\n)+)", section)
    assert block
    return [line.strip() for line in block[1].splitlines()]


class User:
    """Somebody who has unpacked what `make dist` gives, and follows the README."""

    def __init__(self, cluster: Cluster, directory: str) -> None:
        self._cluster = cluster
        self._directory = directory
        self._job: Job | None = None
        self._study = ""
        self.judges: dict[str, Callable[[str], None]] = {
            "make image ": self._image,
            "apptainer run tune.sif data ": self._data,
            "make submit ": self._submit,
            "make status ": self._status,
            "make cancel ": self._cancel,
        }

    def _run(self, line: str) -> str:
        done: subprocess.CompletedProcess[str] = self._cluster.run(
            "hpc1", "bash", "-c", f"cd {self._directory} && {line}", timeout_s=900
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{line}\n{said}"
        return said

    def _image(self, line: str) -> None:
        assert "tune.sif is up to date" in self._run(line)

    def _data(self, line: str) -> None:
        assert "MNIST is in data" in self._run(line)

    def _submit(self, line: str) -> None:
        said = self._run(line)
        number = re.search(r"Submitted batch job (\d+)", said)
        study = re.search(r"NAME=(\S+)", line)
        assert number, said
        assert study, "the README gives the study a name"
        job = self._job = Job(self._cluster, "hpc1", self._directory, number[1])
        self._study = study[1]
        poll(
            lambda: "epoch 1 " in job.log() or not job.queued("PD,R"), 600, "a first epoch", job.log
        )
        assert "epoch 1 " in job.log(), job.log()

    def _status(self, line: str) -> None:
        said = self._run(line)
        assert "RUNNING" in said
        assert f"{self._study}: " in said
        assert re.search(r"\n  best \S+ [\d.]+ in trial \d+", said), said

    def _cancel(self, line: str) -> None:
        assert self._job, "nothing was submitted before"
        self._run(re.sub(r"\bJOB=\d+", f"JOB={self._job.number}", line))
        self._job.wait(deadline_s=60)
        poll(lambda: self._job is not None and self._job.left() == "", 15, "nothing left")

    def leave(self) -> None:
        """Ends what a failed test left running."""
        if self._job and self._job.queued("PD,R"):
            self._cluster.run("hpc1", "scancel", self._job.number)
            self._job.wait(deadline_s=60)


@pytest.fixture
def user(cluster: Cluster, checkout: str, data: str) -> Iterator[User]:
    """In a directory with the checkout and its image. MNIST is there as after a download: the
    mirrors may be out of reach, and then the command for it verifies what it finds."""
    directory = cluster.check("hpc1", "mktemp", "-d", "/work/user.XXXXXX").strip()
    link = f"cp -rl {checkout}/. {directory} && cp -r {data} {directory}/data"
    cluster.check("hpc1", "bash", "-c", link)
    user = User(cluster, directory)
    yield user
    user.leave()
    # A job's last words may come a moment after its end.
    again = f"for try in 1 2 3 4 5; do rm -rf {directory} && break; sleep 1; done"
    cluster.check("root", "bash", "-c", again)


def test_every_command_of_the_readme_works_on_a_cluster(user: User) -> None:
    for line in commands():
        line = line.replace("SITE=turpan", "SITE=virtual")
        judge = [judge for words, judge in user.judges.items() if line.startswith(words)]
        assert judge, f"how is this to be judged? {line}"
        judge[0](line)
