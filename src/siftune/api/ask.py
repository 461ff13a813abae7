"""Ask and tell: a study of work that runs elsewhere, such as a simulation in another queue."""

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from siftune.api.result import Result
from siftune.driver import ending
from siftune.driver.best import BestWriter, write_best
from siftune.driver.monitor import Monitor
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.errors import UsageError
from siftune.machine import slurm
from siftune.record import journal, learned, summary
from siftune.record.journal import Event, Journal
from siftune.record.learned import Lesson
from siftune.record.lease import Lease
from siftune.schedulers.base import Decision
from siftune.space import Config
from siftune.study.planning import plan
from siftune.study.reading import changed, read, read_resumed
from siftune.study.study import Study
from siftune.trainables import ASKED
from siftune.trial.metrics import plain

_SUMMARY_S = 5.0  # between two writes of summary.json


class AskedTrial:
    """A trial that the caller trains. `config`: its hyper-parameters. `epoch`: the last report."""

    def __init__(self, owner: "AskedStudy", name: str) -> None:
        self._owner = owner
        self.name = name
        self._since = time.monotonic()

    @property
    def config(self) -> Config:
        study = self._owner.study
        return study.space.active(self._owner.progress.trials[self.name].config)

    @property
    def epoch(self) -> int:
        return self._owner.progress.trials[self.name].epoch

    def report(self, metrics: Mapping[str, Any] | None = None, **more: Any) -> bool:
        """Reports the metrics of one epoch, and returns whether the trial should go on.

        If not, the trial has reached its last epoch, or the scheduler has stopped it. A metric that
        is not finite fails the trial. Raises UsageError if the metric of the study is missing, or
        if the trial has ended.
        """
        values = plain({**(metrics or {}), **more})
        owner, metric = self._owner, self._owner.study.metric
        if metric not in values:
            raise UsageError(f"the metric {metric!r} is missing; got: {', '.join(values)}")
        with owner.lock:
            if self.name not in owner.progress.unfinished():
                raise UsageError(f"trial {self.name} has ended: ask for another one")
            now = time.monotonic()
            decision = owner.progress.report(
                self.name,
                self.epoch + 1,
                values,
                seconds=now - self._since,
                node=socket.gethostname(),
            )
            self._since = now
            owner.write_summary()
            last = owner.study.last_epoch(owner.progress.trials[self.name].config)
            over = owner.progress.stopped or (last is not None and self.epoch >= last)
            return decision is Decision.CONTINUE and not over

    def end(self, *, error: str | None = None) -> None:
        """Ends the trial: completed, or failed with an `error`. A trial that has ended stays so."""
        with self._owner.lock:
            self._owner.progress.end(self.name, "failed" if error else "completed", error)


class AskedStudy:
    """A study whose trials the caller trains. Its methods may be called from several threads.

    Use it in a `with` statement, which saves the study at the end. Another process can then open it
    again. Only one process may have it open.
    """

    def __init__(
        self, study: Study, directory: Path, lessons: list[Lesson] | None, *, slots: int
    ) -> None:
        """`lessons`: of other studies; None if the study is resumed."""
        self.study = study
        self.directory = directory
        self.lock = threading.RLock()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        again = f"siftune.ask_and_tell(name={study.name!r}, resume=True)"
        self._lease = Lease(directory, job=slurm.job(), resume=again)
        try:
            self._open(lessons, slots)
        except BaseException:
            self._lease.end()
            raise

    def _open(self, lessons: list[Lesson] | None, slots: int) -> None:
        study, directory = self.study, self.directory
        journal.mend(directory)
        self._log = Journal(directory)
        if lessons is not None:
            learned.write(self._log, lessons)
        self._log.write_text("study.yaml", study.to_yaml())
        events = list(journal.events(directory))
        proposals = Proposals(study, study.build_searcher())
        for lesson in learned.load(directory):
            proposals.learn(lesson)
        self.progress = Progress(
            study,
            proposals,
            study.build_scheduler(),
            slots=slots,
            write=self._append,
            sinks=[BestWriter(self._log)],
        )
        self.progress.replay(events)
        write_best(self._log, self.progress)  # a kill may have prevented writing best.json
        unseen_s = summary.unseen_s(directory, events)
        self._monitor = Monitor(
            self.progress, self._log, self._lease, signals=[], unseen_s=unseen_s
        )
        self._written = 0.0
        self.write_summary()

    @property
    def result(self) -> Result:
        """What the study has found so far."""
        return Result(self.directory)

    def ask(self) -> AskedTrial | None:
        """Begins a trial. Returns None if all trials have begun, or if the study has stopped."""
        with self.lock:
            trial = self.progress.begin()
            return None if trial is None else AskedTrial(self, trial.trial)

    def unfinished(self) -> list[AskedTrial]:
        """Returns the trials that have begun and not ended, also those of an earlier process."""
        with self.lock:
            return [AskedTrial(self, name) for name in self.progress.unfinished()]

    def close(self) -> None:
        """Saves the study, and writes its report."""
        with self.lock:
            if self.progress.stopped:
                ending.end_trials(self.progress, self.directory)
            self._monitor.write_summary()
            self._log.close()
            self._lease.end(finished=self.progress.done)
        ending.write_report(self.directory)

    def __enter__(self) -> "AskedStudy":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write_summary(self) -> None:
        """Writes summary.json if it is due."""
        if (now := time.monotonic()) - self._written >= _SUMMARY_S:
            self._written = now
            self._monitor.write_summary()

    def _append(self, event: Event) -> None:
        self._lease.check()
        self._log.append(event)


def ask_and_tell(
    space: Mapping[str, Any] | None = None,
    *,
    name: str,
    results: str | Path = "results",
    resume: bool = False,
    slots: int = 1,
    **settings: Any,
) -> AskedStudy:
    """Opens a study whose trials the caller trains.

        with siftune.ask_and_tell({"x": "uniform(0, 1)"}, name="s", metric="loss") as study:
            while trial := study.ask():
                trial.report(loss=simulate(trial.config["x"]))
                trial.end()

    `space`: a dictionary of domains. `slots`: how many trials run at once. `settings`: those of
    study.yaml, such as `metric`, `trials=50`, `searcher`, `scheduler`. `resume`: go on with the
    study `name`, if there is one, with its own space. Only settings that `--resume` can change may
    differ.

    Raises UsageError with all mistakes; StudyBusyError if another process has opened the study.
    """
    directory = Path(results).absolute() / name
    resumed = (directory / "study.yaml").is_file()
    if resumed:
        if not resume:
            raise UsageError(
                f"the study {name!r} exists in {directory.parent}: resume=True goes on"
            )
        request = read_resumed(directory, changed(directory, settings))
    else:
        if space is None:
            raise UsageError("a new study needs a space, a dictionary of domains")
        layer = settings | {"trainable": ASKED, "name": name, "space": space}
        request = read([layer], {})
        sources = [str(Path(source).absolute()) for source in request.learn_from]
        request = replace(request, learn_from=sources)  # the report names them
    study, _ = plan(request, slots=slots)
    if study.scheduler in ("hyperband", "bohb", "pbt"):
        raise UsageError(
            f"the scheduler {study.scheduler} pauses trials, and here the caller trains them: use "
            "asha, median or none"
        )
    lessons = None if resumed else learned.gather(study)[0]
    return AskedStudy(study, directory, lessons, slots=slots)
