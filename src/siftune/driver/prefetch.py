"""Proposals of slow searchers, computed in other processes before they are asked for.

A searcher that fits a model takes a second or two for a config, in which a free slot would wait.
Here, from its first model on, other processes compute the configs of the trials to come. Each has
a searcher of its own and is told the same events in the same order; a config that is there counts
as a running trial for the next. When a trial ends its slot takes the oldest config that is ready,
and one more is ordered, which knows of that end: results replace what is ahead point by point.
While the first model is fitted, trials begin with configs from before it, a few.
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
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config, key
from siftune.study.study import Study


def build(study: Study, *, slots: int) -> Proposals:
    """How the study's configs are proposed. With one slot each knows all results: to wait for it
    is the price."""
    searcher = study.build_searcher()
    useful = slots > 1 and searcher.processes > 0
    return Prefetch(study, searcher) if useful else Proposals(study, searcher)


class Prefetch(Proposals):
    """Proposals from `searcher.processes` processes. If they end, this one computes.

    A searcher that raises there does not end its process: see Proposals.
    """

    def __init__(self, study: Study, searcher: Searcher) -> None:
        super().__init__(study, searcher)
        self._processes = [_Process(study) for _ in range(searcher.processes)]
        self._ordered: dict[int, _Process] = {}
        self._ready: dict[int, Proposal | None] = {}  # None: the space is exhausted
        self._told: set[str] = set()  # trials to come that the processes take for running
        self._spares: dict[int, Proposal] = {}  # without a model, for the trials that come next
        self._ended = 0

    def begin(self, trial: str, config: Config) -> None:
        super().begin(trial, config)
        if trial in self._told:
            self._told.remove(trial)
        else:
            self._tell(self._processes, "begin", trial, config)

    def report(self, trial: str, epoch: int, score: float) -> None:
        super().report(trial, epoch, score)
        if type(self.searcher).report is not Searcher.report:
            self._tell(self._processes, "report", trial, epoch, score)

    def end(self, trial: str, score: float | None) -> None:
        super().end(trial, score)
        self._ended += 1
        self._tell(self._processes, "end", trial, score)

    def ask(self, number: int, *, prefetch: int = 0) -> Proposal:
        self._collect()
        last = min(number + prefetch, self.study.trials - 1)
        if not self.searcher.is_slow():
            fast = super().ask(number)
            spares = range(number + 1, min(number + len(self._processes), last) + 1)
            with contextlib.suppress(SpaceExhausted):
                self._spares = {n: Proposal(self._fresh(n), self._ended) for n in spares}
            return fast
        for spare, config in self._spares.items():
            if spare >= number:
                self._have(spare, config, self._processes)
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
        if key(proposal.config) in self._known:  # two processes had the same idea
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
                    number, config, knew, seconds, said = process.receive()
                    self._ordered.pop(number, None)
                    self.spent_s += seconds
                    for sentence in said:
                        self._say_once(sentence)
                    self._ready[number] = None
                    if config is not None:
                        others = [other for other in self._processes if other is not process]
                        self._have(number, Proposal(config, knew), others)
            except (EOFError, OSError):
                self._lose(process)

    def _have(self, number: int, proposal: Proposal, others: list["_Process"]) -> None:
        """The config of a trial to come, which the others are to take for running."""
        self._ready[number] = proposal
        self._told.add(trial_name(number))
        self._tell(others, "begin", trial_name(number), proposal.config)

    def _tell(self, processes: list["_Process"], *message: Any) -> bool:
        """Whether all of them still listen."""
        heard = True
        for process in list(processes):
            try:
                process.connection.send(message)
            except OSError:
                self._lose(process)
                heard = False
        return heard

    def _lose(self, process: "_Process") -> None:
        if process not in self._processes:  # it was missed twice
            return
        self._processes.remove(process)
        self._ordered = {n: p for n, p in self._ordered.items() if p is not process}
        others = "the others go on" if self._processes else "the driver computes them from now on"
        self._say(f"a process that computes proposals has ended: {process.why()}; {others}")
        process.end()


class _Process:
    """Another process with a searcher of this study, and the line to it."""

    def __init__(self, study: Study) -> None:
        self.connection, theirs = Pipe()
        # One thread: its matrices are small, and processors are for trials.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "siftune.driver.prefetch", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._last_words = ""
        with contextlib.suppress(OSError):  # it has ended already, which is noticed soon
            self.connection.send(study)

    def receive(self) -> Any:
        """The next proposal. Raises EOFError once the process has ended."""
        message = self.connection.recv()
        if isinstance(message, str):
            self._last_words = message
            raise EOFError
        return message

    def why(self) -> str:
        """Why the process has ended."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                self.receive()
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return self._last_words or "it does not answer"
        if self._last_words:
            return self._last_words
        if status < 0:
            return f"signal {-status} ({signal.strsignal(-status)})"
        return f"exit status {status}"

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def serve(connection: Connection) -> None:
    """Does what the messages say, until there is nobody at the other end."""
    study: Study = connection.recv()
    said: list[str] = []  # since the last proposal
    try:
        searcher = study.build_searcher()
    except Exception as error:
        connection.send(cause(error))
        return
    proposals = Proposals(study, searcher, say=said.append)
    ended = 0
    while True:
        verb, *words = connection.recv()
        if verb == "propose":
            began = time.perf_counter()
            number, config = words[0], None
            searcher.running.pop(trial_name(number), None)  # refused: another process's
            with contextlib.suppress(SpaceExhausted):
                config = proposals.ask(number).config
                proposals.begin(trial_name(number), config)
            connection.send((number, config, ended, time.perf_counter() - began, said))
            said.clear()
        else:
            getattr(proposals, verb)(*words)
            ended += verb == "end"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))
