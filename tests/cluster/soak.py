"""Runs a long study on the virtual cluster with a fault every few seconds, and checks its journal.

    make soak ARGS="--minutes 60 --seed 1"

The seed determines the order of the faults. Each fault occurs once before any occurs again.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Cluster, copy_checkout, poll, running
from tests.cluster.jobs import Job, events, submit_in

EPOCHS = 8
TRAINABLE = (Path(__file__).parents[1] / "napper.py").read_text()
STUDY = (
    "--trainable napper.py:train --searcher optuna --scheduler asha --trials 100000 "
    f"--set epochs={EPOCHS} --set nap=1.0"
)
BETWEEN_S = (2.0, 8.0)  # from the study's recovery to the next fault
RECOVERY_S = 400.0  # Slurm may take two minutes to notice that a head node has restarted


@dataclass
class Figures:
    """The results of a soak test."""

    faults: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    trials: int = 0
    lost: int = 0
    doubled: int = 0
    failed: int = 0
    epochs: int = 0
    epochs_again: int = 0
    job_runs: int = 0

    def __str__(self) -> str:
        slowest = {name: f"{max(times):.0f}" for name, times in self.recovery_s.items()}
        return "\n".join(
            [
                f"faults injected: {self.faults.total()}, of which {dict(self.faults)}",
                f"seconds to the next epoch, the slowest of each: {slowest}",
                f"runs of the job: {self.job_runs}",
                f"trials: {self.trials}, lost {self.lost}, doubled {self.doubled}, "
                f"failed {self.failed}",
                f"epochs: {self.epochs}, trained again although saved {self.epochs_again}",
            ]
        )


class Soak:
    """One study under faults. Each public method named after a fault injects it."""

    def __init__(self, cluster: Cluster, checkout: str, *, seed: int, gpus: int = 8) -> None:
        self.cluster = cluster
        self.gpus = gpus
        self.rng = random.Random(seed)
        self.directory = cluster.check("hpc1", "mktemp", "-d", "/work/soak.XXXXXX").strip()
        self.here = cluster.shared / Path(self.directory).name
        (self.here / "napper.py").write_text(TRAINABLE)
        self.checkout = checkout
        self.job = self.submit(NAME="soak", ARGS=STUDY, TIME=20, RESTARTS=1000)
        self.study = self.job.study("soak")
        self.run_ended = 0.0  # when the end of the job's last run was noticed
        self.repairs: list[tuple[float, Callable[[], None]]] = []  # when to repair, and how

    def submit(self, **variables: Any) -> Job:
        return submit_in(self.directory, self.cluster, self.checkout, GPUS=self.gpus, **variables)

    # ── Faults ──────────────────────────────────────────────────────────────────────────────────

    def trial_killed(self) -> None:
        self._kill(self._place(), "-n ^trial")

    def ray_of_a_worker_killed(self) -> None:
        self._kill(self._place(head=False), "-x raylet")

    def node_cut_off(self) -> None:
        place = self._place(head=False)
        self.cluster.node("cut", place)
        self._later(40, lambda: self.cluster.node("heal", place))

    def node_without_power(self) -> None:
        place = self._place(head=False)
        self.cluster.node("kill", place)
        self._later(15, lambda: self.cluster.node("start", place))

    def driver_killed(self) -> None:
        self._kill(self._place(head=True), "-f entrypoints/tune.py")

    def head_killed(self) -> None:
        self._kill(self._place(head=True), "-x gcs_server")

    def head_node_without_power(self) -> None:
        place = self._place(head=True)
        self.cluster.node("kill", place)
        self._later(10, lambda: self.cluster.node("start", place))

    def time_nearly_over(self) -> None:
        self.cluster.check("hpc1", "scancel", "--batch", "--signal=USR1", self.job.number)
        self._await_end_of_run()

    def line_torn(self) -> None:
        """Kills the driver while it writes a line."""
        self.driver_killed()
        self._await_end_of_run()
        with (self.study / "trials.jsonl").open("a") as file:
            file.write('{"event": "epoch", "trial": "00')

    FAULTS = (
        trial_killed,
        ray_of_a_worker_killed,
        node_cut_off,
        node_without_power,
        driver_killed,
        head_killed,
        head_node_without_power,
        time_nearly_over,
        line_torn,
    )

    # ── The run ─────────────────────────────────────────────────────────────────────────────────

    def run(self, minutes: float) -> Figures:
        figures = Figures()
        self._await_epoch(after=0.0)
        end = time.monotonic() + 60 * minutes
        for fault in self._order():
            name = fault.__name__
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            began = time.time()
            fault(self)
            figures.faults[name] += 1
            self._await_epoch(after=max(began + 1, self.run_ended))
            figures.recovery_s.setdefault(name, []).append(time.time() - began)
            if time.monotonic() > end and figures.faults.total() >= len(self.FAULTS):
                break
            time.sleep(self.rng.uniform(*BETWEEN_S))
        self._finish()
        self._count(figures)
        return figures

    def _order(self) -> Iterator[Callable[["Soak"], None]]:
        while True:
            yield from self.rng.sample(self.FAULTS, len(self.FAULTS))

    def _await_end_of_run(self) -> None:
        poll(lambda: not self.job.queued("R"), 90, "the end of the job's run", self.job.log)
        self.run_ended = time.time()

    def _await_epoch(self, *, after: float) -> None:
        """Repairs the cluster until an epoch is reported after that time."""

        def reported() -> bool:
            self._help()
            last = self._last_line()
            return last.get("event") == "epoch" and last["time"] > after

        poll(reported, RECOVERY_S, "an epoch after a fault", lambda: self.job.log()[-3000:])

    def _help(self) -> None:
        """Does what happens on a real cluster over time: power returns, and nodes are resumed.

        Also releases a requeued job from its wait of two minutes.
        """
        for repair in [r for r in self.repairs if r[0] < time.monotonic()]:
            self.repairs.remove(repair)
            repair[1]()
        for node, state in self.cluster.states().items():
            if state.startswith("down") and not self.repairs:
                words = ("update", f"NodeName={node}", "State=RESUME")
                self.cluster.run("root", "scontrol", *words, place="controller")
        if self.job.queued("PD"):
            self.cluster.run(
                "hpc1", "scontrol", "update", f"JobId={self.job.number}", "StartTime=now"
            )

    def _finish(self) -> None:
        """Lets the trials that have started end, without starting new ones."""
        while self.repairs:
            self._help()
            time.sleep(0.5)
        self.cluster.check("hpc1", "make", "-C", self.directory, "cancel", f"JOB={self.job.number}")
        self.job.wait(60)
        self.figures_log = self.job.log()
        self.cluster.await_idle(120)
        begun = sum(event["event"] == "start" for event in events(self.study))
        self.job = self.submit(RESUME="soak", ARGS=f"--trials {begun}")
        log = self.job.wait(240)
        assert self.job.status() == 0, log

    def _count(self, figures: Figures) -> None:
        journal = events(self.study)
        starts = Counter(event["trial"] for event in journal if event["event"] == "start")
        ends = Counter(event["trial"] for event in journal if event["event"] == "end")
        figures.trials = len(starts)
        figures.lost = len(starts.keys() - ends.keys()) + int(max(starts)) - len(starts)
        figures.doubled = sum(n > 1 for n in [*starts.values(), *ends.values()])
        figures.failed = sum(event.get("state") == "failed" for event in journal)
        figures.job_runs = self.figures_log.count(" nodes, ") + 1
        for trial in starts:
            epochs = [e for e in journal if e["event"] == "epoch" and e["trial"] == trial]
            numbers = [event["epoch"] for event in epochs]
            figures.epochs += len(numbers)
            figures.epochs_again += len(numbers) - len(set(numbers))
            assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1)), (trial, numbers)
            state = next(e["state"] for e in journal if e["event"] == "end" and e["trial"] == trial)
            assert state != "completed" or max(numbers) == EPOCHS, (trial, numbers)

    # ── Places ──────────────────────────────────────────────────────────────────────────────────

    def _place(self, *, head: bool | None = None) -> str:
        """Returns a node of the running job: the first one if `head`, another if not, or any."""
        words = ("squeue", "--noheader", f"--jobs={self.job.number}", "--format=%B %N")
        fields: list[str] = []

        def runs() -> bool:
            self._help()
            fields[:] = self.cluster.check("hpc1", *words).split()
            return len(fields) == 2

        poll(runs, 90, "the job to run", self.job.log)
        first, nodes = fields
        names = self.cluster.check("hpc1", "scontrol", "show", "hostnames", nodes).split()
        others = [name for name in names if name != first]
        if head or not others:
            return first
        return self.rng.choice(others if head is False else names)

    def _kill(self, place: str, which: str) -> None:
        self.cluster.run("root", "bash", "-c", f"pkill -9 -u hpc1 {which}", place=place)

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self.repairs.append((time.monotonic() + seconds, repair))

    def _last_line(self) -> dict[str, Any]:
        try:
            lines = (self.study / "trials.jsonl").read_text().splitlines()
            return json.loads(lines[-1])
        except (OSError, IndexError, ValueError):
            return {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with running() as cluster:
        figures = Soak(cluster, copy_checkout(cluster), seed=options.seed).run(options.minutes)
    print(figures)
    return int(bool(figures.lost or figures.doubled or figures.epochs_again))


if __name__ == "__main__":
    sys.exit(main())
