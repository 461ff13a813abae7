"""Submits jobs to the virtual cluster as a user does, for tests and benchmarks."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Cluster, poll


@dataclass
class Job:
    """One job of an account, in its own directory."""

    cluster: Cluster
    account: str
    directory: str
    number: str

    def queued(self, states: str) -> bool:
        """Returns whether the job is in one of the states; True if Slurm does not answer now."""
        queue = ("squeue", "--noheader", f"--jobs={self.number}", f"--states={states}")
        done = self.cluster.run(self.account, *queue)
        if done.returncode and "Invalid job id" not in done.stderr:
            return True
        return bool(done.stdout.strip())

    def wait(self, deadline_s: float = 240, every_s: float = 0.2) -> str:
        """Waits for the job to end, and returns its log."""
        what = f"the end of {self.number}"
        poll(lambda: not self.queued("PD,R,CG"), deadline_s, what, self.log, every_s)
        return self.log()

    def log(self) -> str:
        path = f"{self.directory}/slurm-{self.number}.out"
        return self.cluster.run("root", "cat", path).stdout

    def status(self) -> int:
        """Returns the job's exit status."""
        return int(self._shown(r"ExitCode=(\d+):"))

    def started(self) -> float:
        """Returns when Slurm started the job, in whole seconds since the epoch."""
        begin = datetime.fromisoformat(self._shown(r"StartTime=(\S+)"))
        return begin.replace(tzinfo=UTC).timestamp()

    def seconds(self) -> float:
        """Returns the seconds from the job's start to its end, both in whole seconds."""
        end = datetime.fromisoformat(self._shown(r"EndTime=(\S+)"))
        return end.replace(tzinfo=UTC).timestamp() - self.started()

    def _shown(self, pattern: str) -> str:
        show = self.cluster.check(self.account, "scontrol", "show", "job", self.number)
        match = re.search(pattern, show)
        assert match, show
        return match[1]

    def study(self, name: str) -> Path:
        """Returns the study directory, as a path on the host."""
        return self.cluster.shared / self.directory.removeprefix("/work/") / "results" / name

    def await_nothing_left(self) -> None:
        """Waits until the job has left nothing behind: killed processes take a moment to end."""
        poll(lambda: self.left() == "", 15, "the job's clean-up", self.left)

    def left(self) -> str:
        """Returns the job's remaining files, and all processes of its account on all nodes.

        Empty if there are none. No other job of the account may be running.
        """
        look = f"ls -d /tmp/sift-{self.number} 2>/dev/null; "
        look += f"ps -U {self.account} -o pid,ppid,stat,etimes,comm --no-headers"
        outputs = [
            self.cluster.run("root", "bash", "-c", look, place=node).stdout
            for node in self.cluster.nodes
        ]
        return (
            "".join(outputs) + self.cluster.run("root", "ls", f"{self.directory}/.siftune").stdout
        )


def submit_in(
    directory: str,
    cluster: Cluster,
    checkout: str,
    *,
    account: str = "hpc1",
    prepare: str = "true",
    **variables: Any,
) -> Job:
    """Copies the checkout's scripts and image to a directory, and runs `make submit` there."""
    copy = f"cp -r {checkout}/{{Makefile,slurm,containers}} . && ln -sf {checkout}/tune.sif ."
    cluster.check(account, "bash", "-c", f"cd {directory} && {copy} && {prepare}")
    variables = {"SITE": "virtual"} | variables
    words = [f"{name}={value}" for name, value in variables.items()]
    output = cluster.check(account, "make", "-C", directory, "submit", *words)
    return Job(cluster, account, directory, submitted(output))


def submitted(output: str) -> str:
    """Returns the number of the last job that was submitted, according to what was printed."""
    numbers = re.findall(r"Submitted batch job (\d+)", output)
    assert numbers, output
    return str(numbers[-1])


def events(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
