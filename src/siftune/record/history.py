"""A study as its directory tells it, running, ended or killed: what report and status show.

Neither Ray nor torch is imported, and no searcher: this answers at once, on any machine.
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
    """One epoch as it happened; an epoch trained again after a restart happened twice."""

    trial: str
    epoch: int
    value: float  # the metric of the study
    metrics: dict[str, Any]
    config: Config  # as it was then: PBT changes it
    begin: float  # s since 1970, as `end`
    end: float
    node: str | None
    gpu: str | None


@dataclass(slots=True)
class History:
    """Everything that happened in a study, in its order."""

    directory: Path
    study: Study
    trials: dict[str, Trial] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    records: list[Epoch] = field(default_factory=list)  # each the best of the study so far
    tops: dict[str, Epoch] = field(default_factory=dict)  # of each trial: its best
    began: float | None = None  # the first event's time
    heard: dict[str, float] = field(default_factory=dict)  # of each trial: its last event's time
    summary: dict[str, Any] = field(default_factory=dict)  # summary.json, {} before it is written
    driver: Seen = field(default_factory=lambda: Seen(Life.DEAD))

    @property
    def best(self) -> Epoch | None:
        return self.records[-1] if self.records else None

    @property
    def last(self) -> float | None:
        """When the last event was; None before the first."""
        return max(self.heard.values(), default=None)

    @property
    def complete(self) -> bool:
        """Whether every trial has begun and ended."""
        ended = all(trial.state in STATES for trial in self.trials.values())
        return ended and len(self.trials) >= self.study.trials

    @property
    def is_running(self) -> bool:
        return self.driver.life is Life.RUNNING

    def life(self) -> str:
        """Whether the study is running, and if not, what to do. slurm/status.sh says the same."""
        clock = ", by this machine's clock" if self.driver.by_clock else ""
        resume = f"(resume with --resume {self.directory.name})"
        if self.driver.life is Life.SAVED:
            return f"saved {resume}"
        if self.driver.life is Life.DEAD:
            return f"dead since {duration(self.driver.ago_s)} ago{clock} {resume}"
        return self.driver.life.value + clock

    def state(self, trial: Trial) -> str:
        """The state of a trial. None is running in a study that is not."""
        return trial.state if trial.state in STATES or self.is_running else "unfinished"

    def states(self) -> str:
        """As `6 completed, 5 pruned, 1 running of 12 trials`."""
        known = Counter(self.state(trial) for trial in self.trials.values())
        names = [*STATES, *sorted(known.keys() - set(STATES), reverse=True)]
        counted = [f"{known[state]} {state}" for state in names if known[state]]
        return f"{', '.join(counted) or '0 begun'} of {self.study.trials} trials"

    def better(self, epoch: Epoch, than: Epoch | None) -> bool:
        sign = self.study.sign()
        return than is None or sign * epoch.value < sign * than.value


def load(directory: Path) -> History:
    """The history of a study directory. Raises UsageError if its study.yaml cannot be read."""
    study = read_saved(directory)
    found = History(directory, study, summary=journal.read_json(directory / "summary.json"))
    for event in journal.events(directory):
        trial = journal.fold(found.trials, event)
        found.began = found.began or event["time"]
        found.heard[trial.trial] = event["time"]
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
        found.epochs.append(epoch)
        if found.better(epoch, found.tops.get(trial.trial)):
            found.tops[trial.trial] = epoch
        if found.better(epoch, found.best):
            found.records.append(epoch)
    found.driver = lease.look(directory, complete=found.complete)
    return found


def find(results: Path, name: str | None) -> list[Path]:
    """The directory of one study, by name or path; without a name all in `results`, newest last.

    Raises UsageError if there is none.
    """
    if name is not None:
        for directory in (results / name, Path(name)):
            if os.path.isfile(directory / "study.yaml"):  # noqa: PTH113, never raises
                return [directory]
    found = results.glob("*/study.yaml") if os.path.isdir(results) else ()  # noqa: PTH112
    known = sorted((path.parent for path in found), key=_touched)
    if name is None and known:
        return known
    there = f"; it has: {', '.join(path.name for path in known)}" if known else ""
    wanted = "no study" if name is None else f"no study {name!r}"
    raise UsageError(f"there is {wanted} in {results}{there}; look elsewhere with --results DIR")


def _touched(directory: Path) -> float:
    names = ("trials.jsonl", "study.yaml")
    return next(path.stat().st_mtime for n in names if (path := directory / n).exists())
