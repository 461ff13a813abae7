"""Checks before a study starts, and the sentences that tell the user what to expect."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from siftune.backend.packing import Packing
from siftune.driver.progress import Progress
from siftune.errors import UsageError
from siftune.machine import gpus, resources
from siftune.machine.resources import Node
from siftune.study.request import StudyRequest
from siftune.study.study import Study
from siftune.trainables import TrainableSpec

_ROUNDING = 1e-9  # of quotients of fractions


def resource_mistakes(
    request: StudyRequest, nodes: list[Node], *, gpus_per_trial: float
) -> list[str]:
    """Returns a sentence if a trial does not fit on the nodes."""
    cpus_per_trial, there = request.cpus_per_trial, sum(node.gpus for node in nodes)
    if gpus_per_trial > there:
        too_many_gpus = [
            f"--gpus-per-trial must be at most the {there:g} GPUs that there are, "
            f"got {gpus_per_trial:g}: use --gpus-per-trial {there:g}"
        ]
    else:
        too_many_gpus = []
    processes = max(1, int(gpus_per_trial))
    most_cpus = nodes[0].cpus * processes
    if cpus_per_trial > most_cpus:
        several = f" for {processes} processes" if processes > 1 else ""
        return [
            *too_many_gpus,
            f"--cpus-per-trial must be at most the {most_cpus:g} CPUs that there are{several}, "
            f"got {cpus_per_trial:g}: use --cpus-per-trial {most_cpus:g}",
        ]
    if too_many_gpus or resources.slots(
        nodes, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial
    ):
        return too_many_gpus
    fitting = most_cpus * min(1, int(nodes[0].gpus) * len(nodes) / processes)
    return [
        f"a trial on {gpus_per_trial:g} GPUs with {cpus_per_trial:g} CPUs fits nowhere, since each "
        f"GPU comes with its part of the CPUs: try --cpus-per-trial {fitting / nodes[0].gpus:g}"
    ]


def check_memory(study: Study, trainable: TrainableSpec) -> list[str]:
    """Returns a sentence about the GPU memory that a trial needs, if that is known beforehand.

    Raises UsageError if the GPUs have less.
    """
    if (needed := trainable.memory_gib(study.space)) is None:
        return []
    where = f"each of its {trainable.processes} GPUs" if trainable.processes > 1 else "memory"
    needs = f"a trial of the largest config needs about {needed:.0f} GiB of {where}"
    if not study.gpus_per_trial or (has := gpus.memory_gib()) is None:
        return [needs]
    # How many trials share a GPU, where they do, follows from what the first really takes.
    if needed > has:
        raise UsageError(
            f"{needs}, and there are {has:.0f}: give it more with --gpus-per-trial, or set a "
            "smaller batch_size, accumulation=4 or recompute=true"
        )
    return [f"{needs}, of {has:.0f}"]


def is_begun(directory: Path) -> bool:
    """Whether the directory holds a study, or files of somebody's.

    A study that was killed before its first line does not count, nor do the files of drivers that
    are about to begin.
    """
    names = [path.name for path in directory.iterdir()] if directory.exists() else ["driver.json"]
    return not names or any(not name.startswith(("driver.json", ".driver.")) for name in names)


def directory_mistakes(directory: Path) -> list[str]:
    """Returns a sentence if a new study cannot be written to the directory."""
    if is_begun(directory):
        return [
            f"the study {directory.name!r} exists in {directory.parent} and is not overwritten: "
            f"give another --name, or go on with it: --resume {directory.name}"
        ]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory.parent).close()
    except OSError as error:
        return [f"cannot write to {directory.parent}: {error.strerror}; give another --results"]
    return []


def packing_of(study: Study, nodes: list[Node], progress: Progress) -> Packing | None:
    """Returns how trials share GPUs, with the memory use that an interrupted study has measured.
    None if they do not share."""
    part = study.gpus_per_trial
    if not 0 < part < 1:
        return None
    cpus = min((node.cpus / node.gpus for node in nodes if node.gpus), default=0.0)
    most = min(int(1 / part + _ROUNDING), int(cpus / study.cpus_per_trial + _ROUNDING))
    if most < 1 or (gib := gpus.memory_gib()) is None:
        return None
    packing = Packing(gpu_mib=1024 * gib, most=most)
    if known := [trial.gpu_mib for trial in progress.trials.values() if trial.gpu_mib]:
        packing.know(max(known))
    return packing


def notes(study: Study, nodes: list[Node], slots: int) -> Iterator[str]:
    """Yields sentences about resources that stay idle, and about a data set that is cut."""
    there = int(sum(node.gpus for node in nodes))
    if not there:
        yield "no GPU here: trials run on the CPU"
    width = int(study.gpus_per_trial)
    if width > 1 and there > slots * width:
        yield (
            f"trials of {width} GPUs leave {there - slots * width} of {there} GPUs idle, "
            f"{slots} at once"
        )
    if study.trials < slots:
        yield (
            f"{study.trials} trials leave {slots - study.trials} of {slots} slots empty: "
            f"--trials {slots} fills them"
        )
    if "images" in study.trainable_options:
        yield (
            f"a part of the data set: {study.trainable_options['images']:,} of MNIST's "
            "60,000 training images; --preset mnist takes them all"
        )
