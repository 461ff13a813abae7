"""The slots of a study, and the worker on each node that runs the trials in them."""

import itertools
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from siftune.backend import failures
from siftune.backend.placement import Node, Placement, Seat
from siftune.backend.worker import Place, Worker
from siftune.trial.messages import Answer, Begin, Cause, End, Message, Setup

_LOOK_S = 1.0  # between two checks of Ray's nodes
_LONGEST_PAUSE_S = 10.0  # before a new worker, if workers exit before they train
# The wait after a trial was killed, to see whether its node is lost too: Slurm ends all processes
# of a node at once, and any of them may be reported first. Ray ends slowly after SIGTERM.
_SETTLE_S = {signal.SIGKILL: 1.0, signal.SIGTERM: 6.0}
_CLOSE_S = 5.0  # to wait until trials are killed at the end of a study


class Workers:
    """Starts and kills workers, which are Ray actors."""

    def start(self, setup: Setup, node_id: str, *, gpus: int, slots: int) -> Any:
        """Starts a worker on the node and returns its handle. It gets all GPUs of the node."""
        actor = ray.remote(Worker).options(
            num_cpus=0,  # the driver counts CPUs itself, as the only user of its Ray
            num_gpus=gpus,
            max_restarts=0,
            # Each trial has a call that waits for a report, perhaps one that stops it, and calls of
            # `board`.
            max_concurrency=min(1000, 3 * slots + 8),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        return actor.remote(setup)

    def kill(self, worker: Any) -> None:
        ray.kill(worker)


@dataclass(slots=True, eq=False)
class Slot:
    """The resources one trial runs in: a seat for each of its processes, or ranks."""

    number: int
    seats: list[Seat]
    trial: str = ""
    run: str = ""
    answers: list[Answer] = field(default_factory=list)  # to the reports of rank 0
    reported: list[int] = field(default_factory=list)  # the number of reports from each rank
    ends: dict[int, End] = field(default_factory=dict)  # by rank, in the order of arrival

    def key(self, rank: int) -> str:
        """Returns the key under which the worker knows this rank of the run."""
        return f"{self.run}.{rank}"

    @property
    def where(self) -> tuple[str, str | None]:
        """The names of its nodes and of its GPUs, each comma-separated; None if it has no GPUs."""
        names = dict.fromkeys(seat.node.place.node for seat in self.seats)
        # 12 characters of a GPU's UUID distinguish it from the others on its node.
        gpus = [seat.gpu[:12] for seat in self.seats if seat.gpu]
        return ",".join(names), ",".join(gpus) or None


@dataclass(slots=True)
class _Rank:
    """A pending call to a worker, for one rank of the slot's trial."""

    slot: Slot
    rank: int
    killed: End | None = None  # how it ended, while its worker is checked


SlotMessage = tuple[Slot, int, Message]  # slot, rank, message


class Slots:
    """Starts a worker on each node, gives trials to the workers and receives their messages."""

    def __init__(
        self, setup: Setup, placement: Placement, left_out: set[str], workers: Workers
    ) -> None:
        """`left_out`: Ray's ids of nodes that must not be used. The set may grow."""
        self._setup = setup
        self._placement = placement
        self._left_out = left_out
        self._workers = workers
        self._numbers = itertools.count(1)
        self._slots: dict[int, Slot] = {}
        self._nodes: dict[str, Node] = {}  # those whose worker runs or starts, by Ray's ids
        self._waiting: dict[Any, _Rank | Node] = {}  # a Node: its worker is starting
        self._settling: list[tuple[float, _Rank]] = []
        self._next_look = 0.0
        self.cannot_fork: str | None = None  # why trials are not forked, once known
        self.losses = 0  # workers lost in a row that had not trained a trial
        self.last_loss: End | None = None

    # ── Nodes ───────────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> None:
        """Looks for new nodes, at most once a second, and starts a worker on each."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        for node in ray.nodes():
            node_id = node["NodeID"]
            if node["Alive"] and node_id not in self._nodes and node_id not in self._left_out:
                self._start_worker(node_id, node["Resources"])
        for node_id in self._left_out & self._nodes.keys():
            self._placement.remove(self._nodes[node_id])  # trials that run there may continue

    def _start_worker(self, node_id: str, resources: dict[str, float]) -> None:
        cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
        slots = int(cpus / self._setup.resources[0]["CPU"]) + 1
        worker = self._workers.start(self._setup, node_id, gpus=gpus, slots=slots)
        node = self._nodes[node_id] = Node(worker, Place("", node_id, ()), cpus)
        self._waiting[worker.place.remote()] = node

    def _add_node(self, node: Node, place: Place) -> None:
        node.place, node.gpus = place, dict.fromkeys(place.gpus, 1.0)
        self._placement.add(node)

    def _lose(self, node: Node, error: Exception) -> End:
        """Handles the loss of a node's worker and returns how the trials there end.

        If the node is still there, `refresh` starts another worker on it.
        """
        node_id = node.place.node_id
        if node.lost is None:
            node.lost = failures.end_of(error, node_id)
            self._placement.remove(node)
            del self._nodes[node_id]
            self.losses, self.last_loss = self.losses + 1, node.lost
            pause_s = 0.0 if self.losses == 1 else min(_LONGEST_PAUSE_S, 0.1 * 2**self.losses)
            self._next_look = time.monotonic() + pause_s
        return node.lost

    # ── Trials ──────────────────────────────────────────────────────────────────────────────────

    def open(self, *, whole_gpu: bool = False) -> Slot | None:
        """Returns a slot for a trial; None if none is free now."""
        number = next(self._numbers)
        seats = self._placement.take(number, whole_gpu=whole_gpu)
        return None if seats is None else Slot(number, seats)

    def begin(self, slot: Slot, begins: list[Begin]) -> None:
        """Starts a run of a trial in the slot. `begins` has one message for each rank."""
        slot.trial, slot.run = begins[0].trial, begins[0].run
        slot.reported = [0] * len(begins)
        self._slots[slot.number] = slot
        first = slot.seats[0].node.worker if len(begins) > 1 else None
        for rank, (begin, seat) in enumerate(zip(begins, slot.seats, strict=True)):
            gpus = (seat.gpu,) if seat.gpu is not None else ()
            ref = seat.node.worker.begin.remote(slot.key(rank), begin, gpus, first)
            self._waiting[ref] = _Rank(slot, rank)

    def answer(self, slot: Slot, answer: Answer) -> None:
        """Answers the last report of rank 0, and the matching reports of the other ranks when they
        arrive."""
        slot.answers.append(answer)
        for rank, count in enumerate(slot.reported):
            if rank not in slot.ends and count == len(slot.answers):
                self._send(slot, rank, answer)

    def _send(self, slot: Slot, rank: int, answer: Answer) -> None:
        worker = slot.seats[rank].node.worker
        self._waiting[worker.next.remote(slot.key(rank), answer)] = _Rank(slot, rank)

    def stop(self, slot: Slot) -> None:
        """Kills the processes of the slot's trial. `hear` yields their ends."""
        for rank, seat in enumerate(slot.seats):
            seat.node.worker.stop.remote(slot.key(rank))

    def close(self, slot: Slot) -> None:
        """Frees the slot, once all processes of its trial have ended or if it got no trial."""
        self._slots.pop(slot.number, None)
        self._placement.give_back(slot.number, slot.seats)

    def give_up(self, slot: Slot) -> Iterator[SlotMessage]:
        """Kills the slot's workers, which do not respond. Yields the ends of its trial."""
        for seat in slot.seats:
            self._workers.kill(seat.node.worker)
        for rank in range(len(slot.seats)):
            if rank not in slot.ends:
                end = End(cause=Cause.LOST, error="its worker did not respond and was killed")
                yield from self._take(slot, rank, end)

    # ── Messages ────────────────────────────────────────────────────────────────────────────────

    def hear(self, timeout_s: float) -> Iterator[SlotMessage]:
        """Yields messages of trial processes. Waits up to `timeout_s` for the first one."""
        self._settle()
        if not self._waiting:
            time.sleep(timeout_s)
            return
        refs = list(self._waiting)
        ready, left = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready and left:
            ready += ray.wait(left, num_returns=len(left), timeout=0)[0]
        for ref in ready:
            if ref in self._waiting:
                yield from self._hear(ref, self._waiting.pop(ref))

    def _hear(self, ref: Any, sender: _Rank | Node) -> Iterator[SlotMessage]:
        node = sender if isinstance(sender, Node) else sender.slot.seats[sender.rank].node
        try:
            reply = ray.get(ref)
        except Exception as error:
            end = self._lose(node, error)
            if isinstance(sender, _Rank) and sender.slot.number in self._slots:
                yield from self._take(sender.slot, sender.rank, end)
            return
        if isinstance(sender, Node):
            self._add_node(sender, reply)
        elif sender.slot.number not in self._slots:
            return  # its workers were killed by `give_up`
        elif sender.killed:
            yield from self._take(sender.slot, sender.rank, sender.killed)
        else:
            if isinstance(reply, tuple):
                reply, cannot_fork = reply
                self.cannot_fork = self.cannot_fork or cannot_fork
            yield from self._take_or_settle(sender.slot, sender.rank, reply)

    def _take_or_settle(self, slot: Slot, rank: int, message: Message) -> Iterator[SlotMessage]:
        """Yields the message, but holds back the end of a trial that was killed."""
        if isinstance(message, End) and message.signal in _SETTLE_S:
            until = time.monotonic() + _SETTLE_S[signal.Signals(message.signal)]
            self._settling.append((until, _Rank(slot, rank, killed=message)))
        else:
            yield from self._take(slot, rank, message)

    def _settle(self) -> None:
        """Checks the workers of killed trials for which the waiting time has passed."""
        now = time.monotonic()
        for _, killed in [entry for entry in self._settling if entry[0] <= now]:
            worker = killed.slot.seats[killed.rank].node.worker
            self._waiting[worker.place.remote()] = killed
        self._settling = [entry for entry in self._settling if entry[0] > now]

    def _take(self, slot: Slot, rank: int, message: Message) -> Iterator[SlotMessage]:
        if isinstance(message, End):
            slot.ends[rank] = message
            yield slot, rank, message
            return
        slot.reported[rank] += 1
        self.losses = 0
        if rank == 0:
            yield slot, rank, message
        elif slot.reported[rank] <= len(slot.answers):
            self._send(slot, rank, slot.answers[slot.reported[rank] - 1])

    def close_all(self) -> None:
        """Kills all trials and workers."""
        killed = [
            seat.node.worker.stop.remote(slot.key(rank))
            for slot in self._slots.values()
            for rank, seat in enumerate(slot.seats)
        ]
        if killed:
            ray.wait(killed, num_returns=len(killed), timeout=_CLOSE_S)
        for node in self._nodes.values():
            self._workers.kill(node.worker)
