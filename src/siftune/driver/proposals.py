"""The configs of new trials: what a searcher proposes, and no trial has had."""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siftune.record.journal import trial_name
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.space import Config, key
from siftune.study.study import Study

_ATTEMPTS = 20  # proposals that a searcher gets for one trial before a random config is taken


class NotYet(Exception):
    """The proposal is still being computed: ask again."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The config of a new trial. `knew`: how many trials had ended when it was computed; None
    where that was when it was asked for."""

    config: Config
    knew: int | None = None


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class Proposals:
    """A searcher that is told every event of a study, and asked for configs in the order of the
    trials. Here it computes them when asked; siftune.driver.prefetch has them ready.

    A searcher that raises does not end the study: a trial gets a random config instead, or an event
    is lost on the searcher. `say` is told why, once for each trial without a proposal and once for
    each kind of failure.
    """

    def __init__(
        self, study: Study, searcher: Searcher, *, say: Callable[[str], None] = _to_stderr
    ) -> None:
        self.study = study
        self.searcher = searcher
        self.spent_s = 0.0  # inside the searcher
        self._say = say
        self._said: set[str] = set()
        self._known: set[str] = set()

    def know(self, config: Config) -> None:
        """Such a config is being trained: it is not to be proposed."""
        self._known.add(key(config))

    def begin(self, trial: str, config: Config) -> None:
        self.know(config)
        self._tell_searcher("begin", trial, config)
        self.searcher.running.setdefault(trial, config)

    def report(self, trial: str, epoch: int, score: float) -> None:
        self._tell_searcher("report", trial, epoch, score)

    def end(self, trial: str, score: float | None) -> None:
        self._tell_searcher("end", trial, score)
        self.searcher.running.pop(trial, None)

    def ask(self, number: int, *, prefetch: int = 0) -> Proposal:
        """Returns the config of trial `number`, 0 for the first. `prefetch`: how many more will be
        asked for soon. Raises SpaceExhausted, and NotYet."""
        began = time.perf_counter()
        try:
            return Proposal(self._fresh(number))
        finally:
            self.spent_s += time.perf_counter() - began

    def close(self) -> None: ...

    def _tell_searcher(self, event: str, trial: str, *words: object) -> None:
        """Tells the searcher of an event. It is the same searcher after a restart: whatever it
        raises it raises again when the journal is replayed."""
        try:
            getattr(self.searcher, event)(trial, *words)
        except Exception as error:
            self._say_once(
                f"the searcher {self.study.searcher} failed at the {event} of a trial and goes on "
                f"without this event: {cause(error)}"
            )

    def _fresh(self, number: int) -> Config:
        """A config that no trial has had; a random one if the searcher has no such proposal."""
        try:
            for attempt in range(_ATTEMPTS):
                config = self.searcher.propose(number, attempt)
                if wrong := self.study.space.mistakes(config):
                    raise ValueError(f"its proposal is not in the space: {wrong[0]}")
                if key(config) not in self._known:
                    return config
        except SpaceExhausted:
            raise
        except Exception as error:
            self._say_once(
                f"trial {trial_name(number)} gets a random config, because the searcher "
                f"{self.study.searcher} failed: {cause(error)}"
            )
        return self._random(number)

    def _random(self, number: int) -> Config:
        """The same for the same number: a study that is resumed draws it again."""
        space = self.study.space
        rng = np.random.default_rng([self.study.seed, number, _ATTEMPTS])
        for _ in range(1000):
            if key(config := space.sample(rng)) not in self._known:
                return config
        if space.size() is not None:
            for config in space.grid():
                if key(config) not in self._known:
                    return config
        raise SpaceExhausted

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def cause(error: Exception) -> str:
    """What was raised, and where, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if words else ''}{words}{where}"
