"""How many trials run at once follows from what there is."""

import pytest

from siftune.cluster import Node


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (2, 0, 1, 0, 2),
        (40, 2, 4, 1, 2),
        (40, 2, 1, 0.125, 16),
        (40, 2, 4, 0.125, 10),  # the CPUs are the limit
        (40, 3, 1, 2, 1),  # a trial's GPUs are whole ones
        (40, 2, 1, 0.3, 6),  # three on each, and 0.2 of either GPU stays empty
        (40, 2, 0.5, 0.5, 4),
        (1, 2, 2, 1, 0),
    ],
)
def test_slots(
    cpus: int, gpus: int, cpus_per_trial: float, gpus_per_trial: float, slots: int
) -> None:
    node = Node(cpus=cpus, gpus=gpus)
    assert node.slots(cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial) == slots
