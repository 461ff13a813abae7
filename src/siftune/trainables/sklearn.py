"""The trainable `sklearn`: a linear classifier from scikit-learn on a table, without a GPU."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import tune
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from siftune.machine.files import replacing
from siftune.space import Config, when
from siftune.trainables.base import BuiltIn, Metrics, Save
from siftune.trainables.datasets import DataError

# The default space.
SPACE: dict[str, Any] = {
    "lr": tune.loguniform(1e-4, 1.0),
    "alpha": tune.loguniform(1e-7, 1e-1),
    "l1_ratio": tune.uniform(0.0, 1.0),
    "loss": tune.choice(["log_loss", "modified_huber"]),
    "schedule": tune.choice(["constant", "invscaling"]),
    "power_t": when("schedule == 'invscaling'", tune.uniform(0.1, 0.5)),
    "epochs": 20,
}

STATE_FILE = "state.npz"
_MOST_WORDS = 100  # of a column of text

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Standardised features, float64 [N, F], and class numbers, int64 [N], of a table.

    Its three parts are disjoint: three fifths for training, one fifth each for validation and test.
    """

    train: tuple[Floats, NDArray[np.int64]]
    val: tuple[Floats, NDArray[np.int64]]
    test: tuple[Floats, NDArray[np.int64]]
    classes: int


class Sklearn(BuiltIn):
    """A linear classifier on a CSV file, or on scikit-learn's handwritten digits."""

    name = "sklearn"
    space = SPACE
    metric = ("val_accuracy", "max")
    several_processes = False

    def __init__(self, *, data: Path, seed: int, table: str = "", target: str = "") -> None:
        """`table`: a CSV file with a header line and numbers or words in its columns, of which
        `target` is the class; [the digits]."""
        super().__init__(data=data, seed=seed)
        self._table = table
        self._target = target

    def prepare(self) -> None:
        """Reads the table. Raises DataError if it cannot."""
        _load(self._table, self._target, seed=0)

    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics and a function that saves the state.

        Metrics: `loss`, `val_loss`, `val_accuracy` (0 to 1), `epoch`. `save(directory)` writes one
        file, state.npz, and `start` is such a directory. A run that was interrupted and resumed
        gives the same result as an uninterrupted run. Raises ValueError for an invalid config, and
        FloatingPointError if training diverges.
        """
        parts = _load(self._table, self._target, seed=self.seed)
        model, done = _build(config, parts), 0
        if start is not None:
            done = _restore(model, start)
        features, labels = parts.train
        for epoch in range(done + 1, config["epochs"] + 1):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(labels))
            try:
                model.partial_fit(features[order], labels[order], classes=range(parts.classes))
            except ValueError as error:  # scikit-learn raises it on overflow
                raise FloatingPointError(
                    f"{error} in epoch {epoch} at lr {config['lr']:g}: lower lr"
                ) from None
            metrics = {"loss": _score(model, *parts.train)[0], "epoch": float(epoch)}
            metrics["val_loss"], metrics["val_accuracy"] = _score(model, *parts.val)
            if not all(map(math.isfinite, metrics.values())):
                raise FloatingPointError(
                    f"a loss is not finite in epoch {epoch} at lr {config['lr']:g}: lower lr"
                )
            yield metrics, partial(_save, model, epoch)

    def evaluate(self, directory: Path) -> Metrics:
        """Returns `val_loss`, `val_accuracy`, `test_loss`, `test_accuracy` of the saved weights."""
        parts = _load(self._table, self._target, seed=self.seed)
        model = SGDClassifier()
        _restore(model, directory)
        figures = {}
        for name, part in (("val", parts.val), ("test", parts.test)):
            figures[f"{name}_loss"], figures[f"{name}_accuracy"] = _score(model, *part)
        return figures


def _build(config: dict[str, Any], table: Table) -> SGDClassifier:
    return SGDClassifier(
        loss=config["loss"],
        penalty="elasticnet",
        alpha=config["alpha"],
        l1_ratio=config["l1_ratio"],
        learning_rate=config["schedule"],
        eta0=config["lr"],
        power_t=config.get("power_t", 0.5),
        shuffle=False,  # the order is drawn from the seed and the epoch
    )


def _score(
    model: SGDClassifier, features: Floats, labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Returns mean loss and accuracy (0 to 1)."""
    probabilities = model.predict_proba(features)
    loss = log_loss(labels, probabilities, labels=model.classes_)
    return float(loss), float((model.classes_[probabilities.argmax(1)] == labels).mean())


def _save(model: SGDClassifier, epoch: int, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / STATE_FILE) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            epoch=epoch,
            loss=model.loss,
            steps=model.t_,
            classes=model.classes_,
            coef=model.coef_,
            intercept=model.intercept_,
        )


def _restore(model: SGDClassifier, directory: Path) -> int:
    """Loads the saved state, without pickle. Returns the number of completed epochs."""
    with np.load(directory / STATE_FILE, allow_pickle=False) as state:
        model.set_params(loss=str(state["loss"]))
        model.t_ = float(state["steps"])
        model.classes_ = state["classes"]
        model.coef_, model.intercept_ = state["coef"], state["intercept"]
        model.n_features_in_ = model.coef_.shape[1]
        return int(state["epoch"])


def _load(table: str, target: str, *, seed: int) -> Table:
    features, names = _read(Path(table), target) if table else load_digits(return_X_y=True)
    classes, labels = np.unique(names, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    fifth = len(order) // 5
    test, val, train = order[:fifth], order[fifth : 2 * fifth], order[2 * fifth :]
    if not fifth or len(np.unique(labels[train])) < len(classes) or len(classes) < 2:
        raise DataError(f"{table or 'the digits'}: too few lines for {len(classes)} classes")
    mean, deviation = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(deviation > 0, deviation, 1.0)

    def part(rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        return scaled[rows], labels[rows].astype(np.int64)

    return Table(part(train), part(val), part(test), len(classes))


def _read(file: Path, target: str) -> tuple[Floats, list[str]]:
    """Returns the features and the classes in a CSV file."""
    try:
        with file.open(newline="") as lines:
            names, *rows = csv.reader(lines)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the table {file}: {error}") from None
    if target not in names:
        raise DataError(
            f"{file} has no column {target!r}: set --trainable-arg target= to one of "
            f"{', '.join(names)}"
        )
    rows = [row for row in rows if row]
    if any(len(row) != len(names) for row in rows):
        raise DataError(f"{file}: every line must have {len(names)} values, as the first has names")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    classes = list(columns.pop(target, ()))
    encoded = [_encode(file, name, values) for name, values in columns.items()]
    if not encoded:
        raise DataError(f"{file} has no line, or no column beside {target!r}")
    return np.concatenate(encoded, axis=1), classes


def _encode(file: Path, name: str, values: Sequence[str]) -> Floats:
    """Returns a column of numbers, float64 [N, 1]; of a column of text, which one of its K words
    each line has, as zeros and ones, float64 [N, K]."""
    try:
        numbers = np.array(values, dtype=np.float64)
    except ValueError:
        words = sorted(set(values))
        if "" in words and all(_is_number(word) for word in words if word):
            raise DataError(f"{file}: a number is missing in column {name!r}") from None
        if len(words) > _MOST_WORDS:
            raise DataError(
                f"{file}: column {name!r} has {len(words)} different words: remove it, or make it "
                "a number"
            ) from None
        return np.array([[float(value == word) for word in words] for value in values])
    if not np.isfinite(numbers).all():
        raise DataError(f"{file}: a number is missing or not finite in column {name!r}")
    return numbers[:, None]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
