"""A discrete-event simulation of slots: epochs take simulated seconds, and proposals no time."""

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from siftune.space import Config
from tests.bench.quality.tasks import Task


class Next(Enum):
    """What happens to a trial after a report."""

    CONTINUE = "continue"
    LEAVE = "leave"  # it has ended or is paused, and its slot is free


class Method(Protocol):
    """A search method: one of siftune's pairs, or another tool's."""

    def start(self, *, idle: bool) -> tuple[str, int, Config] | None:
        """Returns the trial that a free slot trains next, the epoch that it begins, and its config.

        None if there is none now. `idle`: no trial is running.
        """

    def report(self, trial: str, epoch: int, loss: float, seconds: float) -> Next: ...

    def fail(self, trial: str) -> None: ...


@dataclass(frozen=True)
class Point:
    """The best loss so far, at a simulated time in seconds."""

    time: float
    best: float


def simulate(task: Task, method: Method, *, slots: int, until_s: float) -> Iterator[Point]:
    """Yields a point after each epoch, until the simulated time or until the method has no trial.

    A trial that fails takes the time of one epoch.
    """
    running: list[tuple[float, int, str, int, Config]] = []
    order = itertools.count()
    now, best = 0.0, math.inf
    while True:
        while len(running) < slots:
            started = method.start(idle=not running)
            if started is None:
                break
            trial, epoch, config = started
            heapq.heappush(running, (now + task.cost(config), next(order), trial, epoch, config))
        if not running:
            return
        now, _, trial, epoch, config = heapq.heappop(running)
        if now > until_s:
            return
        curve = task.curve(config)
        if curve is None:
            method.fail(trial)
            continue
        loss = curve[epoch - 1]
        best = min(best, loss)
        yield Point(now, best)
        if method.report(trial, epoch, loss, task.cost(config)) is Next.CONTINUE:
            ends = now + task.cost(config)
            heapq.heappush(running, (ends, next(order), trial, epoch + 1, config))
