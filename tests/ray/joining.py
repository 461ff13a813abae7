"""Nodes with GPUs, as Ray is told, join and are lost while processes are placed on them."""

import os
import time

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}

import ray
from ray.cluster_utils import Cluster

from siftune.packing import Packing
from siftune.shared_gpus import Placed, SharedGpus


@ray.remote(max_restarts=0)
class Process:
    def where(self) -> tuple[str, str]:
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"][0]


def until(count: int) -> None:
    """Until there are so many GPUs."""
    deadline = time.monotonic() + 60
    while packing.gpus[0] != count:
        assert time.monotonic() < deadline, packing.gpus
        gpus.refresh()
        time.sleep(0.05)


def start() -> tuple[ray.actor.ActorHandle, Placed]:
    gpus.request_resources(gpus.shared)
    assert gpus.has_resources_ready(gpus.shared)
    placed = gpus.acquire_resources(gpus.shared)
    assert placed
    (process,) = placed.annotate_remote_entities([Process])
    return process.remote(), placed


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
ray.init(address=cluster.address, log_to_driver=False)
packing = Packing(gpu_mib=80 * 1024, most=2)
packing.know(8 * 1024)
gpus = SharedGpus(packing, cpus_per_trial=1)
gpus.begin()
until(1)
node = cluster.add_node(num_cpus=4, num_gpus=2)
until(3)
started = [start() for _ in range(6)]
gpus.request_resources(gpus.shared)
assert not gpus.has_resources_ready(gpus.shared)
places = [ray.get(process.where.remote()) for process, _ in started]
assert sorted(places.count(place) for place in set(places)) == [2, 2, 2]
assert len(set(places[:3])) == 3  # each GPU has one before any has two

cluster.remove_node(node)
until(1)
lost = []
for process, placed in started:
    try:
        ray.get(process.where.remote(), timeout=60)
    except ray.exceptions.RayActorError:
        lost.append(placed)
        gpus.free_resources(placed)
assert (len(lost), packing.slots) == (4, 2)
assert not gpus.has_resources_ready(gpus.shared)
cluster.add_node(num_cpus=4, num_gpus=2)
until(3)
assert gpus.has_resources_ready(gpus.shared)
gpus.clear()
