"""Writes a study for TensorBoard: the metrics of each trial as scalars, and its config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from siftune.record.history import Epoch, History
from siftune.record.journal import STATES, Trial


def writer(directory: Path, *, follow: bool) -> Callable[[History], list[Path]]:
    """Returns a function that writes what is new in a history to `tensorboard`, a directory with
    one run for each trial, and returns its path.

    A run has each number among the metrics as a scalar by epoch. When the trial has ended, it gets
    its config and the metric of its best epoch, for the tab HPARAMS. Earlier event files of these
    trials are removed. `follow`: the function will be called again.
    """
    return _Runs(directory / "tensorboard", follow=follow).write


class _Runs:
    def __init__(self, directory: Path, *, follow: bool) -> None:
        self._directory = directory
        self._follow = follow
        self._epochs = 0  # written so far
        self._open: dict[str, SummaryWriter] = {}
        self._closed: set[str] = set()

    def write(self, history: History) -> list[Path]:
        self._directory.mkdir(exist_ok=True)
        for epoch in history.epochs[self._epochs :]:
            self._add(epoch)
        self._epochs = len(history.epochs)
        for name, trial in history.trials.items():
            if trial.state in STATES and name not in self._closed:
                self._end(history, trial)
        for run in self._open.values():
            run.flush()
        if not self._follow:
            self._close(*self._open)
        return [self._directory]

    def _add(self, epoch: Epoch) -> None:
        run = self._run(epoch.trial)
        for name, value in epoch.metrics.items():
            if isinstance(value, int | float):
                run.add_scalar(name, value, epoch.epoch, walltime=epoch.end)

    def _end(self, history: History, trial: Trial) -> None:
        config = {name: _hparam(v) for name, v in history.study.space.active(trial.config).items()}
        top = history.tops.get(trial.trial)
        best = {f"best/{history.study.metric}": top.value} if top else {}
        run = self._run(trial.trial)
        # `add_hparams` would write a file of its own, with the name of this one.
        for part in hparams(config, best):
            run.file_writer.add_summary(part)
        for name, value in best.items():
            run.add_scalar(name, value, top and top.epoch, walltime=history.heard[trial.trial])
        self._close(trial.trial)

    def _run(self, trial: str) -> SummaryWriter:
        if trial not in self._open:
            directory = self._directory / trial
            if trial not in self._closed:
                for earlier in directory.glob("events.out.tfevents.*"):
                    earlier.unlink()
            self._open[trial] = SummaryWriter(str(directory))
        return self._open[trial]

    def _close(self, *trials: str) -> None:
        for trial in trials:
            self._open.pop(trial).close()
            self._closed.add(trial)


def _hparam(value: Any) -> bool | float | str:
    """Returns a value as TensorBoard knows them. Anything but a number or a text becomes JSON."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
