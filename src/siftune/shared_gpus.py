"""Ray's side of siftune.packing: a placement group for each GPU, which processes are started in.

Ray alone would fill a GPU with as many fractions as it holds before it takes the next one.
"""

import itertools
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
from ray.air.execution import AcquiredResources, ResourceManager, ResourceRequest
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from siftune import cluster
from siftune.packing import Packing

_EVERY_S = 2.0  # GPUs are counted
_ALONE = "alone"  # a name, that Ray Tune takes one kind of request for another than the other


@dataclass
class Placed(AcquiredResources):
    """A process of Ray Tune's on one GPU."""

    process: int
    group: PlacementGroup

    def _annotate_remote_entity(
        self, entity: Any, bundle: dict[str, float], bundle_index: int
    ) -> Any:
        return entity.options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle["GPU"],
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, 0),
        )


class SharedGpus(ResourceManager):
    """Tells Ray Tune when there is room for a process, and where."""

    def __init__(self, packing: Packing, *, cpus_per_trial: float) -> None:
        self._packing = packing
        self._bundle = {"GPU": 1.0, "CPU": cpus_per_trial * packing.most}
        # Ray knows four digits of a fraction.
        each = {"CPU": cpus_per_trial, "GPU": int(1e4 / packing.most) / 1e4}
        # What Ray Tune asks for a trial, and for one that is to have a GPU to itself.
        self.shared = PlacementGroupFactory([each])
        self.alone = PlacementGroupFactory([each], "PACK", _ALONE)
        self._groups: dict[int, PlacementGroup] = {}
        self._numbers = itertools.count()
        self._waiting: Counter[ResourceRequest] = Counter()
        self._next = 0.0

    def begin(self) -> None:
        """Waits a moment for the first of them: Ray Tune asks for a trial only every second where
        none runs."""
        deadline = time.monotonic() + _EVERY_S
        self.refresh()
        while not self._packing.slots and time.monotonic() < deadline:
            time.sleep(0.02)
            self.refresh()

    def refresh(self) -> None:
        """Sees which GPUs there are: they come and go with their nodes."""
        now = time.monotonic()
        if now < self._next:
            return
        states = {key: one["state"] for key, one in ray.util.placement_group_table().items()}
        placed = {n for n, g in self._groups.items() if states.get(g.id.hex()) == "CREATED"}
        self._packing.there_are(placed)
        count = sum(int(node.gpus) for node in cluster.nodes_now())
        for number in (self._groups.keys() - placed) if len(self._groups) > count else ():
            ray.util.remove_placement_group(self._groups.pop(number))
        for _ in range(count - len(self._groups)):
            self._groups[next(self._numbers)] = ray.util.placement_group([self._bundle])
        self._next = now + (_EVERY_S if len(placed) == count else 0.02)

    @property
    def alone_wanted(self) -> bool:
        """Whether a trial waits for a GPU of its own."""
        return self._waiting[self.alone] > 0

    def request_resources(self, resource_request: ResourceRequest) -> None:
        self._waiting[resource_request] += 1

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        self._waiting[resource_request] -= 1

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        return self._waiting[resource_request] > 0 and self._room(resource_request) is not None

    def acquire_resources(self, resource_request: ResourceRequest) -> Placed | None:
        if (gpu := self._room(resource_request)) is None:
            return None
        self._waiting[resource_request] -= 1
        process = next(self._numbers)
        self._packing.place(process, gpu, alone=resource_request == self.alone)
        return Placed(resource_request, process, self._groups[gpu])

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        assert isinstance(acquired_resource, Placed)
        self._packing.leave(acquired_resource.process)

    def clear(self) -> None:
        """Gives the GPUs back to Ray."""
        for group in self._groups.values():
            ray.util.remove_placement_group(group)
        self._groups.clear()

    def _room(self, request: ResourceRequest) -> int | None:
        return self._packing.room_alone() if request == self.alone else self._packing.room()
