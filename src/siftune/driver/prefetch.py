"""Computes proposals of slow searchers in other processes, before they are needed.

A searcher that fits a model takes a second or two for a config, and a free slot would be idle for
that time. So from the first model on, other processes compute the configs of the next trials. Each
process has its own searcher, which is told the same events in the same order. A config that is
ready counts as a running trial when the next one is computed. When a trial ends, its slot takes the
oldest ready config, and a new config is requested that takes the result of that trial into account.
While the first model is fitted, trials start with a few configs that were proposed without it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from siftune.driver.proposals import NotYet, Proposal, Proposals, cause
from siftune.record.journal import trial_name
from siftune.record.learned import Lesson
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config
from siftune.study.study import Study


def build(study: Study, *, slots: int) -> Proposals:
    """Returns the source of the study's configs.

    With one slot nothing is prefetched: each proposal then takes all results into account, at the
    cost of waiting for it.
    """
    searcher = study.build_searcher()
    return Prefetch(study, searcher) if slots > 1 else Proposals(study, searcher)


class Prefetch(Proposals):
    """Proposals from `searcher.processes` processes, which start as soon as this is not 0. If all
    of them end, the driver computes the proposals itself.

    An exception of a searcher does not end its process; see Proposals.
    """

    def __init__(self, study: Study, searcher: Searcher) -> None:
        super().__init__(study, searcher)
        self._processes: list[_Process] = []
        self._started = False
        self._events: list[tuple[Any, ...]] = []  # until the processes start
        self._ordered: dict[int, _Process] = {}  # by number of the trial
        self._ready: dict[int, Proposal | None] = {}  # None: the space is exhausted
        self._told: set[str] = set()  # future trials, which the processes count as running
        self._spares: dict[int, Proposal] = {}  # proposed without a model, for the next trials
        self._ended = self._reported = 0  # numbers of trials and of their epochs
        self._start()

    def _start(self) -> None:
        """Starts the processes if the searcher wants them now, and tells them all events."""
        if self._started or not self.searcher.processes:
            return
        self._started = True
        self._processes = [_Process(self.study) for _ in range(self.searcher.processes)]
        for event in self._events:
            self._tell(self._processes, *event)
        self._events = []

    def _inform(self, *event: Any) -> None:
        """Tells all processes an event, now or when they start."""
        if self._started:
            self._tell(self._processes, *event)
        else:
            self._events.append(event)

    def learn(self, lesson: Lesson) -> None:
        super().learn(lesson)
        self._inform("learn", lesson)
        self._start()

    def begin(self, trial: str, config: Config) -> None:
        super().begin(trial, config)
        if trial in self._told:
            self._told.remove(trial)
        else:
            self._inform("begin", trial, config)

    def report(self, trial: str, epoch: int, score: float, seconds: float) -> None:
        super().report(trial, epoch, score, seconds)
        self._reported += 1
        if type(self.searcher).report is not Searcher.report:
            self._inform("report", trial, epoch, score, seconds)

    def end(self, trial: str, score: float | None) -> None:
        super().end(trial, score)
        self._ended += 1
        self._inform("end", trial, score)
        self._start()

    def ask(self, number: int, *, prefetch: int = 0) -> Proposal:
        if number < self.known_configs:
            return super().ask(number)
        self._collect()
        last = min(number + prefetch, self.study.trials - 1)
        if not self.searcher.is_slow():
            fast = super().ask(number)
            spares = range(number + 1, min(number + len(self._processes), last) + 1)
            with contextlib.suppress(SpaceExhausted):
                self._spares = {
                    n: Proposal(self._fresh(n), self._ended, self._reported) for n in spares
                }
            return fast
        for spare, config in self._spares.items():
            if spare >= number:
                self._add_ready(spare, config, self._processes)
        self._spares = {}
        for wanted in range(number, last + 1):
            if wanted not in self._ordered and wanted not in self._ready:
                self._order(wanted)
        if not self._processes:
            return super().ask(number)
        if number not in self._ready:
            raise NotYet
        proposal = self._ready.pop(number)
        if proposal is None:
            raise SpaceExhausted
        if (
            self.study.space.identity(proposal.config) in self._known
        ):  # two processes proposed the same config
            self._order(number)
            raise NotYet
        return proposal

    def close(self) -> None:
        for process in self._processes:
            process.end()
        self._processes = []

    def _order(self, number: int) -> None:
        busy = list(self._ordered.values())
        for process in sorted(self._processes, key=busy.count):
            if self._tell([process], "propose", number):
                self._ordered[number] = process
                return

    def _collect(self) -> None:
        for process in list(self._processes):
            try:
                while process.connection.poll():
                    number, config, knew, heard, seconds, messages = process.receive()
                    self._ordered.pop(number, None)
                    self.spent_s += seconds
                    for sentence in messages:
                        self._say_once(sentence)
                    self._ready[number] = None
                    if config is not None:
                        others = [other for other in self._processes if other is not process]
                        self._add_ready(number, Proposal(config, knew, heard), others)
            except (EOFError, OSError):
                self._lose(process)

    def _add_ready(self, number: int, proposal: Proposal, others: list["_Process"]) -> None:
        """Stores the config of a future trial and tells the other processes to count that trial as
        running."""
        self._ready[number] = proposal
        self._told.add(trial_name(number))
        self._tell(others, "begin", trial_name(number), proposal.config)

    def _tell(self, processes: list["_Process"], *message: Any) -> bool:
        """Sends a message to the processes. Returns whether all of them could receive it."""
        all_received = True
        for process in list(processes):
            try:
                process.connection.send(message)
            except OSError:
                self._lose(process)
                all_received = False
        return all_received

    def _lose(self, process: "_Process") -> None:
        if process not in self._processes:  # its loss was handled already
            return
        self._processes.remove(process)
        self._ordered = {n: p for n, p in self._ordered.items() if p is not process}
        others = "the others continue" if self._processes else "the driver now computes them"
        self._say(f"a process that computes proposals has ended: {process.why()}; {others}")
        process.end()


class _Process:
    """Another process with a searcher of this study, and the connection to it."""

    def __init__(self, study: Study) -> None:
        self.connection, theirs = Pipe()
        # One thread is enough for small matrices, and leaves the CPUs to the trials.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "siftune.driver.prefetch", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._error = ""
        with contextlib.suppress(OSError):  # it has already ended, which `_collect` notices
            self.connection.send(study)

    def receive(self) -> Any:
        """Returns the next proposal. Raises EOFError once the process has ended."""
        message = self.connection.recv()
        if isinstance(message, str):
            self._error = message
            raise EOFError
        return message

    def why(self) -> str:
        """Returns why the process has ended."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                self.receive()
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return self._error or "it does not respond"
        if self._error:
            return self._error
        if status < 0:
            return f"signal {-status} ({signal.strsignal(-status)})"
        return f"exit code {status}"

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def serve(connection: Connection) -> None:
    """Carries out the driver's messages. Raises EOFError or OSError when the driver has gone."""
    study: Study = connection.recv()
    messages: list[str] = []  # since the last proposal
    try:
        searcher = study.build_searcher()
    except Exception as error:
        connection.send(cause(error))
        return
    proposals = Proposals(study, searcher, say=messages.append)
    ended = reported = 0
    while True:
        verb, *words = connection.recv()
        if verb == "propose":
            began = time.perf_counter()
            number, config = words[0], None
            searcher.running.pop(trial_name(number), None)  # of another process, and refused
            with contextlib.suppress(SpaceExhausted):
                config = proposals.ask(number).config
                proposals.begin(trial_name(number), config)
            seconds = time.perf_counter() - began
            connection.send((number, config, ended, reported, seconds, messages))
            messages.clear()
        else:
            getattr(proposals, verb)(*words)
            ended += verb == "end"
            reported += verb == "report"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))
