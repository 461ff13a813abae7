"""Reads the trials of other studies, for --learn-from: of siftune, of Optuna, or of a table."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.record import history
from siftune.record.journal import JournalError
from siftune.study.text import parse_value

FORMS = "a study directory, an SQLite file of Optuna (FILE.db or FILE.db:STUDY), or FILE.csv"
_OPTUNA = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, slots=True)
class OldTrial:
    """A trial of another study.

    `values`: the metric by epoch. `value`: the metric, if the source has no epochs.
    """

    trial: str
    config: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    value: float | None = None
    failed: bool = False


def read(source: str, metric: str, mode: str) -> list[OldTrial]:
    """Returns the trials of a source that ended or reported.

    Raises UsageError if the source cannot be read, or has another metric or mode.
    """
    path, _, name = source.partition(":") if not Path(source).exists() else (source, "", "")
    kind = Path(path).suffix
    if (Path(path) / "study.yaml").is_file():
        trials, metrics = _of_study(Path(path), metric)
    elif kind in _OPTUNA and Path(path).is_file():
        trials, metrics = _of_optuna(Path(path), name, metric, mode)
    elif kind == ".csv" and Path(path).is_file():
        trials, metrics = _of_table(Path(path), metric)
    else:
        raise UsageError(f"must be {FORMS}; there is none at this path")
    trials = [t for t in trials if t.values or t.value is not None or t.failed]
    if all(trial.failed for trial in trials):
        known = f"; it has: {', '.join(metrics)}" if metrics else ""
        raise UsageError(f"no trial there has a value of {metric!r}{known}")
    return trials


def _of_study(directory: Path, metric: str) -> tuple[list[OldTrial], list[str]]:
    try:
        old = history.load(directory)
    except JournalError as error:
        raise UsageError(str(error)) from None
    trials = []
    for trial in old.trials.values():
        values = {
            epoch: number
            for epoch, metrics in trial.epochs.items()
            if (number := _number(metrics.get(metric))) is not None
        }
        failed = trial.state == "failed"
        config = old.study.space.active(trial.config)
        trials.append(OldTrial(trial.trial, config, values, failed=failed))
    return trials, list(dict.fromkeys(name for epoch in old.epochs for name in epoch.metrics))


def _of_optuna(path: Path, name: str, metric: str, mode: str) -> tuple[list[OldTrial], list[str]]:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    storage = f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
    try:
        names = optuna.get_all_study_names(storage)
        if not name and len(names) != 1:
            raise UsageError(f"the file has the studies {', '.join(names)}: add :STUDY to its name")
        study = optuna.load_study(study_name=name or names[0], storage=storage)
    except KeyError:
        raise UsageError(f"the file has no study {name!r}; it has: {', '.join(names)}") from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise UsageError(f"Optuna cannot read the file: {str(error).splitlines()[0]}") from None
    if study.metric_names and study.metric_names != [metric]:
        return [], study.metric_names
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [f"{mode}imize"]:
        raise UsageError(f"that study {' and '.join(directions)}s, this one {mode}imizes")
    trials = []
    for trial in study.get_trials(deepcopy=False):
        values = {
            int(epoch): float(value)
            for epoch, value in trial.intermediate_values.items()
            if math.isfinite(value)
        }
        failed = trial.state is optuna.trial.TrialState.FAIL
        config = {**trial.user_attrs, **trial.params}
        trials.append(OldTrial(str(trial.number), config, values, _number(trial.value), failed))
    return trials, study.metric_names or []


def _of_table(path: Path, metric: str) -> tuple[list[OldTrial], list[str]]:
    """A row for each trial, as `siftune export --to csv` writes it. The parameters are the columns
    `config/NAME`, or else all others."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            rows = [{k.strip(): (v or "").strip() for k, v in row.items() if k} for row in table]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"the table cannot be read: {error}") from None
    columns = list(rows[0]) if rows else []
    if metric not in columns and f"metric/{metric}" in columns:
        metric = f"metric/{metric}"
    return [_row(row, metric, number) for number, row in enumerate(rows, start=1)], [
        name for name in columns if not name.startswith("config/")
    ]


def _row(row: Mapping[str, str], metric: str, number: int) -> OldTrial:
    value = _number(parse_value(row.get(metric, "")))
    epoch = parse_value(row.get("best_epoch", ""))
    values = {epoch: value} if isinstance(epoch, int) and value is not None else {}
    return OldTrial(
        trial=row.get("trial", str(number)),
        config=dict(_config(row)),
        values=values,
        value=value,
        failed=row.get("state") == "failed",
    )


def _config(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    prefix = "config/" if any(name.startswith("config/") for name in row) else ""
    for name, text in row.items():
        if name.startswith(prefix) and text:
            yield name.removeprefix(prefix), text


def _number(value: Any) -> float | None:
    """Returns a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
