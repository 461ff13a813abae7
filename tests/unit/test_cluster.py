"""The number of slots follows from the CPUs and GPUs of the nodes."""

import pytest

from siftune.machine.resources import Node, slots


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
    assert slots(machines, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial) == expected
