"""Runs a study from its request to its end: checks, study directory, data, Ray, trials, report."""

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from siftune import trainables
from siftune.backend.packing import Packing
from siftune.driver import checks, console, ending, prefetch
from siftune.driver.best import BestWriter, write_best
from siftune.driver.console import View
from siftune.driver.monitor import Monitor, count_slots
from siftune.driver.progress import Progress
from siftune.driver.stopping import MissingMetrics
from siftune.errors import UsageError
from siftune.machine import gpus, resources, slurm
from siftune.machine.packages import without_gc
from siftune.machine.resources import Node
from siftune.record import journal, learned, lease, summary
from siftune.record.journal import Event, Journal, StorageError
from siftune.record.learned import Lesson
from siftune.record.lease import Lease
from siftune.report.live import LivePage
from siftune.study.planning import plan, seeded
from siftune.study.reading import read_resumed
from siftune.study.request import StudyRequest
from siftune.study.request import processes as processes_of
from siftune.study.study import Study
from siftune.trainables import TrainableSpec
from siftune.trainables.user.printed import PrintedMetrics


def launch(request: StudyRequest, *, data: Path, results: Path, resume: bool = False) -> int:
    """Runs a new or interrupted study and returns the exit code.

    `data`: the directory of data sets. `results`: the directory of study directories.

    Raises UsageError with all mistakes, before anything is started or written; DataError if the
    data set is missing; StudyBusyError if another driver runs the study; StorageError if the study
    directory cannot be written, at the start or later.
    """
    directory = results.absolute() / request.name
    same_job = lease.read(directory).get("job") == slurm.job() is not None
    if same_job and not resume and checks.is_begun(directory):
        # Slurm has requeued this job with its original flags, so the study is resumed.
        request, resume = read_resumed(directory, {}), True
    nodes = resources.nodes()
    study, trainable, notes, lessons = _plan(
        request, nodes, data, new=None if resume else directory
    )
    trainable.build().prepare()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Private until the user shares this directory; the files in it follow the user's umask.
        directory.mkdir(mode=0o700, exist_ok=True)
        again = ending.resume_command(directory, data) if slurm.submit_command() else None
        held = Lease(directory, job=slurm.job(), resume=again)
        if again:
            slurm.tell_study(directory, again)
    except OSError as error:
        raise StorageError(directory / "driver.json", error) from None
    try:
        if not resume and (mistakes := checks.directory_mistakes(directory)):
            raise UsageError(mistakes)  # another driver has created it meanwhile
        return _Run(study, nodes, trainable, directory, held, lessons).run(notes)
    finally:
        held.end()


def _plan(
    request: StudyRequest, nodes: list[Node], data: Path, *, new: Path | None
) -> tuple[Study, TrainableSpec, list[str], list[Lesson] | None]:
    """Returns the planned study, its trainable, notes for the user, and what it learns from other
    studies, None if it is resumed.

    `new`: the directory of the study, if it is a new one. Raises UsageError with all mistakes.
    """
    gpus_per_trial = request.gpus_per_trial
    if gpus_per_trial is None:
        gpus_per_trial = (request.processes_per_trial or 1) if nodes[0].gpus else 0
    processes = processes_of(request.processes_per_trial, gpus_per_trial)
    # A study that is resumed in another directory trains the same file.
    request = replace(
        seeded(request),
        trainable=trainables.absolute(request.trainable),
        trainable_options=_absolute(request.trainable_options),
        learn_from=[str(Path(source).absolute()) for source in request.learn_from],
    )
    trainable = TrainableSpec(
        name=request.trainable,
        data=data.absolute(),
        seed=request.seed or 0,
        options=request.trainable_options,
        processes=processes,
        printed=PrintedMetrics(
            metric=request.metric,
            patterns=tuple(request.metric_patterns),
            file=request.metric_file,
        ),
    )
    mistakes = trainable.mistakes(request.space)
    mistakes += checks.resource_mistakes(request, nodes, gpus_per_trial=gpus_per_trial)
    mistakes += checks.directory_mistakes(new) if new else []
    slots = resources.slots(
        nodes,
        cpus_per_trial=request.cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        processes=processes,
    )
    slots = max(1, min(slots, request.concurrent or sys.maxsize))
    try:
        study, notes = plan(request, slots=slots, gpus_per_trial=gpus_per_trial)
        notes += [] if mistakes else checks.check_memory(study, trainable, slots=slots)
        lessons, learns = learned.gather(study) if new else (None, [])
        notes += learns
    except UsageError as error:
        mistakes += error.mistakes
    if mistakes:
        raise UsageError(mistakes)
    return study, trainable, notes, lessons


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a trainable, with relative paths that exist made absolute."""
    return {
        name: str(Path(value).absolute())
        if isinstance(value, str) and name != "args" and value and Path(value).exists()
        else value
        for name, value in options.items()
    }


@dataclass
class _Run:
    """One run of a study, from its study directory to its exit code."""

    study: Study
    nodes: list[Node]
    trainable: TrainableSpec
    directory: Path
    lease: Lease
    lessons: list[Lesson] | None  # None: the study is resumed, and its directory has them

    def run(self, notes: list[str]) -> int:
        """Runs the study and returns the exit code. `notes`: sentences to print at the start."""
        if journal.mend(self.directory):
            notes.append("the last line of trials.jsonl was incomplete and has been removed")
        log = Journal(self.directory)
        if self.lessons is not None:
            learned.write(log, self.lessons)
        log.write_text("study.yaml", self.study.to_yaml())
        events = list(journal.events(self.directory))
        slots = count_slots(self.study, self.nodes)
        with (
            console.view(self.study) as view,
            closing(prefetch.build(self.study, slots=slots)) as proposals,
        ):
            progress = Progress(
                self.study,
                proposals,
                self.study.build_scheduler(),
                slots=slots,
                write=partial(self._append, log),
                sinks=(
                    BestWriter(log),
                    view,
                    console.LogTails(view, self.directory),
                    console.SharedFiles(view, Path.cwd()),
                    MissingMetrics(self.study, view.say),
                ),
            )
            for lesson in learned.load(self.directory):
                proposals.learn(lesson)
            progress.replay(events)
            if progress.stopped:
                ending.end_trials(progress, self.directory)
            write_best(log, progress)  # a kill may have prevented writing best.json
            unseen_s = summary.unseen_s(self.directory, events)
            packing = None if progress.done else checks.packing_of(self.study, self.nodes, progress)
            self._introduce(view, [*notes, *checks.notes(self.study, self.nodes, slots)], packing)
            status = None
            if progress.done:
                Monitor(progress, log, self.lease, signals=[], unseen_s=unseen_s).write_summary()
            else:
                status = self._train(progress, log, view, packing, unseen_s)
        if status is not None:
            return status
        log.close()
        self.lease.end(finished=progress.done)  # before the report, which shows this
        ending.write_report(self.directory)
        return ending.conclude(progress, self.directory, self.trainable.data)

    def _append(self, log: Journal, event: Event) -> None:
        self.lease.check()
        log.append(event)

    def _introduce(self, view: View, notes: list[str], packing: Packing | None) -> None:
        for sentence in (*notes, *([packing.sentence()] if packing else [])):
            view.say(sentence)
        study, slots = self.study, count_slots(self.study, self.nodes)
        view.say(
            f"study {study.name}: {study.trials} trials of {study.trainable}, "
            f"{study.mode}imises {study.metric}, {study.searcher} + "
            f"{study.scheduler}, seed {study.seed}, {'up to ' if packing else ''}{slots} at once, "
            f"in {self.directory}"
        )

    def _train(
        self,
        progress: Progress,
        log: Journal,
        view: View,
        packing: Packing | None,
        unseen_s: float,
    ) -> int | None:
        """Runs the trials. Returns an exit code if the study cannot continue, on any node."""
        from siftune.backend.connect import connect

        with (
            connect(self._ray_was_killed, view.say),
            gpus.watched(slurm.job_directory(), gpus=self.nodes[0].gpus > 0) as usage,
            _live_page(self.directory) as live_page,
            _signals() as signals,
        ):
            with without_gc():
                from siftune.backend.placement import nodes_now
                from siftune.driver import loop

            left_out: set[str] = set()
            monitor = Monitor(
                *(progress, log, self.lease),
                signals=signals,
                packing=packing,
                nodes_now=partial(nodes_now, left_out),
                usage=usage,
                look=live_page.look,
                unseen_s=unseen_s,
            )
            monitor.write_summary()
            try:
                ended = loop.run(
                    *(self.study, self.trainable, progress, self.directory),
                    stop=monitor.look,
                    launched_in=Path.cwd(),
                    left_out=left_out,
                    packing=packing,
                    say=view.say,
                )
                if progress.stopped and not ended:
                    ending.end_trials(progress, self.directory)
                if job := slurm.job_directory():
                    (job / "trained").touch()  # tells slurm/tune.sbatch: all is saved
            except StorageError:
                raise
            except OSError as error:  # from a checkpoint in the study directory
                path = Path(error.filename or self.directory / "checkpoints")
                raise StorageError(path, error) from error
        monitor.write_summary()
        if not ended:
            return None
        ending.say_stopped(ended.reason, self._again())
        if not ended.elsewhere:
            return ending.FAILED
        if job := slurm.job_directory():
            (job / "again").touch()
        return None

    def _ray_was_killed(self) -> None:
        self.lease.end()
        ending.say_stopped(
            "Ray was killed, perhaps because the node ran out of memory", self._again()
        )

    def _again(self) -> str:
        return ending.resume_command(self.directory, self.trainable.data)


@contextmanager
def _live_page(directory: Path) -> Iterator[LivePage]:
    live_page = LivePage(directory)
    try:
        yield live_page
    finally:
        live_page.end()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yields a list of the signals received so far: SIGINT (Ctrl-C) or SIGTERM.

    After the first one the study saves its state and stops; a second Ctrl-C stops it at once. Must
    be entered after Ray has started, because Ray sets its own handler.
    """
    received: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        received.append(number)
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            again = "; press Ctrl-C again to stop at once"
        print(f"stopping after the current reports{again}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
