"""The configs of new trials: proposals of the searcher that no trial has used yet."""

import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.record.journal import trial_name
from siftune.record.learned import Lesson
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config
from siftune.study import known
from siftune.study.study import Study

_ATTEMPTS = 20  # proposals of a searcher for one trial, before a random config is used


class NotYet(Exception):
    """Raised while the proposal is still being computed: ask again later."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The config of a new trial. `knew` and `heard`: how many trials had ended, and how many epochs
    had been reported, when it was computed; None if it was not computed in advance."""

    config: Config
    knew: int | None = None
    heard: int | None = None

    def to_event(self) -> dict[str, Any]:
        """Returns the proposal as fields of a line of the journal."""
        fields = {"config": self.config, "knew": self.knew, "heard": self.heard}
        return {name: value for name, value in fields.items() if value is not None}


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class Proposals:
    """Tells a searcher every event of a study, and asks it for configs in the order of the trials.

    The first trials get the configs that the user knows (`--try`). The searcher is asked for the
    others, as if the first of them were trial 0: a grid is then covered from its first config.

    This class computes a config when asked; siftune.driver.prefetch computes configs in advance.

    An exception of the searcher does not end the study: the trial gets a random config instead, or
    the searcher misses the event. `say` prints the reason, once for each trial without a proposal
    and once for each kind of failure.
    """

    def __init__(
        self, study: Study, searcher: Searcher, *, say: Callable[[str], None] = _to_stderr
    ) -> None:
        self.study = study
        self.searcher = searcher
        self.spent_s = 0.0  # time spent in the searcher
        self._say = say
        self._said: set[str] = set()
        self._known: set[str] = set()
        self.known_configs = len(study.try_configs)
        searcher.say = self._say_once

    def know(self, config: Config) -> None:
        """Marks the config as used, so that it is not proposed again."""
        self._known.add(self.study.space.identity(config))

    def learn(self, lesson: Lesson) -> None:
        """Tells the searcher a trial of another study, before the first one of this study.

        Its config is trained again only if it was not trained for as long as this study would.
        """
        trial, config = f"{lesson.source}:{lesson.trial}", lesson.config  # ours have no colon
        last = self.study.last_epoch(config) or 0
        if lesson.failed or max(lesson.values) >= last:
            self.know(config)
        scores = {epoch: self.study.sign() * v for epoch, v in sorted(lesson.values.items())}
        self._tell_searcher("begin", trial, config)
        self.searcher.running.setdefault(trial, config)
        for epoch, score in scores.items():
            # The time that it took on another machine says nothing about this study's trials.
            self._tell_searcher("report", trial, epoch, score, 0.0)
        self._tell_searcher("end", trial, None if lesson.failed else min(scores.values()))
        self.searcher.running.pop(trial, None)

    def begin(self, trial: str, config: Config) -> None:
        self.know(config)
        self._tell_searcher("begin", trial, config)
        self.searcher.running.setdefault(trial, config)

    def report(self, trial: str, epoch: int, score: float, seconds: float) -> None:
        self._tell_searcher("report", trial, epoch, score, seconds)

    def end(self, trial: str, score: float | None) -> None:
        self._tell_searcher("end", trial, score)
        self.searcher.running.pop(trial, None)

    def ask(self, number: int, *, prefetch: int = 0) -> Proposal:
        """Returns the config of trial `number`, 0 for the first.

        `prefetch`: how many more configs will be needed soon. Raises SpaceExhausted if all configs
        are used, and NotYet if the proposal is not ready.
        """
        began = time.perf_counter()
        try:
            return Proposal(self._fresh(number))
        finally:
            self.spent_s += time.perf_counter() - began

    def close(self) -> None: ...

    def _tell_searcher(self, event: str, trial: str, *words: object) -> None:
        """Tells the searcher about an event.

        If it raises an exception, it does so again when the journal is replayed, so a resumed study
        has the same searcher.
        """
        try:
            getattr(self.searcher, event)(trial, *words)
        except Exception as error:
            self._say_once(
                f"the searcher {self.study.searcher} raised an exception for the {event!r} event "
                f"of a trial and continues without this event: {cause(error)}"
            )

    def _fresh(self, number: int) -> Config:
        """Returns a config that no trial has used; a random one if the searcher proposes none."""
        if number < self.known_configs:
            return self._known_config(number)
        try:
            for attempt in range(_ATTEMPTS):
                config = self.searcher.propose(number - self.known_configs, attempt)
                if mistakes := self.study.space.mistakes(config):
                    raise ValueError(f"its proposal is not in the space: {mistakes[0]}")
                if self.study.space.identity(config) not in self._known:
                    return config
        except SpaceExhausted:
            raise
        except Exception as error:
            self._say_once(
                f"trial {trial_name(number)} gets a random config, because the searcher "
                f"{self.study.searcher} failed: {cause(error)}"
            )
        return self._random(number)

    def _known_config(self, number: int) -> Config:
        """Returns the config that the user knows for this trial, completed at random."""
        why = "it has already been trained"
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.study.seed, number, _ATTEMPTS + 1 + attempt])
            try:
                config = known.complete(self.study.try_configs[number], self.study.space, rng)
            except UsageError as error:  # a function of the user raised
                why = error.mistakes[0]
                continue
            if self.study.space.identity(config) not in self._known:
                return config
        self._say_once(
            f"trial {trial_name(number)} gets a random config instead of the one in --try: {why}"
        )
        return self._random(number)

    def _random(self, number: int) -> Config:
        """Returns an unused random config. A resumed study draws the same one for this number."""
        space = self.study.space
        rng = np.random.default_rng([self.study.seed, number, _ATTEMPTS])
        for _ in range(1000):
            with suppress(UsageError):  # a function of the user raised for this config
                if space.identity(config := space.sample(rng)) not in self._known:
                    return config
        if space.size() is not None:
            for point in space.grid():
                if space.identity(config := space.draw(point, rng)) not in self._known:
                    return config
        raise SpaceExhausted

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def cause(error: Exception) -> str:
    """Returns an exception and where it was raised, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if words else ''}{words}{where}"
