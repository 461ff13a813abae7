"""Trains one config without Ray and without a study directory, so that a debugger works."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config
from siftune.study.reading import read_saved
from siftune.trainables import TRAINABLES, TrainableSpec
from siftune.trial import session
from siftune.trial.metrics import plain


def train(
    spec: TrainableSpec,
    config: Config,
    on_epoch: Callable[[Mapping[str, Any]], None],
    *,
    save_to: Path | None = None,
) -> None:
    """Trains one config in this process. `on_epoch` is called with the metrics of each epoch.

    `save_to`: the directory for the weights. A user-defined function saves its own weights.
    """
    trainable = spec.build()
    trainable.prepare()
    session.install()
    with tempfile.TemporaryDirectory() as scratch:
        alone = _Alone(config, on_epoch)
        with session.active(alone):
            trainable.run(
                config, None, alone.report, save_in=lambda epoch: save_to or Path(scratch)
            )


class _Alone:
    """The session of a single config, trained in the launch directory."""

    trial = study = "train"
    checkpoint: Path | None = None
    resources: tuple[dict[str, float], ...] = ({"CPU": 1.0},)

    def __init__(self, config: Config, on_epoch: Callable[[Mapping[str, Any]], None]) -> None:
        self.config = config
        self.directory = Path.cwd()
        self._on_epoch = on_epoch

    def report(self, metrics: Mapping[Any, Any], checkpoint: Any = None) -> None:
        self._on_epoch(plain(metrics))


def evaluate(best: Path, *, data: Path) -> dict[str, float]:
    """Returns the validation and test metrics of the weights named in a best.json.

    Raises UsageError if the file or its weights are missing, or if the trainable is user-defined.
    """
    try:
        record = json.loads(best.read_text())
        study = read_saved(best.parent)
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {best}: {error}") from None
    if not record.get("checkpoint"):
        raise UsageError(f"{best} names no weights: the trainable saved no checkpoint")
    if study.trainable not in TRAINABLES:
        raise UsageError(
            f"only built-in trainables can be evaluated here: load {record['checkpoint']} with the "
            f"code of {study.trainable}"
        )
    weights = best.parent / str(record["checkpoint"])
    if not weights.resolve().is_relative_to(best.parent.resolve()):
        raise UsageError(f"{best} names weights outside of its study: {record['checkpoint']}")
    if not weights.exists():
        raise UsageError(f"the weights {weights} do not exist")
    trainable = TRAINABLES.build(
        study.trainable, study.trainable_options, data=data, seed=study.seed
    )
    trainable.prepare()
    evaluated: dict[str, float] = trainable.evaluate(
        weights if weights.is_dir() else weights.parent
    )
    return evaluated
