"""Nodes with simulated GPUs join and are lost while trials share the GPUs."""

import os
import tempfile
import time
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}

import ray
from ray.cluster_utils import Cluster

from siftune.backend.packing import Packing
from siftune.backend.placement import Placement
from siftune.backend.slots import Slots, Workers
from siftune.trainables import TrainableSpec
from siftune.trial.messages import Answer, Begin, Cause, End, Message, Report, Setup

here = Path(tempfile.mkdtemp())
(here / "mine.py").write_text(
    "import os, time\nfrom ray import tune\n"
    "def train(config):\n"
    "    tune.report({'loss': 1, 'sees': os.environ['CUDA_VISIBLE_DEVICES']})\n"
    "    time.sleep(600)\n"
)


def until(count: int) -> None:
    """Waits until there are `count` GPUs.

    Each worker imports torch first, which takes a while when the cluster's tests run as well.
    """
    deadline = time.monotonic() + 240
    while packing.gpus[0] != count:
        assert time.monotonic() < deadline, packing.gpus
        slots.refresh()
        messages.extend(message for _, _, message in slots.hear(0.1))


def reports() -> list[Report]:
    return [message for message in messages if isinstance(message, Report)]


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
ray.init(address=cluster.address, log_to_driver=False)
packing = Packing(gpu_mib=80 * 1024, most=2)
packing.know(8 * 1024)
setup = Setup(
    trainable=TrainableSpec(name=f"{here}/mine.py:train", data=here),
    study=here / "study",
    launched_in=here,
    share_gpu=True,
)
placement = Placement(processes=1, cpus=1.0, gpus=0.5, packing=packing)
slots = Slots(setup, placement, set(), Workers())
messages: list[Message] = []

until(1)
node = cluster.add_node(num_cpus=4, num_gpus=2)
until(3)
opened = [slots.open() for _ in range(6)]
assert slots.open() is None
places = []
for number, slot in enumerate(opened):
    assert slot
    (seat,) = slot.seats
    places.append((seat.node.place.node_id, seat.gpu))
    slots.begin(slot, [Begin(trial=f"{number}", config={}, run=f"{number:06x}")])
assert sorted(places.count(place) for place in set(places)) == [2, 2, 2]
assert len(set(places[:3])) == 3  # each GPU has one trial before any has two
deadline = time.monotonic() + 120
while len(reports()) < 6:
    assert time.monotonic() < deadline, messages
    messages.extend(message for _, _, message in slots.hear(1))
assert sorted(report.metrics["sees"] for report in reports()) == sorted(gpu for _, gpu in places)

cluster.remove_node(node)
for slot in opened:
    assert slot
    slots.answer(slot, Answer.CONTINUE)
until(1)
deadline = time.monotonic() + 60
while len(lost := [m for m in messages if isinstance(m, End)]) < 4:
    assert time.monotonic() < deadline, messages
    messages.extend(message for _, _, message in slots.hear(1))
assert {end.cause for end in lost} == {Cause.LOST}
assert slots.open() is None  # the remaining GPU has two
cluster.add_node(num_cpus=4, num_gpus=2)
until(3)
assert slots.open()
slots.close_all()
