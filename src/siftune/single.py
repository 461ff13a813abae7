"""One trial alone: no Ray process, no study directory, a debugger works."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config
from siftune.study import read, read_yaml
from siftune.trainables import TRAINABLES, Trainable, module, run_user_function


def train(
    trainable: Trainable,
    config: Config,
    on_epoch: Callable[[Mapping[str, Any]], None],
    *,
    save_to: Path | None = None,
) -> None:
    """Trains one config; `on_epoch` gets the metrics of each epoch, `save_to` the weights.

    The user's own function saves its weights itself.
    """
    if trainable.name not in TRAINABLES:
        _train_user_function(trainable, config, on_epoch)
        return
    trainable.prepare()
    epochs = module(trainable.name).epochs(
        config, start=None, seed=trainable.seed, data=trainable.data, **trainable.options
    )
    for metrics, save in epochs:
        if save_to:
            save(save_to)
        on_epoch(metrics)


def _train_user_function(
    trainable: Trainable, config: Config, on_epoch: Callable[[Mapping[str, Any]], None]
) -> None:
    from ray import tune

    def report(metrics: Mapping[str, Any], **_: Any) -> None:
        on_epoch(metrics)

    # Outside of a trial Ray Tune's own functions raise. Replaced before the user's file is run,
    # so that it gets these, however it imports them.
    before = tune.report, tune.get_checkpoint
    tune.report, tune.get_checkpoint = report, lambda: None
    try:
        run_user_function(trainable.name, config, seed=trainable.seed, report=report)
    finally:
        tune.report, tune.get_checkpoint = before


def evaluate(best: Path, *, data: Path) -> dict[str, float]:
    """Validation and test metrics of the weights that a best.json names.

    Raises UsageError if the file or its weights are not there, or the trainable has no test set.
    """
    try:
        record = json.loads(best.read_text())
        study = read([read_yaml(best.parent / "study.yaml")], {})
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {best}: {error}") from None
    if study.trainable not in TRAINABLES:
        raise UsageError(
            f"{study.trainable} is your own: load {record.get('checkpoint')} with your own code"
        )
    weights = best.parent / str(record["checkpoint"])
    if not weights.resolve().is_relative_to(best.parent.resolve()):
        raise UsageError(f"{best} names weights outside of its study: {record['checkpoint']}")
    if not weights.exists():
        raise UsageError(f"the weights {weights} are not there")
    trainable = Trainable(
        name=study.trainable, data=data, seed=study.seed, options=study.trainable_options
    )
    trainable.prepare()
    evaluate = module(trainable.name).evaluate
    directory = weights if weights.is_dir() else weights.parent
    return evaluate(directory, seed=trainable.seed, data=data, **trainable.options)
