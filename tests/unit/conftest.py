"""A study directory written event by event, for tests of the code that reads it."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siftune.record import lease
from siftune.record.journal import Journal
from siftune.study.planning import plan
from siftune.study.reading import read

SPACE = {
    "lr": "loguniform(1e-4, 1)",
    "depth": "randint(1, 5)",
    "act": "choice(['relu', 'gelu'])",
    "width2": "choice([8, 16, 32]) if depth > 1",
    "epochs": 3,
}


class Written:
    """Writes a study's events through the journal, one second apart by default."""

    def __init__(self, directory: Path, **layer: Any) -> None:
        self.directory = directory
        self.now = 1_000_000.0
        directory.mkdir(parents=True)
        self._log = Journal(directory)
        layer = {"trainable": "t.py:f", "name": directory.name, "space": SPACE} | layer
        layer = {"trials": 4, "searcher": "random", "scheduler": "asha"} | layer
        study, _ = plan(read([layer], {}), slots=2)
        self._space, self._metric = study.space, study.metric
        self._log.write_text("study.yaml", study.to_yaml())
        self._names = itertools.count(1)

    def event(self, event: str, trial: str, *, after: float = 1.0, **content: Any) -> None:
        self.now += after
        self._log.append({"event": event, "trial": trial, **content, "time": self.now})

    def driver(self, *, silent_s: float = 0.0, **content: Any) -> None:
        """Writes driver.json, touched `silent_s` ago; by default this process is the driver."""
        path = self.directory / "driver.json"
        content = lease._this_process() | {"job": None, "nonce": "n"} | content
        path.write_text(json.dumps(content) + "\n")
        touched = path.stat().st_mtime - silent_s
        os.utime(path, (touched, touched))

    def start(self, **config: Any) -> str:
        trial = f"{next(self._names):04d}"
        config = {"lr": 0.1, "depth": 1, "act": "relu", "width2": 8} | config
        self.event("start", trial, config=self._space.canonical(config))
        return trial

    def epoch(self, trial: str, epoch: int, value: float, **content: Any) -> None:
        content = {"seconds": 1.0, "node": "node1", "metrics": {self._metric: value}} | content
        self.event("epoch", trial, epoch=epoch, **content)

    def trial(self, *values: float, state: str | None = "completed", **config: Any) -> str:
        """Writes a trial with these values of the metric; it ends unless `state` is None."""
        name = self.start(**config)
        for epoch, value in enumerate(values, start=1):
            self.epoch(name, epoch, value)
        if state:
            self.event("end", name, state=state)
        return name


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Written]:
    def make(name: str = "study", **layer: Any) -> Written:
        return Written(tmp_path / "results" / name, **layer)

    return make
