"""Each trial gets its own CPUs and GPUs."""

from siftune.backend.packing import Packing
from siftune.backend.placement import Node, Placement, Seat
from siftune.backend.worker import Place


def placement(
    *nodes: tuple[float, int],
    processes: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    packing: Packing | None = None,
) -> Placement:
    """Returns a placement on nodes with these numbers of CPUs and GPUs, named a, b, …"""
    made = Placement(processes=processes, cpus=cpus, gpus=gpus, packing=packing)
    for name, (node_cpus, node_gpus) in zip("abcd", nodes, strict=False):
        numbers = tuple(str(number) for number in range(node_gpus))
        free = dict.fromkeys(numbers, 1.0)
        made.add(Node(None, Place(name, name, numbers), node_cpus, gpus=free))
    return made


def where(seats: list[Seat] | None) -> list[str] | None:
    return seats and [f"{seat.node.place.node}{seat.gpu or ''}" for seat in seats]


def test_trials_go_to_the_node_with_most_free_until_all_are_full() -> None:
    placed = placement((2, 0), (3, 0))
    assert [where(placed.take(n)) for n in range(6)] == [["b"], ["a"], ["b"], ["a"], ["b"], None]


def test_what_a_trial_had_is_free_when_it_ends() -> None:
    placed = placement((4, 1), gpus=1.0)
    seats = placed.take(0)
    assert where(seats) == ["a0"]
    assert placed.take(1) is None
    assert seats
    placed.give_back(0, seats)
    assert where(placed.take(1)) == ["a0"]


def test_fractions_of_a_cpu_add_up() -> None:
    placed = placement((1, 0), cpus=0.1)
    seats = [placed.take(n) for n in range(10)]
    assert None not in seats
    assert placed.take(10) is None
    for number, taken in enumerate(seats):
        placed.give_back(number, taken or [])
    assert None not in [placed.take(n) for n in range(10)]


def test_the_processes_of_a_trial_are_on_one_node_where_one_has_as_many_gpus() -> None:
    placed = placement((8, 1), (8, 2), (8, 2), processes=2, gpus=1.0)
    assert [where(placed.take(n)) for n in range(3)] == [["b0", "b1"], ["c0", "c1"], None]


def test_otherwise_they_are_on_the_fewest_nodes_and_all_or_none_start() -> None:
    placed = placement((8, 2), (8, 2), (8, 1), processes=3, gpus=1.0)
    assert where(placed.take(0)) == ["a0", "a1", "b0"]
    assert where(placed.take(1)) is None  # only two GPUs are left
    assert [sum(node.gpus.values()) for node in placed.nodes.values()] == [0, 1, 1]


def test_trials_that_share_gpus_are_where_packing_says() -> None:
    packing = Packing(gpu_mib=80 * 1024, most=4)
    placed = placement((8, 2), gpus=0.25, packing=packing)
    assert [where(placed.take(n)) for n in range(3)] == [["a0"], ["a1"], None]
    packing.report(0, 30 * 1024)
    assert [where(placed.take(n)) for n in range(2, 4)] == [["a0"], None]


def test_a_node_that_is_removed_gets_nothing_and_its_seats_come_back_to_nobody() -> None:
    placed = placement((1, 0))
    (node,) = placed.nodes.values()
    seats = placed.take(0)
    placed.remove(node)
    assert seats
    placed.give_back(0, seats)
    assert placed.take(1) is None
