"""The loop that runs a study's trials: Progress makes the decisions and the slots execute them."""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from siftune.backend import failures
from siftune.backend.packing import Packing
from siftune.backend.placement import Placement, nodes_now
from siftune.backend.slots import Slot, Slots, Workers
from siftune.backend.worker import Place
from siftune.driver import restore
from siftune.driver.progress import Progress
from siftune.driver.running import Patience, Running
from siftune.machine.resources import threads
from siftune.record.journal import TRIED_AGAIN, Trial
from siftune.schedulers.base import Clone, Decision, Order, Stop
from siftune.study.study import Study
from siftune.trainables import TrainableSpec
from siftune.trial import checkpoints
from siftune.trial.messages import Answer, Begin, Cause, End, GpuShare, Message, Report, Setup

_PROPOSAL_S = 0.02  # between two checks for a proposal that is being computed
_LOOK_S = 1.0  # between two checks of nodes, time limits and hung trials
_GRACE_S = 15.0  # for the other processes of a trial to end, once one has ended
_MOST_LOSSES = 12  # workers in a row that end before they train
_UNANSWERED_S = 60.0  # for a worker to kill a hung trial


@dataclass(frozen=True, slots=True)
class Ended:
    """The reason why a study cannot continue now."""

    reason: str
    elsewhere: bool = False  # it could on other nodes, so the job should restart


def run(
    study: Study,
    trainable: TrainableSpec,
    progress: Progress,
    directory: Path,
    *,
    stop: Callable[[], bool],
    launched_in: Path,
    left_out: set[str],
    packing: Packing | None = None,
    say: Callable[[str], None] = print,
    workers: Workers | None = None,
) -> Ended | None:
    """Runs the study's trials until all are done, a stop condition holds, or `stop()`, called at
    least once a second, is true. Ray must be connected.

    `directory`: the study directory. `progress`: may have replayed an interrupted study.
    `left_out`: Ray's ids of nodes that must not be used; nodes whose disks fail are added.
    `packing`: given if trials share GPUs as memory allows. `say`: prints a message for the user.
    `workers`: starts the workers; by default they are Ray actors.

    Returns the reason if the study cannot continue. Raises OSError if the study directory cannot be
    written.
    """
    gpus = study.gpus_per_trial
    each = {"CPU": study.cpus_per_trial / trainable.processes}
    each |= {"GPU": gpus / trainable.processes} if gpus else {}
    setup = Setup(
        trainable=trainable,
        study=directory,
        launched_in=launched_in,
        in_trial_directory=study.workdir == "trial",
        reuse=study.reuse_processes,
        share_gpu=0 < gpus < 1,
        measure_gpu=packing is not None,
        resources=(each,) * trainable.processes,
        threads=threads(each["CPU"]),
    )
    placement = Placement(
        processes=trainable.processes, cpus=each["CPU"], gpus=each.get("GPU", 0.0), packing=packing
    )
    slots = Slots(setup, placement, left_out, workers or Workers())
    patience = Patience(study.report_timeout_s)
    loop = _Loop(study, progress, directory, slots, left_out, packing, say, patience)
    try:
        return loop.run(stop)
    finally:
        slots.close_all()


@dataclass
class _Loop:
    study: Study
    progress: Progress
    directory: Path
    slots: Slots
    left_out: set[str]
    packing: Packing | None
    say: Callable[[str], None]
    patience: Patience
    running: dict[str, Running] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)  # trials to be restarted
    interrupted: set[str] = field(default_factory=set)  # those of them interrupted with the study
    ended: Ended | None = None
    said: set[str] = field(default_factory=set)  # kinds of messages that were printed already
    awaits_proposal: bool = False

    def run(self, stop: Callable[[], bool]) -> Ended | None:
        self._restore_interrupted()
        progress = self.progress
        while not (progress.done or progress.stopped or self.ended or stop()):
            self.slots.refresh()
            self._assign()
            for slot, rank, message in self.slots.hear(self._timeout_s()):
                self._take(slot, rank, message)
                if progress.stopped:
                    break
            self._stop_late()
            self._watch_losses()
            if progress.hopeless:
                self.ended = Ended(progress.hopeless)
        return self.ended

    def _timeout_s(self) -> float:
        return _PROPOSAL_S if self.awaits_proposal else _LOOK_S

    # ── Starts ──────────────────────────────────────────────────────────────────────────────────

    def _restore_interrupted(self) -> None:
        """Prepares the trials that were interrupted together with the study, so that they can
        continue."""
        progress = self.progress
        for name in progress.overdue():
            progress.end(name, "pruned")
        for name in progress.unfinished():
            if not progress.paused(name):
                self.again.append(name)
                self.interrupted.add(name)
            elif progress.trials[name].state != "paused":
                progress.pause(name)  # it was about to pause, or had just resumed

    def _assign(self) -> None:
        """Fills the free slots: first with trials to restart, then with trials that the scheduler
        resumes or clones, then with new ones."""
        progress = self.progress
        self.awaits_proposal = False
        for name in list(self.again):
            whole_gpu = self.packing is not None and progress.trials[name].needs_whole_gpu
            if (slot := self._open(whole_gpu=whole_gpu)) is not None:
                self.again.remove(name)
                self._start_again(slot, name)
        ordered = self._orders()
        while ordered or not progress.all_begun:
            if (slot := self._open()) is None:
                return
            if ordered:
                self._carry_out(slot, ordered.pop(0))
            elif (trial := progress.begin()) is not None:
                self._start(slot, trial)
            else:
                self.slots.close(slot)
                self.awaits_proposal = not progress.all_begun
                return

    def _open(self, *, whole_gpu: bool = False) -> Slot | None:
        if len(self.running) >= self.progress.slots:
            return None
        return self.slots.open(whole_gpu=whole_gpu)

    def _start_again(self, slot: Slot, name: str) -> None:
        trial = self.progress.trials[name]
        if name in self.interrupted:
            self.interrupted.remove(name)
            checkpoint = restore.latest(self.directory, trial)
            self.progress.restart(name, checkpoint[0] if checkpoint else 0)
        self._start(slot, trial)

    def _orders(self) -> list[Order]:
        """Returns the scheduler's orders that need a free slot, in their order. Ends the trials
        that the scheduler stops."""
        progress = self.progress
        if progress.under_way == len(self.running) + len(self.again):
            return []  # no trial is paused
        idle = not self.running and not self.again and progress.all_begun
        ready: list[Order] = []
        for order in progress.orders(idle=idle):
            running = self.running.get(order.trial)
            if running is not None and running.over is None:
                continue  # already carried out; the order stands until the trial reports
            if running is not None or order.trial in self.again:
                # The trial's run has not ended yet, or waits to be restarted. Later orders wait for
                # a clone: its donor must not continue before the donor's checkpoint is copied.
                if isinstance(order, Clone):
                    break
            elif isinstance(order, Stop):
                self._end(order.trial, "pruned")
            else:
                ready.append(order)
        return ready

    def _carry_out(self, slot: Slot, order: Order) -> None:
        if not isinstance(order, Clone):
            self.progress.resume(order.trial)
        elif not restore.is_cloned(self.directory, self.progress.trials[order.trial]):
            self._clone(order)
        self._start(slot, self.progress.trials[order.trial])

    def _clone(self, order: Clone) -> None:
        """Gives the trial the order's config and a copy of the donor's checkpoint."""
        progress = self.progress
        paused_at = progress.trials[order.trial].epoch
        checkpoint = restore.latest(self.directory, progress.trials[order.donor], until=paused_at)
        epoch, copy = 0, None
        if checkpoint:
            epoch, donor = checkpoint
            copy = checkpoints.clone(self.directory, donor, order.trial, epoch, _new_run())
        progress.clone(order.trial, epoch, donor=order.donor, config=order.config, checkpoint=copy)

    def _start(self, slot: Slot, trial: Trial) -> None:
        epoch, path = restore.latest(self.directory, trial) or (0, None)
        run = _new_run()
        self.running[trial.trial] = Running(slot, run, epoch, epoch, time.monotonic())
        begins = [
            Begin(
                trial=trial.trial,
                config=self.study.space.given(trial.config),
                epoch=epoch,
                checkpoint=path,
                last_epoch=self.study.last_epoch(trial.config),
                run=run,
                gpu=self._gpu_share(slot, trial),
                rank=rank,
            )
            for rank in range(len(slot.seats))
        ]
        self.slots.begin(slot, begins)

    def _gpu_share(self, slot: Slot, trial: Trial) -> GpuShare | None:
        if self.packing is None:
            return None
        limit_mib = self.packing.limit_mib(slot.number)
        fixed = limit_mib is not None or trial.needs_whole_gpu
        divide = None if fixed else (self.packing.usable_mib, self.packing.most)
        return GpuShare(limit_mib=limit_mib, divide=divide)

    # ── Messages ────────────────────────────────────────────────────────────────────────────────

    def _take(self, slot: Slot, rank: int, message: Message) -> None:
        if isinstance(message, Report):
            self._take_report(slot, slot.trial, message)
            return
        running = self.running[slot.trial]
        if len(slot.ends) == len(slot.seats):
            self._finish(slot, slot.trial)
        else:
            running.grace = min(running.grace, time.monotonic() + _GRACE_S)

    def _take_report(self, slot: Slot, name: str, report: Report) -> None:
        progress, running = self.progress, self.running[name]
        running.epoch, running.heard = report.epoch, time.monotonic()
        self.patience.heard(report.seconds)
        if self.packing:
            alone = progress.trials[name].needs_whole_gpu
            if news := self.packing.report(slot.number, report.gpu_mib, alone=alone):
                self.say(news)
        node, gpu = slot.where
        decision = progress.report(
            name,
            report.epoch,
            report.metrics,
            seconds=report.seconds,
            node=node,
            gpu=gpu,
            gpu_mib=report.gpu_mib,
            checkpoint=report.checkpoint,
        )
        goes_on = decision is Decision.CONTINUE
        self.slots.answer(slot, Answer.CONTINUE if goes_on else Answer.STOP)
        if not goes_on:
            running.over = decision
        if report.checkpoint:
            checkpoints.remove_others(self.directory, name, progress.kept(name), run=running.run)
        if decision is Decision.PAUSE and not report.checkpoint:
            self._say_once(
                "no checkpoint",
                f"trial {name} was paused without a checkpoint and will restart at epoch 1. Pass "
                "checkpoint= to tune.report, or use --scheduler asha",
            )
        if self.slots.cannot_fork:
            self._say_once(
                "no fork",
                f"{self.study.trainable} {self.slots.cannot_fork}: each trial therefore needs "
                "a new Python interpreter and repeats all imports. Move imports, and code that "
                "starts threads or uses CUDA, into the function",
            )

    def _finish(self, slot: Slot, name: str) -> None:
        """Handles the end of a run, once all its processes have ended."""
        running = self.running.pop(name)
        end = failures.first(slot.ends.values())
        rank = next(rank for rank, other in slot.ends.items() if other is end)
        place = slot.seats[rank].node.place
        self.slots.close(slot)
        if name not in self.progress.unfinished():  # it was pruned, or had failed
            checkpoints.remove_others(self.directory, name, self.progress.kept(name))
        elif running.over is Decision.PAUSE:
            pass  # it waits for an order
        elif end.cause is None:
            self._end(name, "completed")
        else:
            self._fail(name, running, end, place)

    def _end(self, name: str, state: str, error: str | None = None) -> None:
        self.progress.end(name, state, error)
        checkpoints.remove_others(self.directory, name, self.progress.kept(name))

    def _fail(self, name: str, running: Running, end: End, place: Place) -> None:
        """Handles a failed run: its trial is restarted or ends, or the study ends."""
        record = self.progress.trials[name]
        error = end.error or ""
        cause = Cause.HANG if running.hung else end.cause
        if running.hung:
            waited = self.patience.limit_s()
            error = f"no report for {waited:.0f} s: raise --report-timeout if epochs take longer"
        if cause is Cause.ERROR and running.epoch == running.restored > 0:
            cause = Cause.CHECKPOINT  # perhaps damaged by a power cut: use the one before
        if cause is Cause.STORAGE:
            # Every trial would fail in this way. This one continues when the study is resumed.
            self.ended = Ended(f"trial {name} cannot save: {error.splitlines()[-1]}")
            return
        if cause is Cause.NODE:
            self._leave_out(place, end)
        elif cause is Cause.ERROR or (
            cause in TRIED_AGAIN and record.retries >= self.study.retries
        ):
            self._end(name, "failed", error)
            return
        below = running.restored - 1 if cause is Cause.CHECKPOINT else None
        checkpoint = restore.latest(self.directory, record, until=below)
        epoch = checkpoint[0] if checkpoint else 0
        self.progress.restart(name, epoch, cause=cause or "", error=error)
        self.again.append(name)

    def _leave_out(self, place: Place, end: End) -> None:
        """Starts no more trials on a node whose disk is not writable."""
        if place.node_id in self.left_out:
            return
        self.left_out.add(place.node_id)
        reason = (end.error or "").rpartition("\n")[2]
        self.say(
            f"{place.node} is excluded from the study: cannot write to {end.path} on its disk "
            f"({reason})"
        )
        if not nodes_now(self.left_out):
            self.ended = Ended(
                f"cannot write to {end.path} on the disk of {place.node}, the only node",
                elsewhere=True,
            )

    # ── Timeouts and losses ─────────────────────────────────────────────────────────────────────

    def _stop_late(self) -> None:
        """Kills hung trials, and processes that outlive the others of their trial."""
        now, patience_s = time.monotonic(), self.patience.limit_s()
        for running in list(self.running.values()):
            silent_s = now - running.heard
            if silent_s > patience_s and not running.hung and running.over is None:
                running.hung = True
                self.slots.stop(running.slot)
            elif now > running.grace:
                running.grace = math.inf
                self.slots.stop(running.slot)
            elif running.hung and silent_s > patience_s + _UNANSWERED_S:
                for slot, rank, message in self.slots.give_up(running.slot):
                    self._take(slot, rank, message)

    def _watch_losses(self) -> None:
        """Ends the study if no worker lives long enough for a trial to report an epoch."""
        losses, last = self.slots.losses, self.slots.last_loss
        if losses > 2 and last:
            self._say_once(
                "loss", f"the workers exit before any trial has reported an epoch: {last.error}"
            )
        if losses >= _MOST_LOSSES:
            why = last.error if last else ""
            self.ended = Ended(
                f"{losses} workers in a row exited before any trial reported an epoch: {why}", True
            )

    def _say_once(self, kind: str, sentence: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.say(sentence)


def _new_run() -> str:
    return secrets.token_hex(3)
