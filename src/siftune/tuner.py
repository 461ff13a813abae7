"""Study → Ray Tune → result; a new study, or one that was interrupted.

Ray Tune places, runs, checkpoints and reuses processes. It is told what to run by three small
adapters of its extension points (SearchAlgorithm, TrialScheduler, Callback) around one Progress,
which decides; none of Ray's own state outlives the process. An interrupted study starts a fresh
Ray Tune run with the trials that were under way, each from its last checkpoint.
"""

import contextlib
import copy
import functools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.constants import TIMESTAMP
from ray.train._internal.session import _TrainingResult
from ray.train.constants import CHECKPOINT_DIR_NAME
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.result import RESULT_DUPLICATE, SHOULD_CHECKPOINT
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.trainable.function_trainable import FunctionTrainable, wrap_function

from siftune.journal import Trial
from siftune.progress import Progress
from siftune.schedulers.base import Clone, Decision, Resume, Stop
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
) -> None:
    """Runs the study's trials until all are done or `stop()` is true. Ray must be connected.

    `directory` is the study directory; `progress` may have replayed an interrupted study.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(progress.slots)
    link = _Link(study, progress, directory)
    (directory / "checkpoints").mkdir(exist_ok=True)
    # tune.run, not Tuner: the latter pickles searcher, scheduler and callbacks to disk.
    tune.run(
        _ray_trainable(trainable),
        name="ray",
        storage_path=str(directory),
        search_alg=_Proposals(link),
        scheduler=_Decisions(link),
        callbacks=[_Endings(link)],
        stop=_Stop(stop),
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=1,  # the best; Ray keeps the latest besides
            checkpoint_score_attribute=study.metric,
            checkpoint_score_order=study.mode,
        ),
        reuse_actors=True,
        raise_on_failed_trial=False,
        verbose=0,
    )


def _ray_trainable(trainable: Trainable) -> type[FunctionTrainable]:
    """The trainable as Ray's class, whose results say which metrics are the user's, and where."""

    def train(config: dict[str, Any]) -> None:
        trainable.train(config)

    class Reporting(wrap_function(train)):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            result: dict[str, Any] = super().step()
            if RESULT_DUPLICATE not in result:
                metrics = {k: _plain(v) for k, v in result.items() if k not in _RAY_METRICS}
                result[_REPORT] = _Report(metrics, *_whereabouts())
            return result

    return Reporting


_REPORT = "siftune_report"
_RAY_METRICS = {CHECKPOINT_DIR_NAME, SHOULD_CHECKPOINT, TIMESTAMP}  # Ray's own, among the user's


@dataclass(frozen=True, slots=True)
class _Report:
    """What one epoch reported, apart from what Ray adds to it."""

    metrics: dict[str, Any]
    node: str
    gpu: str | None


@functools.cache
def _whereabouts() -> tuple[str, str | None]:
    """This process's node, and the numbers of its GPUs."""
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return os.uname().nodename, ",".join(gpus) or None


def _plain(value: Any) -> Any:
    """A metric as JSON can hold it: numbers of numpy and torch become Python's, the rest text."""
    with contextlib.suppress(AttributeError, ValueError, RuntimeError):
        value = value.item()
    return value if isinstance(value, int | float | str | bool | None) else str(value)


@dataclass(slots=True)
class _Link:
    """What the three adapters share: the study in progress and Ray's trials by name."""

    study: Study
    progress: Progress
    directory: Path
    ray_trials: dict[str, RayTrial] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)  # last epoch of each trial in this run
    epoch_of: dict[str, int] = field(default_factory=dict)  # checkpoint directory → its epoch
    occupied: set[str] = field(default_factory=set)  # trials that hold a slot or wait for one

    def resources(self) -> dict[str, float]:
        """What Ray is to set aside for a trial."""
        gpus = self.study.gpus_per_trial
        return {"CPU": self.study.cpus_per_trial} | ({"GPU": gpus} if gpus else {})

    def free(self) -> bool:
        return len(self.occupied) < self.progress.slots

    def checkpoint(self, trial: Trial, *, until: int | None = None) -> tuple[int, Path] | None:
        """Epoch and directory of the trial's latest checkpoint that is still there.

        `until`: of those up to this epoch.
        """
        for epoch in sorted(trial.checkpoints, reverse=True):
            path = self.directory / trial.checkpoints[epoch]
            if (until is None or epoch <= until) and path.is_dir():
                return epoch, path
        return None


class _Unsaved:
    """Ray Tune pickles its extensions into snapshots that nobody reads: give it nothing."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class _Proposals(_Unsaved, SearchAlgorithm):
    """New trials, as slots become free; before them, those that were interrupted."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._experiment: Any = None
        progress = link.progress
        for name in progress.overdue():
            progress.end(name, "pruned")
        self._interrupted = progress.unfinished()

    @property
    def total_samples(self) -> int:
        return self._link.study.trials or 0

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    def is_finished(self) -> bool:
        return self._finished or (not self._interrupted and self._link.progress.all_begun)

    def next_trial(self) -> RayTrial | None:
        link = self._link
        if self._finished:
            return None
        if self._interrupted:
            trial = link.progress.trials[self._interrupted[0]]
            waits = link.progress.paused(trial.trial)
            if not waits and not link.free():
                return None
            self._interrupted.pop(0)
            return self._again(trial, waits=waits)
        new = link.progress.begin() if link.free() else None
        return self._ray_trial(new) if new else None

    def _again(self, trial: Trial, *, waits: bool) -> RayTrial:
        """An interrupted trial, from its last checkpoint; `waits`: for an order to go on."""
        ray_trial = self._ray_trial(trial)
        found = self._link.checkpoint(trial)
        if found:
            epoch, path = found
            self._link.epoch_of[str(path)] = epoch
            kept = _TrainingResult(tune.Checkpoint(str(path)), dict(trial.epochs[epoch]))
            assert ray_trial.run_metadata.checkpoint_manager is not None
            ray_trial.run_metadata.checkpoint_manager.register_checkpoint(kept)
        assert ray_trial.storage is not None
        ray_trial.storage.current_checkpoint_index = _last_index(self._link.directory, trial.trial)
        if waits:
            ray_trial.set_status(RayTrial.PAUSED)
            self._link.occupied.discard(trial.trial)
        else:
            self._link.progress.restart(trial.trial, found[0] if found else 0)
        return ray_trial

    def _ray_trial(self, trial: Trial) -> RayTrial:
        # Weights lie apart from Ray's own files, one directory a trial.
        storage = copy.copy(self._experiment.storage)
        storage.experiment_dir_name = "checkpoints"
        storage._create_validation_file()
        ray_trial = RayTrial(
            self._experiment.run_identifier,
            config=dict(trial.config),
            trial_id=trial.trial,
            storage=storage,
            checkpoint_config=self._experiment.checkpoint_config,
            placement_group_factory=tune.PlacementGroupFactory([self._link.resources()]),
            trial_dirname_creator=lambda ray_trial: ray_trial.trial_id,
        )
        self._link.ray_trials[trial.trial] = ray_trial
        self._link.occupied.add(trial.trial)
        return ray_trial


class _Decisions(_Unsaved, TrialScheduler):
    """Every report goes to the Progress, and its decision to Ray."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_complete(self, tune_controller: Any, trial: RayTrial, result: Any) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: RayTrial) -> None: ...

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict) -> str:
        link, name = self._link, trial.trial_id
        report: _Report = result[_REPORT]
        epoch = link.epochs[name] = link.epochs.get(name, 0) + 1
        saved = result.get(CHECKPOINT_DIR_NAME)
        checkpoint = f"checkpoints/{name}/{saved}" if saved else None
        if checkpoint:
            link.epoch_of[str(link.directory / checkpoint)] = epoch
        decision = link.progress.report(
            name,
            epoch,
            report.metrics,
            seconds=result["time_this_iter_s"],
            node=report.node,
            gpu=report.gpu,
            checkpoint=checkpoint,
        )
        if decision is not Decision.CONTINUE:
            link.occupied.discard(name)
        return _RAY_DECISIONS[decision]

    def choose_trial_to_run(self, tune_controller: Any) -> RayTrial | None:
        link = self._link
        idle = not link.occupied and link.progress.all_begun
        for order in link.progress.orders(idle=idle):
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
                if isinstance(order, Clone):
                    self._clone(order, trial)
                else:
                    assert isinstance(order, Resume)
                link.occupied.add(order.trial)
                return trial
        return None

    def _clone(self, order: Clone, trial: RayTrial) -> None:
        """Gives the trial the donor's config, mutated, and a copy of the donor's checkpoint."""
        link = self._link
        paused_at = link.progress.trials[order.trial].epoch
        found = link.checkpoint(link.progress.trials[order.donor], until=paused_at)
        epoch = 0
        if found:
            epoch, source = found
            index = _last_index(link.directory, order.trial) + 1
            target = link.directory / "checkpoints" / order.trial / f"checkpoint_{index:06d}"
            # A copy, because Ray deletes checkpoints that it counts as this trial's old ones.
            shutil.copytree(source, target)
            link.epoch_of[str(target)] = epoch
            metrics = dict(link.progress.trials[order.donor].epochs[epoch])
            trial.on_checkpoint(_TrainingResult(tune.Checkpoint(str(target)), metrics))
            assert trial.storage is not None
            trial.storage.current_checkpoint_index = index
        trial.set_config(dict(order.config))
        link.progress.restart(order.trial, epoch, donor=order.donor, config=order.config)

    def debug_string(self) -> str:
        return ""


class _Endings(_Unsaved, Callback):
    """Starts, ends and failures of Ray's trials."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def on_trial_start(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        latest = trial.latest_checkpoint_result
        path = latest.checkpoint.path if latest and latest.checkpoint else ""
        self._link.epochs[trial.trial_id] = self._link.epoch_of.get(path, 0)

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._link.progress.end(trial.trial_id, "completed")
        self._link.occupied.discard(trial.trial_id)

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._link.progress.end(trial.trial_id, "failed", _traceback(trial))
        self._link.occupied.discard(trial.trial_id)


class _Stop(_Unsaved, tune.Stopper):
    """Ends the run when the study is to stop; trials under way stay unfinished."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()


def _traceback(trial: RayTrial) -> str:
    """The error of a failed trial, from the user's own lines on."""
    path = trial.error_file
    text = Path(path).read_text().strip() if path and Path(path).exists() else "unknown error"
    inside = f'{os.sep}siftune{os.sep}trainables{os.sep}__init__.py"'
    lines = text.splitlines()
    last = max((i for i, line in enumerate(lines) if inside in line), default=None)
    if last is None:
        return text
    return "\n".join(["Traceback (most recent call last):", *lines[last + 2 :]])


def _last_index(directory: Path, trial: str) -> int:
    """Number of the trial's newest checkpoint directory, -1 without one."""
    found = (directory / "checkpoints" / trial).glob("checkpoint_*")
    return max((int(path.name.rpartition("_")[2]) for path in found), default=-1)
