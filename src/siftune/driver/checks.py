"""Checks before a study starts, and notes that tell the user what to expect."""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from siftune.backend.packing import Packing
from siftune.driver.progress import Progress
from siftune.errors import UsageError
from siftune.machine import gpus, resources
from siftune.machine.resources import Node
from siftune.study.request import StudyRequest
from siftune.study.request import processes as processes_of
from siftune.study.study import Study
from siftune.trainables import TrainableSpec

_ROUNDING = 1e-9  # tolerance for quotients of fractions


def resource_mistakes(
    request: StudyRequest, nodes: list[Node], *, gpus_per_trial: float
) -> list[str]:
    """Returns a sentence for each reason why a trial does not fit on the nodes."""
    processes = processes_of(request.processes_per_trial, gpus_per_trial)
    if gpus_per_trial and processes != (one_each := max(1, int(gpus_per_trial))):
        return [
            f"--processes-per-trial must be {one_each} with --gpus-per-trial {gpus_per_trial:g}, "
            f"got {processes}: leave it out, or pass --gpus-per-trial 0 to train on CPUs"
        ]
    cpus_per_trial, most_gpus = request.cpus_per_trial, sum(node.gpus for node in nodes)
    if gpus_per_trial > most_gpus:
        too_many_gpus = [
            f"--gpus-per-trial must be at most {most_gpus:g} (the number of GPUs), "
            f"got {gpus_per_trial:g}. Use --gpus-per-trial {most_gpus:g}"
        ]
    else:
        too_many_gpus = []
    most_cpus = nodes[0].cpus * processes
    if not gpus_per_trial:
        most_cpus /= math.ceil(processes / len(nodes))  # the processes that share a node
    if cpus_per_trial > most_cpus:
        several = f" for {processes} processes" if processes > 1 else ""
        return [
            *too_many_gpus,
            f"--cpus-per-trial must be at most {most_cpus:g} (the number of CPUs{several}), "
            f"got {cpus_per_trial:g}. Use --cpus-per-trial {most_cpus:g}",
        ]
    if too_many_gpus or resources.slots(
        nodes, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, processes=processes
    ):
        return too_many_gpus
    fitting = most_cpus * min(1, int(nodes[0].gpus) * len(nodes) / processes)
    return [
        f"a trial with {gpus_per_trial:g} GPUs and {cpus_per_trial:g} CPUs does not fit: each of "
        "its processes gets one GPU and an equal share of the trial's CPUs; "
        f"try --cpus-per-trial {fitting / nodes[0].gpus:g}"
    ]


def check_memory(study: Study, trainable: TrainableSpec, *, slots: int) -> list[str]:
    """Returns a sentence about the memory that a trial needs, if this is known in advance: on its
    GPUs, or on the node if it has none. `slots`: trials at once.

    Raises UsageError if the GPUs have less.
    """
    if (needed := trainable.memory_gib(study.space, gpu=study.gpus_per_trial > 0)) is None:
        return []
    processes = trainable.processes
    if not study.gpus_per_trial:
        each = f" in each of its {processes} processes" if processes > 1 else ""
        needs = (
            f"the largest config needs up to {math.ceil(10 * needed) / 10:.1f} GiB of memory{each}"
        )
        together, has = needed * processes * slots, resources.memory_gib()
        if together < has:
            return [needs]
        return [
            f"{needs}, and {slots} trials at once need {together:.0f} GiB of this machine's "
            f"{has:.0f}: set a smaller batch_size, or --concurrent "
            f"{max(1, int(has / needed / processes))}"
        ]
    where = f" on each of {processes} GPUs" if processes > 1 else ""
    needs = f"the largest config needs about {needed:.0f} GiB of GPU memory{where}"
    if (has_gib := gpus.memory_gib()) is None:
        return [needs]
    # How many trials share a GPU is decided later, by the memory that the first one uses.
    if needed > has_gib:
        raise UsageError(
            f"{needs}, but a GPU has {has_gib:.0f} GiB: use more GPUs with --gpus-per-trial, or "
            "set a smaller batch_size, accumulation=4 or recompute=true"
        )
    return [f"{needs}; a GPU has {has_gib:.0f} GiB"]


# A directory may hold these files before the study has begun.
_NOT_YET = ("driver.json", ".driver.", "function.", "learned.")


def is_begun(directory: Path) -> bool:
    """Returns whether the directory holds a study or other files.

    A study that was killed before it wrote its first event does not count, nor do the lock files of
    drivers that are about to start, nor a function that siftune.tune has written.
    """
    names = [path.name for path in directory.iterdir()] if directory.exists() else ["driver.json"]
    return not names or any(not name.startswith(_NOT_YET) for name in names)


def directory_mistakes(directory: Path) -> list[str]:
    """Returns the reason, if any, why a new study cannot be written to the directory."""
    if is_begun(directory):
        return [
            f"the study {directory.name!r} exists in {directory.parent} and is not overwritten: "
            f"give another --name, or resume it with --resume {directory.name}"
        ]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory.parent).close()
    except OSError as error:
        return [f"cannot write to {directory.parent}: {error.strerror}; give another --results"]
    return []


def packing_of(study: Study, nodes: list[Node], progress: Progress) -> Packing | None:
    """Returns how trials share GPUs; None if they do not.

    An interrupted study continues with the memory use that it has measured.
    """
    fraction = study.gpus_per_trial
    if not 0 < fraction < 1:
        return None
    cpus = min((node.cpus / node.gpus for node in nodes if node.gpus), default=0.0)
    most = min(int(1 / fraction + _ROUNDING), int(cpus / study.cpus_per_trial + _ROUNDING))
    if most < 1 or (gib := gpus.memory_gib()) is None:
        return None
    packing = Packing(gpu_mib=1024 * gib, most=most)
    if known := [trial.gpu_mib for trial in progress.trials.values() if trial.gpu_mib]:
        packing.know(max(known))
    return packing


def _no_gpu() -> str:
    devices = gpus.nvidia_devices()
    if not devices or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "no GPU found: trials run on the CPU"
    return (
        f"torch can use none of the {devices} NVIDIA GPUs here, so trials run on the CPU: "
        "apptainer needs --nv; doctor says more"
    )


def notes(study: Study, nodes: list[Node], slots: int) -> Iterator[str]:
    """Yields notes about resources that stay idle, and about a data set that is used in part."""
    total = int(sum(node.gpus for node in nodes))
    if not total:
        yield _no_gpu()
    width = int(study.gpus_per_trial)
    if width > 1 and total > slots * width:
        yield (
            f"{slots} trials of {width} GPUs at once leave {total - slots * width} of {total} "
            "GPUs idle"
        )
    if study.trials < slots:
        yield (
            f"--trials {study.trials} leaves {slots - study.trials} of {slots} slots idle: "
            f"--trials {slots} uses all of them"
        )
    if tried := len(study.try_configs):
        first = f"first {tried} trials train" if tried > 1 else "first trial trains"
        yield f"the {first} what --try gives; the searcher proposes the others"
    if "images" in study.trainable_options:
        yield (
            f"training on a part of the data set: {study.trainable_options['images']:,} of MNIST's "
            "60,000 training images; --preset mnist uses all of them"
        )
    windows = study.trainable_options.get("windows")
    if study.trainable == "t5" and not study.gpus_per_trial and windows:
        yield (
            f"without a GPU, t5 is a toy by default: it trains on {windows:,} windows of its text; "
            "--trainable-arg windows=null uses all of it, --set and --space change the sizes"
        )
    if study.trainable == "sklearn" and not study.trainable_options.get("table"):
        yield (
            "no table is given, so trials train on scikit-learn's handwritten digits: "
            "--trainable-arg table=FILE.csv --trainable-arg target=COLUMN names yours"
        )
