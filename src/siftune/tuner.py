"""Study → Ray Tune → result; a new study, or one that was interrupted.

Ray Tune places, runs, checkpoints and reuses processes. It is told what to run by three small
adapters of its extension points (SearchAlgorithm, TrialScheduler, Callback) around one Progress,
which decides; none of Ray's own state outlives the process. An interrupted study starts a fresh
Ray Tune run with the trials that were under way, each from its last checkpoint; a trial that is
tried again takes the same path, as a new trial of Ray's under the old name.
"""

import contextlib
import copy
import itertools
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.constants import TIMESTAMP
from ray.air.execution import (
    AcquiredResources,
    FixedResourceManager,
    ResourceManager,
    ResourceRequest,
)
from ray.air.execution.resources.fixed import FixedAcquiredResources
from ray.train._internal.session import _TrainingResult
from ray.train.constants import CHECKPOINT_DIR_NAME
from ray.tune.callback import Callback
from ray.tune.error import TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.experiment import Trial as RayTrial
from ray.tune.experiment.trial import _TrialInfo
from ray.tune.result import RESULT_DUPLICATE, SHOULD_CHECKPOINT, TRIAL_INFO
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.trainable.function_trainable import FunctionTrainable, wrap_function

from siftune import cluster, failures, gpu_memory, memory, zygote
from siftune.failures import Cause
from siftune.journal import TRIED_AGAIN, Trial
from siftune.metrics import recordable
from siftune.packing import Packing, fitting
from siftune.progress import Progress
from siftune.schedulers.base import Clone, Decision, Stop
from siftune.shared_gpus import Placed, SharedGpus
from siftune.study import Study
from siftune.trainables import Trainable

_RAY_DECISIONS = {
    Decision.CONTINUE: TrialScheduler.CONTINUE,
    Decision.STOP: TrialScheduler.STOP,
    Decision.PAUSE: TrialScheduler.PAUSE,
}


def run(
    study: Study,
    trainable: Trainable,
    progress: Progress,
    directory: Path,
    *,
    stop: Callable[[], bool],
    packing: Packing | None = None,
    say: Callable[[str], None] = print,
) -> str | None:
    """Runs the study's trials until all are done or `stop()` is true. Ray must be connected.

    `directory` is the study directory; `progress` may have replayed an interrupted study; `packing`
    is given where trials share GPUs as memory allows, and `say` told what becomes known of it. The
    answer is why it could not go on, if that is so: nothing can be saved any more.
    """
    # Slots may be added while it runs: _Link.free() bounds what is started, not Ray.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"
    reporting = _ray_trainable(
        trainable, shared=0 < (study.gpus_per_trial or 0) < 1, measured=packing is not None
    )
    gpus = SharedGpus(packing, cpus_per_trial=study.cpus_per_trial) if packing else None
    link = _Link(study, progress, directory, reporting, packing, gpus, say)
    if gpus:
        gpus.begin()
    (directory / "checkpoints").mkdir(exist_ok=True)
    experiment = Experiment("ray", reporting, storage_path=str(directory))
    controller = _Controller(link, experiment, stop)
    try:
        while not controller.is_finished():
            controller.step()
            if link.raised:
                raise link.raised
    except TuneError as error:  # Ray's, about what was raised in one of ours
        raise (error.__context__ or error) from None
    finally:
        controller.cleanup()
        if gpus:
            gpus.clear()
    return link.stopped_by


class _Controller(TuneController):
    """Ray Tune's loop, with the adapters in it.

    Not `tune.run`: it writes snapshots of all trials, which nobody reads, and has each trial wait
    for a placement group, in which a process is started only to see that it is there.
    """

    def __init__(self, link: "_Link", experiment: Experiment, stop: Callable[[], bool]) -> None:
        proposals = _Proposals(link, experiment)
        super().__init__(
            search_alg=proposals,
            scheduler=_Decisions(link),
            callbacks=[_Endings(link)],
            stopper=_Stop(link, stop),
            storage=experiment.storage,
            reuse_actors=True,
            resource_manager_factory=link.resource_manager,
        )
        self._link = link
        self._class_cache: Any = _Actors()
        self._begun: RayTrial | None = None
        self._warm = 0  # processes that are kept for paused trials

    def step(self) -> None:
        if self._link.gpus:
            self._link.gpus.refresh()
        super().step()

    def _actor_started(self, tracked_actor: Any, log: str = "STARTED") -> None:
        if log == "STARTED":  # else it was warm, and told before
            self._bound(self._actor_to_trial[tracked_actor])
        super()._actor_started(tracked_actor, log)

    def _bound(self, trial: RayTrial) -> None:
        """Tells the process that a trial is to begin in what it may take of its GPU."""
        packing = self._link.packing
        if packing and (process := self._process(trial)) is not None:
            self._link.process_of[_name(trial)] = process
            words = packing.limit_mib(process), packing.usable_mib, packing.most
            alone = self._link.progress.trials[_name(trial)].cramped
            self._schedule_trial_task(trial, "bound", args=(*words, alone))

    def _process(self, trial: RayTrial) -> int | None:
        """The number of the trial's process, where trials share GPUs."""
        actor = self._trial_to_actor.get(trial)
        placed = actor and self._actor_manager.get_actor_resources(actor)
        return placed.process if isinstance(placed, Placed) else None

    def _maybe_add_actors(self) -> None:
        """All trials that are to go on, at once: Ray Tune's takes one a step, each of which waits
        for something to happen."""
        before = -1
        while before < len(self._link.occupied):
            before = len(self._link.occupied)
            super()._maybe_add_actors()

    def _maybe_cache_trial_actor(self, trial: RayTrial) -> bool:
        packing = self._link.packing
        if packing and (process := self._process(trial)) is not None and not packing.keeps(process):
            return False
        self._keep_warm()
        kept: bool = super()._maybe_cache_trial_actor(trial)
        return kept

    def _cleanup_cached_actors(self, force_all: bool = False) -> None:
        self._keep_warm()
        super()._cleanup_cached_actors(force_all)

    def _keep_warm(self) -> None:
        """Paused trials find processes when they go on: Ray Tune by itself would keep one."""
        wanted = self._link.paused
        if (gpus := self._link.gpus) and gpus.alone_wanted:
            wanted = 0  # they are in its way
        self._actor_cache.increase_max(self._link.resources, wanted - self._warm)
        self._warm = wanted

    def _schedule_trial_reset(self, trial: RayTrial, new_config: Any, tag: str) -> None:
        """One call for a trial's start in a warm process and its first epoch, not two."""
        self._bound(trial)
        if trial.latest_checkpoint_result:
            super()._schedule_trial_reset(trial, new_config, tag)
            return
        trial.set_experiment_tag(tag)
        trial.set_config(new_config)
        self._resetting_trials.add(trial)
        self._callbacks.on_trial_start(iteration=self._iteration, trials=self._trials, trial=trial)
        self._schedule_trial_task(
            trial=trial,
            method_name="begin",
            args=(dict(new_config) | {TRIAL_INFO: _TrialInfo(trial)}, trial.storage),
            on_result=self._on_first_result,
            on_error=self._trial_task_failure,
        )

    def _on_first_result(self, trial: RayTrial, result: dict[str, Any]) -> None:
        self._begun = trial
        self._on_trial_reset(trial, success=True)
        self._on_training_result(trial, result)

    def _schedule_trial_train(self, trial: RayTrial) -> None:
        if trial is self._begun:
            self._begun = None
        else:
            super()._schedule_trial_train(trial)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing: the journal is written already."""


class _Unlimited(FixedResourceManager):
    """_Link.free() bounds what is started, and Ray itself places it: there is nothing to count."""

    def __init__(self) -> None:
        super().__init__({"CPU": math.inf})

    def request_resources(self, resource_request: ResourceRequest) -> None: ...

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None: ...

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        return True

    def acquire_resources(self, resource_request: ResourceRequest) -> AcquiredResources:
        return FixedAcquiredResources(
            bundles=resource_request.bundles, resource_request=resource_request
        )

    def free_resources(self, acquired_resource: AcquiredResources) -> None: ...


class _Actors:
    """Trainables as Ray's actors. Ray Tune's have a runtime environment, and wait for their node's
    agent to make it; what is in it, siftune's nodes have in their own environment."""

    def __init__(self) -> None:
        self._made: dict[type, Any] = {}

    def get(self, trainable: type) -> Any:
        if trainable not in self._made:
            self._made[trainable] = ray.remote(trainable)
        return self._made[trainable]


def _ray_trainable(
    trainable: Trainable, *, shared: bool, measured: bool
) -> type[FunctionTrainable]:
    """The trainable as Ray's class, whose results say which metrics are the user's, and where.

    `shared`: whether several trials share a GPU; `measured`: as its memory allows.
    """

    def train(config: dict[str, Any]) -> None:
        trainable.train(config)

    class Reporting(wrap_function(train)):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            zygote.take_threads()
            if not shared:
                cluster.without_mps()
            super().setup(config)

        def bound(self, limit_mib: float | None, usable_mib: float, most: int, alone: bool) -> None:
            self._part = None if limit_mib is not None or alone else (usable_mib, most)
            gpu_memory.limit(limit_mib)

        def step(self) -> dict[str, Any]:
            result = recordable(super().step())  # or Ray's own messages fail
            if RESULT_DUPLICATE not in result:
                metrics = {k: _plain(v) for k, v in result.items() if k not in _RAY_METRICS}
                mib = gpu_memory.taken_mib() if measured else None
                result[_REPORT] = _Report(metrics, *trainable.whereabouts(), mib)
                if mib and self._part:
                    # It had all of the GPU; from here on others come, each to its part.
                    usable_mib, most = self._part
                    gpu_memory.limit(usable_mib / fitting(usable_mib, mib, most))
                    self._part = None
            return result

        def begin(self, config: dict[str, Any], storage: Any) -> dict[str, Any]:
            self.reset(config, storage=storage)
            result: dict[str, Any] = self.train()
            return result

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            # Raised and not answered with False, upon which Ray Tune loses the trial.
            memory.check()
            reset: bool = super().reset_config(new_config)
            if not reset:
                raise failures.Unfit("the trial before it does not end")
            if measured:
                gpu_memory.forget()
            return reset

    return Reporting


_REPORT = "siftune_report"
_RAY_METRICS = {CHECKPOINT_DIR_NAME, SHOULD_CHECKPOINT, TIMESTAMP}  # Ray's own, among the user's


@dataclass(frozen=True, slots=True)
class _Report:
    """What one epoch reported, apart from what Ray adds to it."""

    metrics: dict[str, Any]
    node: str
    gpu: str | None
    gpu_mib: int | None  # what the trial took so far, where it shares a GPU


def _plain(value: Any) -> Any:
    """A metric as JSON can hold it: numbers of numpy and torch become Python's, the rest text."""
    with contextlib.suppress(AttributeError, ValueError, RuntimeError):
        value = value.item()
    return value if isinstance(value, int | float | str | bool | None) else str(value)


@dataclass
class _Link:
    """What the three adapters share: the study in progress and Ray's trials by name."""

    study: Study
    progress: Progress
    directory: Path
    trainable: type[FunctionTrainable]
    packing: Packing | None = None
    gpus: SharedGpus | None = None
    say: Callable[[str], None] = print
    process_of: dict[str, int] = field(default_factory=dict)  # of trials that share GPUs
    ray_trials: dict[str, "_RayTrial"] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)  # last epoch of each trial in this run
    epoch_of: dict[str, int] = field(default_factory=dict)  # checkpoint directory → its epoch
    occupied: set[str] = field(default_factory=set)  # trials that hold a slot or wait for one
    again: list[tuple[str, Cause | None]] = field(default_factory=list)  # to be started once more
    heard: dict[str, float] = field(default_factory=dict)  # last sign of life of running trials
    hung: set[str] = field(default_factory=set)  # killed since nothing was heard of them
    restored: dict[str, int] = field(default_factory=dict)  # epoch that a trial went on from
    longest_s: float = 0.0  # epoch of the study so far
    unsaved: bool = False  # it was said that trials pause without a checkpoint
    stopped_by: str | None = None
    raised: Exception | None = None  # that the study is to end with

    @property
    def processes(self) -> int:
        """Of a trial."""
        return max(1, int(self.study.gpus_per_trial or 0))

    @property
    def resource_manager(self) -> Callable[[], ResourceManager] | None:
        if (gpus := self.gpus) is not None:
            return lambda: gpus
        # Of several processes all are placed, or none.
        return None if self.processes > 1 else _Unlimited

    @cached_property
    def resources(self) -> tune.PlacementGroupFactory:
        """What Ray is to set aside for a trial: on one node, where one has as much."""
        if self.gpus:
            return self.gpus.shared
        count = self.processes
        gpus = (self.study.gpus_per_trial or 0) / count
        each = {"CPU": self.study.cpus_per_trial / count} | ({"GPU": gpus} if gpus else {})
        return tune.PlacementGroupFactory([each] * count, strategy="PACK")

    @property
    def paused(self) -> int:
        """How many trials wait for an order of the scheduler's."""
        return max(0, self.progress.under_way - len(self.occupied))

    def free(self) -> bool:
        slots = self.progress.slots
        return len(self.occupied) < (min(slots, self.packing.slots) if self.packing else slots)

    def patience_s(self) -> float:
        """How long a running trial may be silent."""
        if self.study.report_timeout_s is not None:
            return self.study.report_timeout_s
        # Configs differ in how long they take, but seldom tenfold.
        return max(_LEAST_PATIENCE_S, 10 * self.longest_s) if self.longest_s else math.inf

    def release(self, name: str) -> None:
        """The trial neither holds a slot nor waits for one."""
        self.occupied.discard(name)
        self.heard.pop(name, None)

    def checkpoint(self, trial: Trial, *, until: int | None = None) -> tuple[int, Path] | None:
        """Epoch and directory of the trial's latest checkpoint that is still there.

        `until`: of those up to this epoch.
        """
        for epoch in sorted(trial.checkpoints, reverse=True):
            path = self.directory / trial.checkpoints[epoch]
            if (until is None or epoch <= until) and path.is_dir():
                return epoch, path
        return None


_LEAST_PATIENCE_S = 600.0


class _RayTrial(RayTrial):
    """Ray's trial of one attempt. It remembers what it failed of."""

    failure: Exception | None = None

    def __init__(self, trainable: type[FunctionTrainable], *words: Any, **more: Any) -> None:
        # A stub does not look its trainable up in Ray's key-value store, three times a trial.
        super().__init__(*words, stub=True, **more)
        self.trainable = trainable

    def get_trainable_cls(self) -> type[FunctionTrainable]:
        return self.trainable

    def init_local_path(self) -> None:
        """Nothing: in a directory on the driver's side there would be no file."""

    def set_ray_actor(self, ray_actor: Any) -> None:
        # Ray Tune's asks the actor, twice a trial, for what takes the place of a first result.
        self.temporary_state.ray_actor = ray_actor

    def should_recover(self) -> bool:
        return False  # else Ray Tune would, by itself and unrecorded, where a node left in order

    def handle_error(self, exc: Any = None) -> None:
        self.failure = exc  # Ray Tune's own would write it to a file, and count it


def _name(trial: RayTrial) -> str:
    """Which trial this is an attempt of."""
    return trial.trial_id.partition("-")[0]


class _Proposals(SearchAlgorithm):
    """New trials, as slots become free; before them, those that were interrupted."""

    def __init__(self, link: _Link, experiment: Experiment) -> None:
        self._link = link
        self._trainable = experiment.run_identifier
        # Weights lie apart from Ray's own files, one directory a trial.
        self._storage: Any = copy.copy(experiment.storage)
        self._storage.experiment_dir_name = "checkpoints"
        self._storage._create_validation_file()
        self._made = 0
        progress = link.progress
        for name in progress.overdue():
            progress.end(name, "pruned")
        link.again = [(name, None) for name in progress.unfinished()]

    @property
    def total_samples(self) -> int:
        return self._link.study.trials or 0

    def is_finished(self) -> bool:
        link = self._link
        # While trials are paused Ray Tune is to keep processes.
        return self._finished or (not link.again and not link.paused and link.progress.all_begun)

    def next_trial(self) -> RayTrial | None:
        link = self._link
        if self._finished:
            return None
        if link.gpus:
            link.gpus.refresh()  # where there is no slot, Ray Tune asks again and does nothing else
        if link.again:
            name, cause = link.again[0]
            waits = cause is None and link.progress.paused(name)
            if not waits and not link.free():
                return None
            link.again.pop(0)
            return self._again(link.progress.trials[name], cause, waits=waits)
        new = link.progress.begin() if link.free() else None
        return self._ray_trial(new) if new else None

    def _again(self, trial: Trial, cause: Cause | None, *, waits: bool) -> RayTrial:
        """A trial from its last checkpoint, after an interruption of the study if there is no
        cause; `waits`: for an order to go on."""
        ray_trial = self._ray_trial(trial)
        found = self._link.checkpoint(trial)
        if found:
            epoch, path = found
            self._link.epoch_of[str(path)] = epoch
            kept = _TrainingResult(tune.Checkpoint(str(path)), dict(trial.epochs[epoch]))
            assert ray_trial.run_metadata.checkpoint_manager is not None
            ray_trial.run_metadata.checkpoint_manager.register_checkpoint(kept)
        assert ray_trial.storage is not None
        # One is left out: the process of a driver that was killed may be about to write it.
        last = _last_index(self._link.directory, trial.trial)
        ray_trial.storage.current_checkpoint_index = last + 1
        if waits:
            ray_trial.set_status(RayTrial.PAUSED)
            self._link.release(trial.trial)
        elif cause is None:
            self._link.progress.restart(trial.trial, found[0] if found else 0)
        return ray_trial

    def _ray_trial(self, trial: Trial) -> _RayTrial:
        self._made += 1
        gpus = self._link.gpus
        ray_trial = _RayTrial(
            self._link.trainable,
            self._trainable,
            config=dict(trial.config),
            trial_id=f"{trial.trial}-{self._made}",  # Ray takes trials of one id for one
            storage=self._storage,
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1,  # the best; Ray keeps the latest besides
                checkpoint_score_attribute=self._link.study.metric,
                checkpoint_score_order=self._link.study.mode,
            ),
            placement_group_factory=gpus.alone if gpus and trial.cramped else self._link.resources,
        )
        # Said here, or Ray takes another name where one of the same is there already: an earlier
        # attempt's. The journal and the next driver look for the checkpoints under this one.
        ray_trial.relative_logdir = trial.trial  # type: ignore[assignment]
        assert ray_trial.storage is not None
        ray_trial.storage.trial_dir_name = trial.trial
        self._link.ray_trials[trial.trial] = ray_trial
        self._link.occupied.add(trial.trial)
        return ray_trial


class _Decisions(TrialScheduler):
    """Every report goes to the Progress, and its decision to Ray."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_complete(self, tune_controller: Any, trial: RayTrial, result: Any) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict) -> str:
        link, name = self._link, _name(trial)
        report: _Report = result[_REPORT]
        epoch = link.epochs[name] = link.epochs.get(name, 0) + 1
        link.heard[name] = time.monotonic()
        link.longest_s = max(link.longest_s, result["time_this_iter_s"])
        saved = result.get(CHECKPOINT_DIR_NAME)
        checkpoint = f"checkpoints/{name}/{saved}" if saved else None
        if checkpoint:
            link.epoch_of[str(link.directory / checkpoint)] = epoch
        if link.packing and (process := link.process_of.get(name)) is not None:
            alone = link.progress.trials[name].cramped
            if news := link.packing.report(process, report.gpu_mib, alone=alone):
                link.say(news)
        decision = link.progress.report(
            name,
            epoch,
            report.metrics,
            seconds=result["time_this_iter_s"],
            node=report.node,
            gpu=report.gpu,
            gpu_mib=report.gpu_mib,
            checkpoint=checkpoint,
        )
        if decision is not Decision.CONTINUE:
            link.release(name)
        if decision is Decision.PAUSE and not checkpoint and not link.unsaved:
            link.unsaved = True
            link.say(
                f"trial {name} pauses and has saved nothing: trials train all their epochs again "
                "when they go on, and clones have none of their donor's weights; give checkpoint= "
                "to tune.report, or take --scheduler asha"
            )
        return _RAY_DECISIONS[decision]

    def choose_trial_to_run(self, tune_controller: Any) -> RayTrial | None:
        link = self._link
        idle = not link.occupied and link.progress.all_begun
        for order in link.progress.orders(idle=idle):
            if order.trial in link.occupied:
                continue  # it is carried out, and stands until the trial reports
            trial = link.ray_trials.get(order.trial)
            if trial is None or trial.status != RayTrial.PAUSED:
                # Still on its way to the pause, or not yet taken up again. A clone comes before
                # its donor goes on, while the donor's checkpoint is surely there.
                if isinstance(order, Clone):
                    return None
                continue
            if isinstance(order, Stop):
                link.progress.end(order.trial, "pruned")
                tune_controller.stop_trial(trial)
            elif link.free():
                if isinstance(order, Clone) and not self._cloned(order.trial):
                    self._clone(order, trial)
                link.occupied.add(order.trial)
                return trial
        return None

    def _cloned(self, trial: str) -> bool:
        """Whether it is what the order makes of it: since before an interruption of the study."""
        copy = self._link.progress.trials[trial].clone
        return copy is not None and (self._link.directory / copy).is_dir()

    def _clone(self, order: Clone, trial: RayTrial) -> None:
        """Gives the trial the donor's config, mutated, and a copy of the donor's checkpoint."""
        link = self._link
        paused_at = link.progress.trials[order.trial].epoch
        found = link.checkpoint(link.progress.trials[order.donor], until=paused_at)
        epoch, checkpoint = 0, None
        if found:
            epoch, source = found
            index = _last_index(link.directory, order.trial) + 1
            checkpoint = f"checkpoints/{order.trial}/checkpoint_{index:06d}"
            target = link.directory / checkpoint
            # A copy, because Ray deletes checkpoints that it counts as this trial's old ones.
            shutil.copytree(source, target)
            link.epoch_of[str(target)] = epoch
            metrics = dict(link.progress.trials[order.donor].epochs[epoch])
            trial.on_checkpoint(_TrainingResult(tune.Checkpoint(str(target)), metrics))
            assert trial.storage is not None
            trial.storage.current_checkpoint_index = index
        trial.set_config(dict(order.config))
        link.progress.clone(
            order.trial, epoch, donor=order.donor, config=order.config, checkpoint=checkpoint
        )

    def debug_string(self) -> str:
        return ""


class _Endings(Callback):
    """Starts, ends and failures of Ray's trials."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def on_trial_start(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        latest = trial.latest_checkpoint_result
        path = latest.checkpoint.path if latest and latest.checkpoint else ""
        epoch = self._link.epoch_of.get(path, 0)
        name = _name(trial)
        self._link.epochs[name] = self._link.restored[name] = epoch
        self._link.heard[name] = time.monotonic()

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        try:
            self._link.progress.end(_name(trial), "completed")
        except Exception as error:  # Ray Tune would print it, and go on
            self._link.raised = error
        self._link.release(_name(trial))

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        link, name = self._link, _name(trial)
        link.release(name)
        if name not in link.progress.unfinished():
            return
        failure = trial.failure if isinstance(trial, _RayTrial) else None
        cause = Cause.HANG if name in link.hung else failures.cause(failure)
        if cause is Cause.ERROR and link.epochs.get(name, 0) == link.restored.get(name, 0) > 0:
            cause = Cause.CHECKPOINT  # of before a power cut, perhaps: the one before it will do
        link.hung.discard(name)
        record = link.progress.trials[name]
        error = (
            _traceback(str(failure))
            if cause in (Cause.ERROR, Cause.MEMORY, Cause.CHECKPOINT)
            else failures.sentence(cause, failure, hang_s=link.patience_s())
        )
        if cause is Cause.STORAGE:
            # It would be the same for every trial: this one goes on when there is room again.
            link.stopped_by = f"trial {name} cannot save: {error.splitlines()[-1]}"
        elif cause is Cause.ERROR or (
            cause in TRIED_AGAIN and record.retries >= link.study.retries
        ):
            link.progress.end(name, "failed", error)
        else:
            if cause is not Cause.REPLACED:
                below = link.restored[name] - 1 if cause is Cause.CHECKPOINT else None
                found = link.checkpoint(record, until=below)
                link.progress.restart(name, found[0] if found else 0, cause=cause, error=error)
            link.again.append((name, cause))


class _Stop(tune.Stopper):
    """Looks after the run at each of its steps: trials that hang, and when the study is to stop.

    Trials under way stay unfinished.
    """

    def __init__(self, link: _Link, stop: Callable[[], bool]) -> None:
        self._link = link
        self._stop = stop

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._end_hanging()
        return self._stop() or self._link.stopped_by is not None

    def _end_hanging(self) -> None:
        link, now = self._link, time.monotonic()
        patience_s = link.patience_s()
        for name, heard in link.heard.items():
            if now - heard > patience_s and name not in link.hung:
                link.hung.add(name)
                if actor := link.ray_trials[name].temporary_state.ray_actor:
                    ray.kill(actor)


def _traceback(text: str) -> str:
    """The error of a failed trial, from the user's own lines on."""
    text = _COLOURS.sub("", text).strip()
    inside = f'{os.sep}siftune{os.sep}trainables{os.sep}__init__.py"'
    lines = text.splitlines()
    last = max((i for i, line in enumerate(lines) if inside in line), default=None)
    if last is None:
        return text
    left = itertools.dropwhile(lambda line: not line.strip(" ^"), lines[last + 2 :])
    return "\n".join(["Traceback (most recent call last):", *left])


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _last_index(directory: Path, trial: str) -> int:
    """Number of the trial's newest checkpoint directory, -1 without one."""
    found = (directory / "checkpoints" / trial).glob("checkpoint_*")
    return max((int(path.name.rpartition("_")[2]) for path in found), default=-1)
