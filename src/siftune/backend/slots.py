"""The slots of a study: a worker on each node, and the trials that they run."""

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

_LOOK_S = 1.0  # between two looks at Ray's nodes
_LONGEST_PAUSE_S = 10.0  # before a new worker, where they end before they train
# After a trial was killed, to see whether its node goes as well: Slurm ends all processes of a node
# at once, and of which is heard first is chance. Ray ends slowly after SIGTERM.
_SETTLE_S = {signal.SIGKILL: 1.0, signal.SIGTERM: 6.0}
_CLOSE_S = 5.0  # for trials to be killed at the end of a study


class Workers:
    """Starts workers, as actors of Ray's, and ends them."""

    def start(self, setup: Setup, node_id: str, *, gpus: int, slots: int) -> Any:
        """The handle of a new worker, on that node. It has all its GPUs, and divides them."""
        actor = ray.remote(Worker).options(
            num_cpus=0,  # trials are counted by the driver, which is alone in its Ray
            num_gpus=gpus,
            max_restarts=0,
            # Of each trial one call waits for a report, and one may stop it; and its processes
            # find each other.
            max_concurrency=min(1000, 3 * slots + 8),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        return actor.remote(setup)

    def kill(self, worker: Any) -> None:
        ray.kill(worker)


@dataclass(slots=True, eq=False)
class Slot:
    """The resources one trial runs in: a seat for each of its processes, its ranks."""

    number: int
    seats: list[Seat]
    trial: str = ""
    run: str = ""
    answers: list[Answer] = field(default_factory=list)  # to the reports of rank 0
    reported: list[int] = field(default_factory=list)  # reports of each rank
    ends: dict[int, End] = field(default_factory=dict)  # of ranks, in the order they came

    def key(self, rank: int) -> str:
        """The name of this rank's part of the run, in calls of its worker."""
        return f"{self.run}.{rank}"

    @property
    def where(self) -> tuple[str, str | None]:
        """Its node or nodes, and the numbers of its GPUs there, both with commas."""
        names = dict.fromkeys(seat.node.place.node for seat in self.seats)
        # Of a GPU's UUID as much as tells it from the others of its node.
        gpus = [seat.gpu[:12] for seat in self.seats if seat.gpu]
        return ",".join(names), ",".join(gpus) or None


@dataclass(slots=True)
class _Rank:
    """An answer of a worker that is waited for, about one rank of a slot's trial."""

    slot: Slot
    rank: int
    killed: End | None = None  # it ended so, and its worker is asked whether it is there


Said = tuple[Slot, int, Message]


class Slots:
    """Starts a worker on each node, gives trials to them, and hears what these say."""

    def __init__(
        self, setup: Setup, placement: Placement, left_out: set[str], workers: Workers
    ) -> None:
        """`left_out`: nodes, by Ray's ids, that are not to be used. It may grow."""
        self._setup = setup
        self._placement = placement
        self._left_out = left_out
        self._workers = workers
        self._numbers = itertools.count(1)
        self._slots: dict[int, Slot] = {}
        self._nodes: dict[str, Node] = {}  # with a worker, or one that starts, by Ray's ids
        self._waiting: dict[Any, _Rank | Node] = {}  # a node: whether its worker is there
        self._settling: list[tuple[float, _Rank]] = []
        self._next_look = 0.0
        self.cannot_fork: str | None = None  # why trials are not forked, once that is known
        self.losses = 0  # of workers in a row, before any has trained
        self.last_loss: End | None = None

    # ── Nodes ───────────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> None:
        """Looks which nodes there are, once a second: each gets a worker."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        for node in ray.nodes():
            node_id = node["NodeID"]
            if node["Alive"] and node_id not in self._nodes and node_id not in self._left_out:
                self._start_worker(node_id, node["Resources"])
        for node_id in self._left_out & self._nodes.keys():
            self._placement.remove(self._nodes[node_id])  # what runs there may go on

    def _start_worker(self, node_id: str, resources: dict[str, float]) -> None:
        cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
        slots = int(cpus / self._setup.resources[0]["CPU"]) + 1
        worker = self._workers.start(self._setup, node_id, gpus=gpus, slots=slots)
        node = self._nodes[node_id] = Node(worker, Place("", node_id, ()), cpus)
        self._waiting[worker.place.remote()] = node

    def _started(self, node: Node, place: Place) -> None:
        node.place, node.gpus = place, dict.fromkeys(place.gpus, 1.0)
        self._placement.add(node)

    def _lose(self, node: Node, error: Exception) -> End:
        """The worker of a node has ended: another one is started, if the node is there. What that
        means for each trial there."""
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
        """A slot for a trial; None if there is no place now."""
        number = next(self._numbers)
        seats = self._placement.take(number, whole_gpu=whole_gpu)
        return None if seats is None else Slot(number, seats)

    def begin(self, slot: Slot, begins: list[Begin]) -> None:
        """Starts a run of a trial in the slot, one `begin` for each rank."""
        slot.trial, slot.run = begins[0].trial, begins[0].run
        slot.reported = [0] * len(begins)
        self._slots[slot.number] = slot
        first = slot.seats[0].node.worker if len(begins) > 1 else None
        for rank, (begin, seat) in enumerate(zip(begins, slot.seats, strict=True)):
            gpus = (seat.gpu,) if seat.gpu is not None else ()
            ref = seat.node.worker.begin.remote(slot.key(rank), begin, gpus, first)
            self._waiting[ref] = _Rank(slot, rank)

    def answer(self, slot: Slot, answer: Answer) -> None:
        """Answers the last report of rank 0, and as the others come to the same report, theirs."""
        slot.answers.append(answer)
        for rank, count in enumerate(slot.reported):
            if rank not in slot.ends and count == len(slot.answers):
                self._send(slot, rank, answer)

    def _send(self, slot: Slot, rank: int, answer: Answer) -> None:
        worker = slot.seats[rank].node.worker
        self._waiting[worker.next.remote(slot.key(rank), answer)] = _Rank(slot, rank)

    def stop(self, slot: Slot) -> None:
        """Kills the processes of the slot's trial: they are heard of as having ended."""
        for rank, seat in enumerate(slot.seats):
            seat.node.worker.stop.remote(slot.key(rank))

    def close(self, slot: Slot) -> None:
        """The slot's trial has ended, in all its processes; or it got none."""
        self._slots.pop(slot.number, None)
        self._placement.give_back(slot.number, slot.seats)

    def give_up(self, slot: Slot) -> Iterator[Said]:
        """The slot's workers do not answer: they are ended."""
        for seat in slot.seats:
            self._workers.kill(seat.node.worker)
        for rank in range(len(slot.seats)):
            if rank not in slot.ends:
                end = End(cause=Cause.LOST, error="its worker does not answer")
                yield from self._take(slot, rank, end)

    # ── What is said ────────────────────────────────────────────────────────────────────────────

    def hear(self, timeout_s: float) -> Iterator[Said]:
        """Yields the messages of trials' processes: slot, rank, message. Waits for the first."""
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

    def _hear(self, ref: Any, who: _Rank | Node) -> Iterator[Said]:
        node = who if isinstance(who, Node) else who.slot.seats[who.rank].node
        try:
            said = ray.get(ref)
        except Exception as error:
            end = self._lose(node, error)
            if isinstance(who, _Rank) and who.slot.number in self._slots:
                yield from self._take(who.slot, who.rank, end)
            return
        if isinstance(who, Node):
            self._started(who, said)
        elif who.slot.number not in self._slots:
            return  # it was given up
        elif who.killed:
            yield from self._take(who.slot, who.rank, who.killed)
        else:
            if isinstance(said, tuple):
                said, cannot_fork = said
                self.cannot_fork = self.cannot_fork or cannot_fork
            yield from self._take_or_settle(who.slot, who.rank, said)

    def _take_or_settle(self, slot: Slot, rank: int, said: Message) -> Iterator[Said]:
        if isinstance(said, End) and said.signal in _SETTLE_S:
            until = time.monotonic() + _SETTLE_S[signal.Signals(said.signal)]
            self._settling.append((until, _Rank(slot, rank, killed=said)))
        else:
            yield from self._take(slot, rank, said)

    def _settle(self) -> None:
        """Asks workers whose trials were killed whether they are still there."""
        now = time.monotonic()
        for _, who in [one for one in self._settling if one[0] <= now]:
            worker = who.slot.seats[who.rank].node.worker
            self._waiting[worker.place.remote()] = who
        self._settling = [one for one in self._settling if one[0] > now]

    def _take(self, slot: Slot, rank: int, said: Message) -> Iterator[Said]:
        if isinstance(said, End):
            slot.ends[rank] = said
            yield slot, rank, said
            return
        slot.reported[rank] += 1
        self.losses = 0
        if rank == 0:
            yield slot, rank, said
        elif slot.reported[rank] <= len(slot.answers):
            self._send(slot, rank, slot.answers[slot.reported[rank] - 1])

    def close_all(self) -> None:
        """Ends everything."""
        killed = [
            seat.node.worker.stop.remote(slot.key(rank))
            for slot in self._slots.values()
            for rank, seat in enumerate(slot.seats)
        ]
        if killed:
            ray.wait(killed, num_returns=len(killed), timeout=_CLOSE_S)
        for node in self._nodes.values():
            self._workers.kill(node.worker)
