"""The history of a study, read from its directory: the data of `report` and `status`.

The study may be running, ended or killed. Neither Ray, nor torch, nor a searcher is imported, so
reading is fast on any machine.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.record import journal, lease
from siftune.record.journal import STATES, Trial
from siftune.record.lease import Life, Seen
from siftune.record.wording import duration
from siftune.space import Config
from siftune.study.reading import read_saved
from siftune.study.study import Study


@dataclass(frozen=True, slots=True)
class Epoch:
    """One trained epoch. An epoch that was trained again after a restart appears twice."""

    trial: str
    epoch: int
    value: float  # the metric of the study
    metrics: dict[str, Any]
    config: Config  # at that time: PBT changes it
    begin: float  # begin and end: in s since 1970
    end: float
    node: str | None
    gpu: str | None


@dataclass(slots=True)
class History:
    """The events of a study, in order."""

    directory: Path
    study: Study
    trials: dict[str, Trial] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    records: list[Epoch] = field(default_factory=list)  # each was the best so far
    tops: dict[str, Epoch] = field(default_factory=dict)  # the best epoch of each trial
    began: float | None = None  # time of the first event, in s since 1970
    begun: dict[str, float] = field(default_factory=dict)  # time of each trial's first event
    heard: dict[str, float] = field(default_factory=dict)  # time of each trial's last event
    summary: dict[str, Any] = field(default_factory=dict)  # summary.json; {} if not written yet
    driver: Seen = field(default_factory=lambda: Seen(Life.DEAD))

    @property
    def best(self) -> Epoch | None:
        return self.records[-1] if self.records else None

    @property
    def last(self) -> float | None:
        """The time of the last event; None before the first."""
        return max(self.heard.values(), default=None)

    @property
    def complete(self) -> bool:
        """Whether all trials of the study have begun and ended."""
        ended = all(trial.state in STATES for trial in self.trials.values())
        return ended and len(self.trials) >= self.study.trials

    @property
    def is_running(self) -> bool:
        return self.driver.life is Life.RUNNING

    def life(self) -> str:
        """Returns the state of the study, and how to resume it. slurm/status.sh prints the same."""
        clock = ", by this machine's clock" if self.driver.by_clock else ""
        resume = f"(resume with {self.driver.resume})"
        if self.driver.life in (Life.SAVED, Life.CANCELLED):
            return f"{self.driver.life.value} {resume}"
        if self.driver.life is Life.DEAD:
            return f"dead for {duration(self.driver.ago_s)}{clock} {resume}"
        return self.driver.life.value + clock

    def state(self, trial: Trial) -> str:
        """Returns the state of a trial: "unfinished" if it has not ended and no driver runs."""
        return trial.state if trial.state in STATES or self.is_running else "unfinished"

    def states(self) -> str:
        """Returns the trials by state, such as `6 completed, 5 pruned, 1 running of 12 trials`."""
        counts = Counter(self.state(trial) for trial in self.trials.values())
        names = [*STATES, *sorted(counts.keys() - set(STATES), reverse=True)]
        counted = [f"{counts[state]} {state}" for state in names if counts[state]]
        return f"{', '.join(counted) or '0 begun'} of {self.study.trials} trials"

    def better(self, epoch: Epoch, than: Epoch | None) -> bool:
        sign = self.study.sign()
        return than is None or sign * epoch.value < sign * than.value


def load(directory: Path) -> History:
    """Reads the history of a study directory. Raises UsageError if study.yaml cannot be read."""
    study = read_saved(directory)
    history = History(directory, study, summary=journal.read_json(directory / "summary.json"))
    for event in journal.events(directory):
        trial = journal.fold(history.trials, event)
        history.began = history.began or event["time"]
        history.begun.setdefault(trial.trial, event["time"])
        history.heard[trial.trial] = event["time"]
        if event["event"] != "epoch":
            continue
        epoch = Epoch(
            trial.trial,
            event["epoch"],
            event["metrics"][study.metric],
            event["metrics"],
            trial.config,
            begin=event["time"] - event["seconds"],
            end=event["time"],
            node=trial.node,
            gpu=trial.gpu,
        )
        history.epochs.append(epoch)
        if history.better(epoch, history.tops.get(trial.trial)):
            history.tops[trial.trial] = epoch
        if history.better(epoch, history.best):
            history.records.append(epoch)
    history.driver = lease.look(directory, complete=history.complete)
    return history


def has_ended(directory: Path, trial: str) -> bool:
    """Returns whether a trial is over, or its study is not running."""
    history = load(directory)
    state = history.trials[trial].state if trial in history.trials else "running"
    return state in STATES or not history.is_running


def find(results: Path, name: str | None) -> list[Path]:
    """Returns the directory of the study with this name or path, or of all studies in `results`.

    The newest study comes last. Raises UsageError if there is no such study.
    """
    if name is not None:
        for directory in (results / name, Path(name)):
            if os.path.isfile(directory / "study.yaml"):  # noqa: PTH113, it never raises
                return [directory]
    paths = results.glob("*/study.yaml") if os.path.isdir(results) else ()  # noqa: PTH112
    known = sorted((path.parent for path in paths), key=_touched)
    if name is None and known:
        return known
    listed = f"; it has: {', '.join(path.name for path in known)}" if known else ""
    absent = "no study" if name is None else f"no study {name!r}"
    raise UsageError(f"{absent} in {results}{listed}; name another directory with --results DIR")


def _touched(directory: Path) -> float:
    """Returns when the study was last written to, in s since 1970."""
    names = ("trials.jsonl", "study.yaml")
    return next(path.stat().st_mtime for n in names if (path := directory / n).exists())
