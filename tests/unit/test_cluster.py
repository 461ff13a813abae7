"""The number of slots follows from the CPUs and GPUs of the nodes."""

import pytest

from siftune.cli import flags, tune
from siftune.driver import checks
from siftune.machine.resources import Node, slots
from siftune.study import request


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "cpus_per_trial", "gpus_per_trial", "expected"),
    [
        (1, 2, 0, 1, 0, 2),
        (4, 2, 0, 1, 0, 8),
        (1, 40, 2, 4, 1, 2),
        (1, 40, 2, 1, 0.125, 16),
        (1, 40, 2, 4, 0.125, 10),  # the CPUs are the limit
        (1, 40, 3, 1, 2, 1),  # a trial on several GPUs gets whole GPUs
        (1, 40, 2, 1, 0.3, 6),  # three on each GPU; 0.1 of each stays unused
        (1, 40, 2, 0.5, 0.5, 4),
        (1, 1, 2, 2, 1, 0),
        (4, 40, 2, 1, 2, 4),
        (4, 40, 4, 1, 3, 4),  # on one node if possible
        (4, 40, 2, 1, 3, 2),  # otherwise on several nodes
        (4, 40, 2, 1, 8, 1),
        (4, 40, 2, 1, 9, 0),
        (2, 4, 2, 8, 2, 1),  # each process gets its share of the CPUs
        (2, 4, 2, 16, 2, 0),
    ],
)
def test_slots(
    nodes: int,
    cpus: int,
    gpus: int,
    cpus_per_trial: float,
    gpus_per_trial: float,
    expected: int,
) -> None:
    machines = [Node(cpus=cpus, gpus=gpus)] * nodes
    each = {"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial}
    processes = request.processes(None, gpus_per_trial)
    assert slots(machines, **each, processes=processes) == expected


def planned(nodes: list[Node], *words: str) -> list[str]:
    """Returns the mistakes of a study with these flags on these nodes."""
    arguments = flags.parse(tune.parser(), ["--trainable", "sklearn", *words])
    asked, _ = flags.read_study(vars(arguments))
    gpus_per_trial = asked.gpus_per_trial or 0
    return checks.resource_mistakes(asked, nodes, gpus_per_trial=gpus_per_trial)


def test_processes_on_cpus_divide_the_cpus_of_the_trial() -> None:
    two = {"gpus_per_trial": 0, "processes": 2}
    assert slots([Node(cpus=4, gpus=0)], cpus_per_trial=2, **two) == 2
    assert slots([Node(cpus=2, gpus=0)] * 2, cpus_per_trial=4, **two) == 1  # on both nodes
    assert slots([Node(cpus=2, gpus=0)], cpus_per_trial=1, **two) == 2
    wanted = ["--processes-per-trial", "2", "--cpus-per-trial"]
    assert planned([Node(cpus=2, gpus=0)], *wanted, "2") == []
    assert planned([Node(cpus=2, gpus=0)] * 2, *wanted, "4") == []
    (mistake,) = planned([Node(cpus=2, gpus=0)], *wanted, "3")
    assert mistake.endswith("Use --cpus-per-trial 2")


@pytest.mark.parametrize(
    ("gpus", "processes", "must_be"),
    [("2", "2", None), ("0", "3", None), ("2", "3", 2), ("2", "1", 2), ("0.5", "2", 1)],
)
def test_processes_and_gpus_of_a_trial_agree(
    gpus: str, processes: str, must_be: int | None
) -> None:
    words = ("--gpus-per-trial", gpus, "--processes-per-trial", processes)
    mistakes = planned([Node(cpus=8, gpus=4)], *words)
    expected = [f"--processes-per-trial must be {must_be} with --gpus-per-trial {gpus}, got"]
    assert [mistake[: len(expected[0])] for mistake in mistakes] == (expected if must_be else [])
