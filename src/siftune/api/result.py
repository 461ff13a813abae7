"""Reads what a study has found from its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.errors import UsageError
from siftune.export import csv
from siftune.record import history
from siftune.record.history import History
from siftune.record.lease import Life
from siftune.report import page

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Best:
    """The best epoch of a study. `checkpoint`: the path of its weights, None if the trainable saved
    none."""

    trial: str
    epoch: int
    value: float
    config: dict[str, Any]
    metrics: dict[str, Any]
    checkpoint: Path | None


class Result:
    """A study directory. Everything is read when it is asked for, so the study may be running."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def best(self) -> Best | None:
        """The best epoch so far; None before the first."""
        return self._best(self._history())

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each trial: its state, its config (`config/lr`), the metrics of its best
        epoch."""
        return self._table(csv.trials(self._history()))

    @property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each trial."""
        return self._table(csv.epochs(self._history()))

    @property
    def finished(self) -> bool:
        """Whether no work is left: all trials have ended, or a stop condition is met."""
        return self._history().driver.life is Life.FINISHED

    def report(self) -> Path:
        """Writes report.html to the study directory, and returns its path."""
        return page.write(self.directory)

    def __repr__(self) -> str:
        seen = self._history()
        best = self._best(seen)
        text = f"<study {seen.study.name} in {self.directory}: {seen.states()}"
        return text + (f"; best {seen.study.metric} {best.value:.6g}>" if best else ">")

    def _best(self, seen: History) -> Best | None:
        path = self.directory / "best.json"
        if not path.is_file():
            return None
        saved = json.loads(path.read_text())
        checkpoint = saved["checkpoint"]
        return Best(
            trial=saved["trial"],
            epoch=saved["epoch"],
            value=saved["metrics"][seen.study.metric],
            config=seen.study.space.active(saved["config"]),
            metrics=saved["metrics"],
            checkpoint=self.directory / checkpoint if checkpoint else None,
        )

    def _history(self) -> History:
        return history.load(self.directory)

    @staticmethod
    def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(rows)


def load(directory: str | Path) -> Result:
    """Returns the result of the study in a directory, such as `results/NAME`. It may be running.

    Raises UsageError if there is no study.
    """
    path = Path(directory).absolute()
    if not (path / "study.yaml").is_file():
        raise UsageError(f"there is no study in {path}")
    return Result(path)
