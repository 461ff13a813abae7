"""Writes a study as two tables that pandas, R and spreadsheets read: trials and epochs."""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from siftune.machine.files import replacing
from siftune.record.history import History


def writer(directory: Path, *, follow: bool) -> Callable[[History], list[Path]]:
    """Returns a function that writes trials.csv and epochs.csv, and returns their paths.

    trials.csv has a row for each trial: its state, its config (`config/lr`) and the metrics of its
    best epoch. A hyper-parameter without effect is empty. epochs.csv has a row for each epoch.
    """
    return partial(_write_both, directory)


def _write_both(directory: Path, history: History) -> list[Path]:
    paths = [directory / "trials.csv", directory / "epochs.csv"]
    _write(paths[0], trials(history))
    _write(paths[1], epochs(history))
    return paths


def trials(history: History) -> list[dict[str, Any]]:
    """Returns a row for each trial."""
    return [_trial(history, name) for name in history.trials]


def epochs(history: History) -> list[dict[str, Any]]:
    """Returns a row for each epoch."""
    own = ("trial", "epoch", "seconds", "node", "gpu")
    return [
        {"trial": epoch.trial, "epoch": epoch.epoch, "seconds": epoch.end - epoch.begin}
        | {"node": epoch.node, "gpu": epoch.gpu}
        | _metrics(epoch.metrics, own)
        for epoch in history.epochs
    ]


def _trial(history: History, name: str) -> dict[str, Any]:
    trial, top = history.trials[name], history.tops.get(name)
    row = {
        "trial": name,
        "state": history.state(trial),
        "epochs": trial.epoch,
        "best_epoch": top.epoch if top else None,
        "seconds": trial.seconds,
        "restarts": trial.restarts,
        "error": trial.error,
    }
    active = history.study.space.active(trial.config)
    metrics = _metrics(top.metrics, tuple(row)) if top else {}
    return row | {f"config/{key}": value for key, value in active.items()} | metrics


def _metrics(metrics: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    """Returns the metrics. One with the name of a column of ours becomes `metric/NAME`."""
    return {f"metric/{key}" if key in own else key: value for key, value in metrics.items()}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(column for row in rows for column in row)
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(columns))
        table.writeheader()
        table.writerows(rows)
