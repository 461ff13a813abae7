"""Jobs on the virtual cluster as a user submits them, for tests and benchmarks."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Cluster, poll


@dataclass
class Job:
    """One job of an account's, in a directory of its own."""

    cluster: Cluster
    account: str
    directory: str
    number: str

    def queued(self, states: str) -> bool:
        queue = ("squeue", "--noheader", f"--jobs={self.number}", f"--states={states}")
        return bool(self.cluster.run(self.account, *queue).stdout.strip())

    def wait(self, deadline_s: float = 240, every_s: float = 0.2) -> str:
        """Its log, once it has ended."""
        what = f"the end of {self.number}"
        poll(lambda: not self.queued("PD,R,CG"), deadline_s, what, self.log, every_s)
        return self.log()

    def log(self) -> str:
        path = f"{self.directory}/slurm-{self.number}.out"
        return self.cluster.run("root", "cat", path).stdout

    def status(self) -> int:
        """The job's own exit status."""
        return int(self._shown(r"ExitCode=(\d+):"))

    def started(self) -> float:
        """When Slurm started it, in whole seconds since the epoch."""
        begin = datetime.fromisoformat(self._shown(r"StartTime=(\S+)"))
        return begin.replace(tzinfo=UTC).timestamp()

    def seconds(self) -> float:
        """From its start to its end, both in whole seconds."""
        end = datetime.fromisoformat(self._shown(r"EndTime=(\S+)"))
        return end.replace(tzinfo=UTC).timestamp() - self.started()

    def _shown(self, pattern: str) -> str:
        show = self.cluster.check(self.account, "scontrol", "show", "job", self.number)
        found = re.search(pattern, show)
        assert found, show
        return found[1]

    def study(self, name: str) -> Path:
        """The study directory, seen from the host."""
        return self.cluster.shared / self.directory.removeprefix("/work/") / "results" / name

    def await_nothing_left(self) -> None:
        """A process that was killed takes a moment to go."""
        poll(lambda: self.left() == "", 15, "nothing left", self.left)

    def left(self) -> str:
        """What of Ray and of the job is still anywhere."""
        look = f"ls -d /tmp/sift-{self.number} 2>/dev/null; "
        look += f"ps -u {self.account} -o pid,ppid,stat,etimes,comm | grep ray"
        found = [
            self.cluster.run("root", "bash", "-c", look, place=node).stdout
            for node in self.cluster.nodes
        ]
        return "".join(found) + self.cluster.run("root", "ls", f"{self.directory}/.siftune").stdout


def submit_in(
    directory: str,
    cluster: Cluster,
    checkout: str,
    *,
    account: str = "hpc1",
    prepare: str = "true",
    **variables: Any,
) -> Job:
    """`make submit` in a directory, once the checkout's scripts and image are in it."""
    copy = f"cp -r {checkout}/{{Makefile,slurm,containers}} . && ln -sf {checkout}/tune.sif ."
    cluster.check(account, "bash", "-c", f"cd {directory} && {copy} && {prepare}")
    variables = {"SITE": "virtual"} | variables
    words = [f"{name}={value}" for name, value in variables.items()]
    said = cluster.check(account, "make", "-C", directory, "submit", *words)
    number = re.search(r"Submitted batch job (\d+)", said)
    assert number, said
    return Job(cluster, account, directory, number[1])


def events(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
