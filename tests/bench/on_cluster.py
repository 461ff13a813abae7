"""Jobs on the virtual cluster: how soon a study starts, and how well eight GPUs are used.

python -m tests.bench.on_cluster
"""

import re
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.conftest import Cluster, copy_checkout, running
from tests.cluster.jobs import Job, events, submit_in

HERE = Path(__file__).resolve().parent
IDLE = "--trainable idle.py:train --metric loss --mode min --searcher random --scheduler none"


class Bench:
    """The cluster, and a directory of hpc1's on it with what the jobs run."""

    def __init__(self, cluster: Cluster, checkout: str, directory: str) -> None:
        self._cluster = cluster
        self._checkout = checkout
        self._directory = directory
        self._jobs = 0

    def start(self, rounds: int = 3) -> dict[str, float]:
        """Median seconds from the start of a job of four nodes to the first epoch reported by
        one of eight trials: siftune's, and that of the recipe in Ray's documentation.

        The two take turns. Both begin with Slurm's StartTime, which is in whole seconds, and end
        when the driver hears of the epoch.
        """
        ours, theirs = [], []
        for _ in range(rounds):
            job, epochs = self._study(gpus=8, trials=8)
            ours.append(epochs[0] - job.started())
            job, epochs = self._recipe(trials=8)
            theirs.append(epochs[0] - job.started())
        siftune_s, recipe_s = statistics.median(ours), statistics.median(theirs)
        return {"siftune_s": siftune_s, "recipe_s": recipe_s, "ratio": recipe_s / siftune_s}

    def scaling(self, rounds: int = 3, epochs: int = 10, epoch_s: float = 2) -> dict[str, float]:
        """Median seconds from the first trial's start to the last one's end: one trial on one GPU,
        and eight on eight; and their ratio, 1 at best.

        The trials only sleep, so that the machine's few cores are no limit.
        """
        flags = f"--set epochs={epochs} --set epoch_s={epoch_s}"
        one, eight = [], []
        for _ in range(rounds):
            for gpus, spans in ((1, one), (8, eight)):
                job, _ = self._study(gpus=gpus, trials=gpus, flags=flags)
                found = events(job.study(self._name))
                spans.append(found[-1]["time"] - found[0]["time"])
        one_s, eight_s = statistics.median(one), statistics.median(eight)
        return {"one_s": one_s, "eight_s": eight_s, "efficiency": one_s / eight_s}

    @property
    def _name(self) -> str:
        return f"study{self._jobs}"

    def _study(self, *, gpus: int, trials: int, flags: str = "") -> tuple[Job, list[float]]:
        """A job of siftune's that has ended, and when its epochs were reported."""
        self._cluster.await_idle()
        self._jobs += 1
        arguments = f"{IDLE} --trials {trials} {flags}"
        variables = {"GPUS": gpus, "NAME": self._name, "ARGS": arguments}
        job = submit_in(self._directory, self._cluster, self._checkout, **variables)
        said = job.wait()
        found = events(job.study(self._name))
        assert sum(e.get("state") == "completed" for e in found) == trials, said
        return job, [e["time"] for e in found if e["event"] == "epoch"]

    def _recipe(self, *, trials: int) -> tuple[Job, list[float]]:
        self._cluster.await_idle()
        words = f"recipe.sbatch {self._checkout}/tune.sif recipe_driver.py {trials}"
        submit = f"cd {self._directory} && sbatch --parsable --output=slurm-%j.out {words}"
        number = self._cluster.check("hpc1", "bash", "-c", submit).strip()
        job = Job(self._cluster, "hpc1", self._directory, number)
        said = job.wait()
        assert job.status() == 0, said
        for node in self._cluster.nodes:  # what the recipe leaves behind
            self._cluster.check("root", "rm", "-rf", "/tmp/ray", place=node)
        return job, [float(time) for time in re.findall(r"epoch at ([\d.]+)", said)]


@contextmanager
def bench() -> Iterator[Bench]:
    """Makes the cluster and the image if they are not there. Needs root."""
    with running() as cluster:
        checkout = copy_checkout(cluster)
        directory = cluster.check("hpc1", "mktemp", "-d", "/work/bench.XXXXXX").strip()
        try:
            for name in ("idle.py", "recipe.sbatch", "recipe_driver.py"):
                shutil.copy(HERE / name, cluster.shared / Path(directory).name)
            cluster.check("root", "chmod", "-R", "a+rX", directory)
            yield Bench(cluster, checkout, directory)
        finally:
            cluster.check("root", "rm", "-rf", directory)


if __name__ == "__main__":
    with bench() as b:
        for figures in (b.start(), b.scaling()):
            print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
