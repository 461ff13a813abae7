"""Chooses the CPUs and GPUs that each trial gets."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ray

from siftune.backend.packing import Packing
from siftune.backend.worker import Place
from siftune.machine.resources import Node as FreeNode
from siftune.trial.messages import End

_ROUNDING = 1e-9  # tolerance for sums of fractions


def nodes_now(left_out: Collection[str] = ()) -> list[FreeNode]:
    """Returns the resources that trials may use now; nodes may be lost and others may join.

    `left_out`: Ray's ids of nodes that must not be used. Ray must be connected.
    """
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]
    resources = [node["Resources"] for node in alive]
    return [FreeNode(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0)) for node in resources]


@dataclass(eq=False)
class Node:
    """A node that has a worker, and its free resources."""

    worker: Any  # Ray's handle of the actor
    place: Place
    cpus: float  # free
    lost: End | None = None  # how its trials end, if the worker was lost
    gpus: dict[str, float] = field(default_factory=dict)  # free fraction of each, by name

    def fits(self, cpus: float, gpus: float) -> bool:
        """Returns whether a process with `cpus` CPUs and the fraction `gpus` of a GPU fits."""
        gpu = max(self.gpus.values(), default=0.0)
        return self.cpus >= cpus - _ROUNDING and gpu >= gpus - _ROUNDING


@dataclass(frozen=True, slots=True)
class Seat:
    """The resources of one process of a trial."""

    node: Node
    cpus: float
    gpus: float = 0.0  # the fraction of one GPU
    gpu: str | None = None  # its name


class Placement:
    """Gives seats to trials and takes them back."""

    def __init__(
        self, *, processes: int, cpus: float, gpus: float, packing: Packing | None
    ) -> None:
        """`cpus`, `gpus`: for each process of a trial. `packing`: chooses the GPUs, if trials share
        them."""
        self._processes = processes
        self._cpus = cpus
        self._gpus = gpus
        self._packing = packing
        self.nodes: dict[str, Node] = {}  # by Ray's ids

    def add(self, node: Node) -> None:
        self.nodes[node.place.node_id] = node
        self._update_packing()

    def remove(self, node: Node) -> None:
        if self.nodes.get(node.place.node_id) is node:
            del self.nodes[node.place.node_id]
            self._update_packing()

    def _update_packing(self) -> None:
        if self._packing:
            known = {(node_id, gpu) for node_id, node in self.nodes.items() for gpu in node.gpus}
            self._packing.there_are(known)

    def take(self, slot: int, *, whole_gpu: bool = False) -> list[Seat] | None:
        """Returns a seat for each process of a trial; None if not enough resources are free.

        The seats are on one node if one has enough. `whole_gpu`: the trial gets a GPU to itself,
        where trials otherwise share GPUs.
        """
        if self._packing:
            return self._take_shared(self._packing, slot, whole_gpu)
        for node in sorted(self.nodes.values(), key=_free, reverse=True):
            if seats := self._take_on([node]):
                return seats
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
        chosen = packing.empty_a_gpu() if whole_gpu else packing.emptiest()
        if chosen is None:
            return None
        packing.place(slot, chosen, alone=whole_gpu)
        node_id, gpu = chosen
        return [self._seat(self.nodes[node_id], gpu)]

    def _take_on(self, nodes: list[Node]) -> list[Seat] | None:
        """Returns all seats of a trial, on as few of the nodes as possible; None if not all fit."""
        seats: list[Seat] = []
        for node in nodes:
            while len(seats) < self._processes and node.fits(self._cpus, self._gpus):
                # The GPU with the most left, so that fractions spread over the GPUs.
                gpu = max(node.gpus, key=lambda name: node.gpus[name]) if self._gpus else None
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
