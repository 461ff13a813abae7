"""Measures jobs on the virtual cluster.

The figures are the start of a study, the efficiency of eight GPUs, the cold start of the image, and
the job of the Turpan page.
"""

import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siftune.trainables.datasets.mnist import ensure_mnist
from tests.cluster.conftest import Cluster, copy_checkout, copy_data, running
from tests.cluster.jobs import Job, events, submit_in

HERE = Path(__file__).resolve().parent
FLAGS = "--metric loss --mode min --searcher random --scheduler none"


class Bench:
    """The cluster, and a directory of hpc1 on it with the files of the jobs."""

    def __init__(self, cluster: Cluster, checkout: str, directory: str) -> None:
        self._cluster = cluster
        self._checkout = checkout
        self._directory = directory
        self._jobs = 0

    def start(self, rounds: int = 3) -> dict[str, float]:
        """Returns the median seconds from the start of a job to the first reported epoch.

        The job has four nodes and eight trials. Compares siftune with the recipe in Ray's
        documentation, for a trainable that imports torch and for one that does not.

        The two take turns. The time runs from Slurm's StartTime, which is in whole seconds, until
        the driver receives the report of the epoch.
        """
        figures = {}
        for before, module in (("", "idle"), ("torch_", "idle_torch")):
            ours, theirs = [], []
            for _ in range(rounds):
                job, epochs = self._study(gpus=8, trials=8, module=module)
                ours.append(epochs[0] - job.started())
                job, epochs = self._recipe(trials=8, module=module)
                theirs.append(epochs[0] - job.started())
            siftune_s, recipe_s = statistics.median(ours), statistics.median(theirs)
            seconds = {"siftune_s": siftune_s, "recipe_s": recipe_s, "ratio": recipe_s / siftune_s}
            figures |= {f"{before}{name}": value for name, value in seconds.items()}
        return figures

    def scaling(self, rounds: int = 1, epochs: int = 10, epoch_s: float = 12) -> dict[str, float]:
        """Returns the median seconds from the first trial's start to the last trial's end.

        Compares one trial on one GPU with eight trials on eight GPUs. The best ratio is 1.

        The trials only sleep, so the machine's few cores do not limit them. The time includes the
        start of eight processes, 6 s on two cores, so the trials take 2 minutes each.
        """
        flags = f"--set epochs={epochs} --set epoch_s={epoch_s}"
        one, eight = [], []
        for _ in range(rounds):
            for gpus, spans in ((1, one), (8, eight)):
                job, _ = self._study(gpus=gpus, trials=gpus, flags=flags)
                journal = events(job.study(self._name))
                spans.append(journal[-1]["time"] - journal[0]["time"])
        one_s, eight_s = statistics.median(one), statistics.median(eight)
        return {"one_s": one_s, "eight_s": eight_s, "efficiency": one_s / eight_s}

    def cold(self, rounds: int = 5) -> dict[str, float]:
        """Returns the median seconds of importing torch and Ray Tune in the image.

        Compares it with the same image unpacked to a directory. Caches are dropped before each.
        """
        image, unpacked = f"{self._checkout}/tune.sif", f"{self._directory}/unpacked"
        unpack = ("apptainer", "--quiet", "build", "--sandbox", unpacked, image)
        self._cluster.check("hpc1", *unpack, timeout_s=600)
        code = "import torch, ray.tune"
        times: dict[str, list[float]] = {image: [], unpacked: []}
        for _ in range(rounds):
            for root, taken in times.items():
                subprocess.run(["sync"], check=True)
                Path("/proc/sys/vm/drop_caches").write_text("3\n")
                began = time.perf_counter()
                words = ("apptainer", "--silent", "exec", "--no-home", root, "python", "-c", code)
                self._cluster.check("hpc1", *words, place="node1")
                taken.append(time.perf_counter() - began)
        image_s, unpacked_s = (statistics.median(taken) for taken in times.values())
        return {"image_s": image_s, "unpacked_s": unpacked_s, "ratio": image_s / unpacked_s}

    def page(self) -> dict[str, float]:
        """Returns the seconds of a job of four nodes with eight trials of the Turpan page's study.

        Compares siftune with the page's script in its batch file, which is stopped when it has
        taken ten times as long. Trials use all of MNIST and networks of one size; none is pruned.
        """
        fixed = {"batch_size": 64, "conv1_channels": 16, "conv2_channels": 32, "conv3_channels": 0}
        fixed |= {"kernel1": 3, "kernel2": 3, "fc_dim": 128, "epochs": 2}
        flags = "--searcher random --scheduler none --trials 8 --data /work/data "
        flags += " ".join(f"--set {name}={value}" for name, value in fixed.items())
        self._cluster.await_idle()
        self._jobs += 1
        variables = {"GPUS": 8, "NAME": self._name, "ARGS": flags}
        ours = submit_in(self._directory, self._cluster, self._checkout, **variables)
        log = ours.wait(deadline_s=3600, every_s=2)
        assert ours.status() == 0, log
        siftune_s = ours.seconds()
        self._cluster.await_idle()
        words = f"run-ray_tune_on_8gpus.sh {self._checkout}/tune.sif"
        theirs = self._sbatch(words)
        began = time.monotonic()
        while theirs.queued("PD,R") and time.monotonic() - began < 10 * siftune_s:
            time.sleep(2)
        page_s = time.monotonic() - began
        assert "Traceback" not in theirs.log()
        self._cluster.run("hpc1", "scancel", theirs.number)
        self._cluster.await_idle()
        self._sweep()
        return {"siftune_s": siftune_s, "page_s": page_s, "ratio": page_s / siftune_s}

    @property
    def _name(self) -> str:
        return f"study{self._jobs}"

    def _study(
        self, *, gpus: int, trials: int, module: str = "idle", flags: str = ""
    ) -> tuple[Job, list[float]]:
        """Runs a job of siftune to its end; returns it and the times of its epochs."""
        self._cluster.await_idle()
        self._jobs += 1
        arguments = f"--trainable {module}.py:train --trials {trials} {FLAGS} {flags}"
        variables = {"GPUS": gpus, "NAME": self._name, "ARGS": arguments}
        job = submit_in(self._directory, self._cluster, self._checkout, **variables)
        log = job.wait(deadline_s=600, every_s=2)  # each poll costs CPU time
        journal = events(job.study(self._name))
        assert sum(e.get("state") == "completed" for e in journal) == trials, log
        return job, [e["time"] for e in journal if e["event"] == "epoch"]

    def _recipe(self, *, trials: int, module: str) -> tuple[Job, list[float]]:
        self._cluster.await_idle()
        words = f"recipe.sbatch {self._checkout}/tune.sif recipe_driver.py {module} {trials}"
        job = self._sbatch(words)
        log = job.wait(deadline_s=600, every_s=2)  # each poll costs CPU time
        assert job.status() == 0, log
        self._sweep()
        return job, [float(time) for time in re.findall(r"epoch at ([\d.]+)", log)]

    def _sbatch(self, words: str) -> Job:
        submit = f"cd {self._directory} && sbatch --parsable --output=slurm-%j.out {words}"
        number = self._cluster.check("hpc1", "bash", "-c", submit).strip()
        return Job(self._cluster, "hpc1", self._directory, number)

    def _sweep(self) -> None:
        """Removes the files and processes that Ray's recipe leaves behind."""
        for node in self._cluster.nodes:
            self._cluster.check("root", "rm", "-rf", "/tmp/ray", place=node)


@contextmanager
def bench() -> Iterator[Bench]:
    """Starts the cluster and builds the image if necessary. Needs root."""
    with running() as cluster:
        checkout = copy_checkout(cluster)
        directory = cluster.check("hpc1", "mktemp", "-d", "/work/bench.XXXXXX").strip()
        try:
            files = [HERE / name for name in ("recipe.sbatch", "recipe_driver.py")]
            for file in (*files, *HERE.glob("idle*.py"), *(HERE / "page").glob("*.*")):
                shutil.copy(file, cluster.shared / Path(directory).name)
            copy_data(cluster, ensure_mnist(Path(os.environ.get("SIFTUNE_DATA", "data"))))
            cluster.check("root", "chmod", "-R", "a+rX", directory)
            yield Bench(cluster, checkout, directory)
        finally:
            cluster.check("root", "rm", "-rf", directory)
