"""From a study to its end: checks, study directory, data, Ray, the run, and the last words."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from siftune.backend.packing import Packing
from siftune.driver import console
from siftune.driver import prefetch as ahead
from siftune.driver.progress import Progress
from siftune.errors import UsageError
from siftune.machine import cluster, imports, utilisation
from siftune.machine.utilisation import Usages
from siftune.record import journal, lease
from siftune.record.journal import Journal, StorageError
from siftune.record.lease import Lease
from siftune.study.study import Study, read, read_yaml, resolve
from siftune.trainables import Trainable
from siftune.trainables.user import file as user

FINISHED, FAILED, RESUMABLE = 0, 1, 75


def launch(
    study: Study,
    *,
    data: Path,
    results: Path,
    resume: bool = False,
) -> int:
    """Runs a study, new or interrupted, and returns the exit status.

    Raises UsageError, with all mistakes, before anything is started or written; DataError if the
    data set cannot be had; StudyBusyError if another driver runs it; StorageError if the study
    directory cannot be written (any more).
    """
    directory = results.absolute() / study.name
    same = lease.read(directory).get("job") == cluster.job() is not None
    if same and not resume and _begun(directory):
        # This Slurm job again, requeued, with the flags that it was submitted with.
        study, resume = resumed(directory, {}), True
    nodes = cluster.nodes()
    trainable = Trainable(
        name=user.absolute(study.trainable),
        data=data.absolute(),
        seed=study.seed,
        options=study.trainable_options,
        processes=max(1, int(study.gpus_per_trial or 0)),
    )
    mistakes = trainable.mistakes(study.space) + _place_mistakes(study, nodes)
    mistakes += [] if resume else _directory_mistakes(directory)
    said: list[str] = []
    try:
        if study.gpus_per_trial is None:
            study = replace(study, gpus_per_trial=1 if nodes[0].gpus else 0)
        slots = min(_slots(study, nodes), study.concurrent or sys.maxsize)
        study, said = resolve(study, slots=max(1, slots))
        said += [] if mistakes else _check_memory(study, trainable)
    except UsageError as error:
        mistakes += error.mistakes
    if mistakes:
        raise UsageError(mistakes)
    trainable.prepare()

    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Nobody else's, until the user says so of this one directory: its files have their umask.
        directory.mkdir(mode=0o700, exist_ok=True)
        driver = Lease(directory, job=cluster.job())
    except OSError as error:
        raise StorageError(directory / "driver.json", error) from None
    try:
        if not resume and (mistakes := _directory_mistakes(directory)):
            raise UsageError(mistakes)  # another was quicker
        return _run(study, nodes, trainable, directory, driver, said=said, slots=slots)
    finally:
        driver.end()


def _run(
    study: Study,
    nodes: list[cluster.Node],
    trainable: Trainable,
    directory: Path,
    driver: Lease,
    *,
    said: list[str],
    slots: int,
) -> int:
    if journal.mend(directory):
        said.append("trials.jsonl: its last line was cut short; that event has not happened")
    log = Journal(directory)
    log.write_text("study.yaml", study.to_yaml())
    events = list(journal.events(directory))

    def write(event: journal.Event) -> None:
        driver.check()
        log.append(event)

    with console.view(study) as view, closing(ahead.build(study, slots=slots)) as proposals:
        progress = Progress(
            study,
            proposals,
            study.build_scheduler(),
            slots=slots,
            write=write,
            sinks=(_BestWriter(log), view),
        )
        progress.replay(events)
        _write_best(log, progress)  # a kill may have come between it and the journal
        packing = None if progress.done else _packing(study, nodes, progress)
        shared = [packing.sentence()] if packing else []
        for sentence in (*said, *_notes(study, nodes, slots), *shared):
            view.say(sentence)
        at_once = f"{'up to ' if packing else ''}{slots} at once"
        view.say(f"study {study.name}: {_describe(study)}, {at_once}, in {directory}")
        if progress.done:
            unseen_s = _unseen_s(directory, events)
            _Clock(
                *(progress, log, driver, [], None), nodes_now=list, unseen_s=unseen_s
            ).write_summary()
        else:

            def lost() -> None:
                driver.end()
                sys.stdout.flush()
                print("the study stops: its Ray was killed, as for want of memory", file=sys.stderr)
                print(f"see to that, then --resume {study.name}", file=sys.stderr, flush=True)

            from siftune.backend.connect import connect

            with (
                connect(lost, view.say),
                utilisation.watched(cluster.job_directory(), gpus=nodes[0].gpus > 0) as usage,
                _signals() as received,
            ):
                with imports.uncollected():
                    from siftune.backend.placement import nodes_now
                    from siftune.driver import loop

                left_out: set[str] = set()
                unseen_s = _unseen_s(directory, events)
                clock = _Clock(
                    *(progress, log, driver, received, packing),
                    nodes_now=partial(nodes_now, left_out),
                    unseen_s=unseen_s,
                    usage=usage,
                )
                clock.write_summary()
                try:
                    ended = loop.run(
                        *(study, trainable, progress, directory),
                        stop=clock.look,
                        launched_in=Path.cwd(),
                        left_out=left_out,
                        packing=packing,
                        say=view.say,
                    )
                except StorageError:
                    raise
                except OSError as error:  # a checkpoint of the study directory
                    path = Path(error.filename or directory / "checkpoints")
                    raise StorageError(path, error) from error
            clock.write_summary()
            if ended:
                print(f"the study stops: {ended.reason}", file=sys.stderr)
                print(f"see to that, then --resume {study.name}", file=sys.stderr)
                if not ended.elsewhere:
                    return FAILED
                if job := cluster.job_directory():
                    (job / "again").touch()
    log.close()
    driver.end(finished=progress.done)  # before the report, which says so
    _write_report(directory)
    return _conclude(progress, directory)


def resumed(directory: Path, changes: dict[str, Any]) -> Study:
    """The study of an existing directory, made ready to go on.

    Raises UsageError if there is none, or if a change would make it another study.
    """
    if not (directory / "study.yaml").is_file():
        raise UsageError(f"there is no study to resume in {directory}")
    open_to_change = ["trials", "time_limit_s", "concurrent", "cpus_per_trial", "gpus_per_trial"]
    open_to_change += ["retries", "report_timeout_s"]
    if fixed := [name for name in changes if name not in open_to_change]:
        raise UsageError(
            f"--resume goes on with the study as it is and cannot change {', '.join(fixed)}; "
            f"it can change: {', '.join(open_to_change)}"
        )
    return read([read_yaml(directory / "study.yaml"), changes], {})


# ── Before the start ────────────────────────────────────────────────────────────────────────────


def _slots(study: Study, nodes: list[cluster.Node]) -> int:
    return cluster.slots(
        nodes, cpus_per_trial=study.cpus_per_trial, gpus_per_trial=study.gpus_per_trial or 0
    )


def _packing(study: Study, nodes: list[cluster.Node], progress: Progress) -> Packing | None:
    """How trials share GPUs, if they do, with what is known of it from before an interruption."""
    part = study.gpus_per_trial or 0
    if not 0 < part < 1:
        return None
    cpus = min((node.cpus / node.gpus for node in nodes if node.gpus), default=0.0)
    most = min(int(1 / part + 1e-9), int(cpus / study.cpus_per_trial + 1e-9))
    if most < 1 or (gib := cluster.gpu_gib()) is None:
        return None
    packing = Packing(gpu_mib=1024 * gib, most=most)
    if known := [trial.gpu_mib for trial in progress.trials.values() if trial.gpu_mib]:
        packing.know(max(known))
    return packing


def _place_mistakes(study: Study, nodes: list[cluster.Node]) -> list[str]:
    mistakes = []
    gpus, most_gpus = study.gpus_per_trial or 0, sum(node.gpus for node in nodes)
    if gpus > most_gpus:
        mistakes.append(
            f"--gpus-per-trial must be at most the {most_gpus:g} GPUs that there are, "
            f"got {gpus:g}: use --gpus-per-trial {most_gpus:g}"
        )
    processes = max(1, int(gpus))
    most_cpus = nodes[0].cpus * processes
    if study.cpus_per_trial > most_cpus:
        mistakes.append(
            f"--cpus-per-trial must be at most the {most_cpus:g} CPUs that there are"
            f"{f' for {processes} processes' if processes > 1 else ''}, "
            f"got {study.cpus_per_trial:g}: use --cpus-per-trial {most_cpus:g}"
        )
    if not mistakes and not _slots(study, nodes):
        fitting = most_cpus * min(1, int(nodes[0].gpus) * len(nodes) / processes)
        mistakes.append(
            f"a trial on {gpus:g} GPUs with {study.cpus_per_trial:g} CPUs fits nowhere, since each "
            f"GPU comes with its part of the CPUs: try --cpus-per-trial {fitting / nodes[0].gpus:g}"
        )
    return mistakes


def _check_memory(study: Study, trainable: Trainable) -> list[str]:
    """What a trial needs of its GPUs, where that can be known beforehand. Raises UsageError if they
    have less."""
    if (needed := trainable.memory_gib(study.space)) is None:
        return []
    said = f"a trial of the largest config needs about {needed:.0f} GiB of "
    said += f"each of its {trainable.processes} GPUs" if trainable.processes > 1 else "memory"
    if not study.gpus_per_trial or (has := cluster.gpu_gib()) is None:
        return [said]
    # How many share a GPU, where they do, follows from what one really takes.
    if needed > has:
        raise UsageError(
            f"{said}, and there are {has:.0f}: give it more with --gpus-per-trial, or set a "
            "smaller batch_size, accumulation=4 or recompute=true"
        )
    return [f"{said}, of {has:.0f}"]


def _begun(directory: Path) -> bool:
    """Whether it holds a study, or is somebody's. One that was killed before its first line does
    not, nor do the files of drivers that are about to begin."""
    names = [path.name for path in directory.iterdir()] if directory.exists() else ["driver.json"]
    return not names or any(not name.startswith(("driver.json", ".driver.")) for name in names)


def _directory_mistakes(directory: Path) -> list[str]:
    if _begun(directory):
        return [
            f"the study {directory.name!r} exists in {directory.parent} and is not overwritten: "
            f"give another --name, or go on with it: --resume {directory.name}"
        ]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory.parent).close()
    except OSError as error:
        return [f"cannot write to {directory.parent}: {error.strerror}; give another --results"]
    return []


def _notes(study: Study, nodes: list[cluster.Node], slots: int) -> Iterator[str]:
    gpus = int(sum(node.gpus for node in nodes))
    if not gpus:
        yield "no GPU here: trials run on the CPU"
    width = int(study.gpus_per_trial or 0)
    if width > 1 and gpus > slots * width:
        yield (
            f"trials of {width} GPUs leave {gpus - slots * width} of {gpus} GPUs idle, "
            f"{slots} at once"
        )
    assert study.trials is not None
    if study.trials < slots:
        yield (
            f"{study.trials} trials leave {slots - study.trials} of {slots} slots empty: "
            f"--trials {slots} fills them"
        )
    if "images" in study.trainable_options:
        yield (
            f"a part of the data set: {study.trainable_options['images']:,} of MNIST's "
            "60,000 training images; --preset mnist takes them all"
        )


def _describe(study: Study) -> str:
    return f"{study.trials} trials of {study.trainable}, {study.searcher} + {study.scheduler}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C or SIGTERM: the list it yields is filled, for the study to save and stop; Ctrl-C
    twice: it stops at once. Entered after Ray, which has a handler of its own."""
    received: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        received.append(number)
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            again = "; Ctrl-C again stops at once"
        print(f"stopping after this moment's reports{again}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ── While it runs ───────────────────────────────────────────────────────────────────────────────


class _BestWriter:
    """Writes best.json as soon as an epoch is the best."""

    def __init__(self, log: Journal) -> None:
        self._log = log

    def __call__(self, event: journal.Event, progress: Progress) -> None:
        best = progress.best
        if best and (event["trial"], event.get("epoch")) == (best.trial, best.epoch):
            _write_best(self._log, progress)


def _write_best(log: Journal, progress: Progress) -> None:
    """Writes best.json, if there is a best."""
    if (best := progress.best) is None:
        return
    content: dict[str, Any] = {"trial": best.trial, "config": best.config}
    content |= {"metrics": best.metrics, "epoch": best.epoch, "checkpoint": None}
    if best.checkpoint:
        files = sorted((log.directory / best.checkpoint).glob("*"))
        # The path of the weights themselves where it is one file.
        path = files[0] if len(files) == 1 else log.directory / best.checkpoint
        content["checkpoint"] = str(path.relative_to(log.directory))
    log.sync()  # or a power cut may leave a best of which the journal knows nothing
    log.write("best.json", content)


def _unseen_s(directory: Path, events: list[journal.Event]) -> float:
    """The time that a killed study ran after its last summary.json."""
    if not events or not (summary := directory / "summary.json").exists():
        return 0.0
    return max(0.0, events[-1]["time"] - summary.stat().st_mtime)


class _Clock:
    """What is to be done from time to time while trials run: when the study is to stop, how many
    slots there are, and summary.json."""

    def __init__(
        self,
        progress: Progress,
        log: Journal,
        driver: Lease,
        received: list[int],
        packing: Packing | None,
        *,
        nodes_now: Callable[[], list[cluster.Node]],
        unseen_s: float,
        usage: Callable[[], Usages] = dict,
    ) -> None:
        """`unseen_s`: that the study has run and no summary.json tells of; `usage`: of the GPUs, in
        this run."""
        self._progress = progress
        self._log = log
        self._driver = driver
        self._received = received
        self._packing = packing
        self._nodes_now = nodes_now
        self._usage = usage
        self._start = self._written = self._counted = time.monotonic()
        self._packed = -1  # slots, when they were last counted
        self._slot_s = unseen_s * progress.slots
        self._before = journal.read_json(log.directory / "summary.json")
        self._wall_s = self._before.get("wall_s", 0.0) + unseen_s

    def look(self) -> bool:
        """Does what is due. Returns whether the study is to stop."""
        now = time.monotonic()
        if self._packing and self._packing.slots != self._packed:
            self._count_slots()
        if now - self._written > 5:
            self._written = now
            self._log.sync()
            self._count_slots()
            self.write_summary()
            self._driver.check()
        limit_s = self._progress.study.time_limit_s
        return bool(self._received) or (limit_s is not None and now - self._start > limit_s)

    def _count_slots(self) -> None:
        """Nodes may be lost, or be added by another job."""
        now, study = time.monotonic(), self._progress.study
        self._slot_s += (now - self._counted) * self._progress.slots
        self._counted = now
        if self._packing:
            slots = self._packed = self._packing.slots
        else:
            slots = _slots(study, self._nodes_now())
        self._progress.slots = max(1, min(slots, study.concurrent or sys.maxsize))

    def write_summary(self) -> None:
        progress = self._progress
        trials = progress.trials.values()
        per_trial = progress.study.gpus_per_trial or 0
        gpus, busy = progress.slots * per_trial, progress.by_state()["running"] * per_trial
        if self._packing:
            gpus, busy = self._packing.gpus
        now = time.monotonic()
        wall_s = now - self._start + self._wall_s
        trial_s = sum(trial.seconds for trial in trials)
        ended = sum(trial.state in journal.STATES for trial in trials)
        slot_s = self._slot_s + (now - self._counted) * progress.slots
        slot_s += self._before.get("slot_s", 0.0)
        content = {
            "trials": progress.by_state(),
            "wall_s": wall_s,
            "trial_s": trial_s,
            "slots": progress.slots,
            "gpus": gpus,
            "gpus_busy": busy,
            "slot_s": slot_s,
            "busy_fraction": trial_s / slot_s if slot_s else 0.0,
            "overhead_s_per_trial": max(0.0, slot_s - trial_s) / max(1, ended),
            "suggest_s": progress.proposals.spent_s + self._before.get("suggest_s", 0.0),
            "suggest_wait_s": progress.suggest_wait_s + self._before.get("suggest_wait_s", 0.0),
            "restarts": sum(trial.restarts for trial in trials),
        }
        seen = utilisation.total(utilisation.from_summary(self._before), self._usage())
        content |= utilisation.to_summary(seen)
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in content.items()}
        self._log.write("summary.json", rounded)


# ── After the end ───────────────────────────────────────────────────────────────────────────────


def _write_report(directory: Path) -> None:
    try:
        from siftune import report

        report.write(directory)
    except Exception as error:  # the study is over and safe: its page is no reason to fail it
        print(f"report.html is not written: {type(error).__name__}: {error}", file=sys.stderr)


def _conclude(progress: Progress, directory: Path) -> int:
    states = progress.by_state()
    counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    print(f"study {progress.study.name}: {counted or 'no trial begun'}")
    for trial in progress.trials.values():
        if trial.error:
            print(f"  trial {trial.trial} failed: {trial.error.splitlines()[-1]}")
    if best := progress.best:
        print(
            f"best {progress.study.metric} {best.metrics[progress.study.metric]:.6g}: "
            f"trial {best.trial}, epoch {best.epoch}"
        )
        active = progress.study.space.active(best.config)
        for name, value in best.config.items():
            print(f"  {name}: {value}{'' if name in active else ' (has no effect here)'}")
    print(f"everything is in {os.path.relpath(directory)}")
    if not progress.done:
        print(f"there is work left: go on with --resume {directory.name}")
        return RESUMABLE
    if not states["completed"] and not states["pruned"]:
        print("no trial succeeded: trials.jsonl has each one's error", file=sys.stderr)
        return FAILED
    return FINISHED
