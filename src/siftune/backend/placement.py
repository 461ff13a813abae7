"""Chooses the CPUs and GPUs of nodes that a trial gets."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ray

from siftune.backend.packing import Packing
from siftune.backend.worker import Place
from siftune.machine.resources import Node as FreeNode
from siftune.trial.messages import End

_ROUNDING = 1e-9  # of fractions that are added up


def nodes_now(left_out: Collection[str] = ()) -> list[FreeNode]:
    """What trials may use at this moment: nodes are lost, and others join. Ray is connected.

    `left_out`: nodes, by Ray's ids, that are not to be used.
    """
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]
    resources = [node["Resources"] for node in alive]
    return [FreeNode(cpus=has.get("CPU", 0), gpus=has.get("GPU", 0)) for has in resources]


@dataclass(eq=False)
class Node:
    """A node whose worker is there, and what is free on it."""

    worker: Any  # Ray's handle
    place: Place
    cpus: float  # free
    lost: End | None = None  # what the loss of the worker means for its trials
    gpus: dict[str, float] = field(default_factory=dict)  # free, of each

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether one process of that size fits: `gpus` of one GPU."""
        gpu = max(self.gpus.values(), default=0.0)
        return self.cpus >= cpus - _ROUNDING and gpu >= gpus - _ROUNDING


@dataclass(frozen=True, slots=True)
class Seat:
    """The resources of one process of a trial."""

    node: Node
    cpus: float
    gpus: float = 0.0  # of one GPU
    gpu: str | None = None  # which


class Placement:
    """Hands out seats, and takes them back."""

    def __init__(
        self, *, processes: int, cpus: float, gpus: float, packing: Packing | None
    ) -> None:
        """`cpus`, `gpus`: of each process of a trial. `packing` says which GPUs are shared, where
        it is given."""
        self._processes = processes
        self._cpus = cpus
        self._gpus = gpus
        self._packing = packing
        self.nodes: dict[str, Node] = {}  # by Ray's ids

    def add(self, node: Node) -> None:
        self.nodes[node.place.node_id] = node
        self._tell()

    def remove(self, node: Node) -> None:
        if self.nodes.get(node.place.node_id) is node:
            del self.nodes[node.place.node_id]
            self._tell()

    def _tell(self) -> None:
        if self._packing:
            known = {(node_id, gpu) for node_id, node in self.nodes.items() for gpu in node.gpus}
            self._packing.there_are(known)

    def take(self, slot: int, *, whole_gpu: bool = False) -> list[Seat] | None:
        """A seat for each process of a trial, on one node where one has as much; None where there
        is none now. `whole_gpu`: of a GPU that others share otherwise."""
        if self._packing:
            return self._take_shared(self._packing, slot, whole_gpu)
        for node in sorted(self.nodes.values(), key=_free, reverse=True):
            if found := self._take_on([node]):
                return found
        if self._processes == 1:
            return None
        return self._take_on(sorted(self.nodes.values(), key=_free, reverse=True))

    def give_back(self, slot: int, seats: list[Seat]) -> None:
        for seat in seats:
            seat.node.cpus += seat.cpus
            if seat.gpu is not None:
                seat.node.gpus[seat.gpu] += seat.gpus
        if self._packing:
            self._packing.leave(slot)

    def _take_shared(self, packing: Packing, slot: int, whole_gpu: bool) -> list[Seat] | None:
        found = packing.empty_a_gpu() if whole_gpu else packing.emptiest()
        if found is None:
            return None
        packing.place(slot, found, alone=whole_gpu)
        node_id, gpu = found
        return [self._seat(self.nodes[node_id], gpu)]

    def _take_on(self, nodes: list[Node]) -> list[Seat] | None:
        """The seats, on as few of these nodes as can be; all of them, or none."""
        seats: list[Seat] = []
        for node in nodes:
            while len(seats) < self._processes and node.fits(self._cpus, self._gpus):
                # The GPU with most left: fractions spread over GPUs.
                gpu = max(node.gpus, key=lambda one: node.gpus[one]) if self._gpus else None
                seats.append(self._seat(node, gpu))
        if len(seats) == self._processes:
            return seats
        for seat in seats:
            self.give_back(0, [seat])
        return None

    def _seat(self, node: Node, gpu: str | None) -> Seat:
        node.cpus -= self._cpus
        if gpu is not None:
            node.gpus[gpu] -= self._gpus
        return Seat(node, self._cpus, self._gpus, gpu)


def _free(node: Node) -> tuple[float, float]:
    return sum(node.gpus.values()), node.cpus
