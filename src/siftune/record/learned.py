"""Chooses what a study learns from other studies (--learn-from), and keeps it in learned.jsonl.

The file is written at the start. A resumed study reads it, and does not need the other studies.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.record import sources
from siftune.record.journal import Journal
from siftune.record.sources import OldTrial
from siftune.space import Config, Space
from siftune.study import known
from siftune.study.study import Study

FILE = "learned.jsonl"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A trial of another study, as this study's searcher is told it.

    `config`: in this study's space. `values`: the metric by epoch.
    """

    source: str
    trial: str
    config: Config
    values: dict[int, float]
    failed: bool


def gather(study: Study) -> tuple[list[Lesson], list[str]]:
    """Returns what the study can learn from the sources that it names, and a sentence about each.

    Raises UsageError with a sentence for each source from which it can learn nothing.
    """
    lessons: list[Lesson] = []
    said, mistakes = [], []
    for source in study.learn_from:
        try:
            old = sources.read(source, study.metric, study.mode)
            new, apart = _translate(source, old, study)
        except UsageError as error:
            mistakes += [f"--learn-from {source}: {mistake}" for mistake in error.mistakes]
            continue
        lessons += new
        said.append(f"learns from {len(new)} of {len(old)} trials of {source}{apart}")
    if mistakes:
        raise UsageError(mistakes)
    if said and study.searcher in ("random", "grid"):
        said.append(
            f"the searcher {study.searcher} has no model: from other studies it only learns which "
            "configs not to train again"
        )
    return lessons, said


def write(log: Journal, lessons: Sequence[Lesson]) -> None:
    """Writes learned.jsonl, or removes the one of an earlier start if there are no lessons.

    Raises StorageError.
    """
    if lessons:
        log.write_text(FILE, "".join(json.dumps(asdict(lesson)) + "\n" for lesson in lessons))
    else:
        (log.directory / FILE).unlink(missing_ok=True)


def load(directory: Path) -> list[Lesson]:
    """Returns what the study in a directory learned from others."""
    path = directory / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [_lesson(json.loads(line)) for line in lines]


def _lesson(line: Mapping[str, Any]) -> Lesson:
    values = {int(epoch): value for epoch, value in line["values"].items()}
    return Lesson(**{**line, "values": values})


def counts(directory: Path) -> Iterator[str]:
    """Yields a sentence for each study from which the study in a directory learned."""
    for source, count in Counter(lesson.source for lesson in load(directory)).items():
        yield f"It learned from {count} trials of {source}."


# ── Other spaces ────────────────────────────────────────────────────────────────────────────────


class _Apart(Exception):
    """A config that this space cannot have, because of one entry."""

    def __init__(self, name: str, why: str, *, absent: bool = False) -> None:
        super().__init__(why)
        self.name = name
        self.absent = absent


def _translate(source: str, old: list[OldTrial], study: Study) -> tuple[list[Lesson], str]:
    """Returns the trials whose configs the study's space can have, and why others do not count.

    Raises UsageError if none counts.
    """
    lessons: list[Lesson] = []
    apart: list[_Apart] = []
    for trial in old:
        try:
            config = _config(trial.config, study.space)
        except _Apart as error:
            apart.append(error)
            continue
        values = trial.values
        if not values and trial.value is not None:  # it counts as fully trained
            values = {study.last_epoch(config) or 1: trial.value}
        lessons.append(Lesson(source, trial.trial, config, values, trial.failed))
    if not any(lesson.values for lesson in lessons):
        raise UsageError(_refusal(apart, len(old)))
    if not apart:
        return lessons, ""
    names = ", ".join(sorted({error.name for error in apart}))
    return lessons, f"; the others lie outside the space ({names})"


def _refusal(apart: list[_Apart], trials: int) -> str:
    absent = sorted({error.name for error in apart if error.absent})
    if absent:
        return (
            f"its trials have no value of {', '.join(absent)}, which this space varies: set a "
            f"constant here (--set {absent[0]}=VALUE), or leave --learn-from out"
        )
    if not apart:
        return "only trials without a value of the metric fit this space"
    return f"none of its {trials} trials lies in this space: {apart[0]}"


def _config(old: Mapping[str, Any], space: Space) -> Config:
    """Returns a config of another study as one of this space. Raises _Apart.

    A constant that the other study does not know counts as always having been this value. The
    number of epochs, if it is a constant, says how long trials train and is no part of the config.
    """
    values = {name: p.domain.default() for name, p in space.parameters.items()} | space.constants
    given = {name: value for name, value in known.flat(old, space) if name in space}
    if "epochs" in space.constants:
        given.pop("epochs", None)
    for name, value in given.items():
        try:
            values[name] = known.value_in(space, name, value)
        except ValueError as error:
            raise _Apart(name, str(error)) from None
    config = space.canonical({name: v for name, v in values.items() if name not in space.drawn})
    config |= {name: values[name] for name in space.drawn if name in values}
    needed = [name for name in space.active(config) if name in space.parameters] + [*space.drawn]
    for name in needed:
        if name not in given:
            raise _Apart(name, f"there is no value of {name}", absent=True)
    return config
