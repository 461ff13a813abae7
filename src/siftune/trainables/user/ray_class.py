"""A subclass of `tune.Trainable` in a user's file: a step is an epoch."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from siftune.trainables.base import Report

_ITERATION = "training_iteration"  # in a checkpoint's metadata


def run_class(cls: type, config: dict[str, Any], start: Path | None, report: Report) -> None:
    """Trains a subclass of tune.Trainable, and saves a checkpoint after each step.

    It ends when a step returns `done`, and at the last epoch of the study. `cleanup` is called at
    the end. `reset_config` is not, because each trial has an object of its own.
    """
    from ray import tune

    model = _in_trial(cls)(config)
    with suppress(OSError):  # Ray makes a directory in the user's home, and nothing writes to it
        Path(super(type(model), model).logdir).rmdir()
    try:
        if start is not None:
            model.restore(str(start))
            metadata = tune.Checkpoint.from_directory(start).get_metadata()
            model.iterations = int(metadata.get(_ITERATION, 0))
        while True:
            result = model.step()
            if not isinstance(result, Mapping):
                raise TypeError(f"step must return a dictionary, got {type(result).__name__}")
            model.iterations += 1
            model.log_result({_ITERATION: model.iterations, "config": model.config, **result})
            with tempfile.TemporaryDirectory() as directory:
                report(result, checkpoint=_saved(model, directory))
            if result.get("done"):
                return
    finally:
        model.stop()


def _in_trial(cls: Any) -> Any:
    """Returns the class with the properties that Ray Tune sets in a trial."""
    from ray import tune

    class InTrial(cls):
        iterations = 0

        @property
        def iteration(self) -> int:
            return self.iterations

        @property
        def training_iteration(self) -> int:
            return self.iterations

        @property
        def logdir(self) -> str:
            return str(tune.get_context().get_trial_dir())

        @property
        def trial_name(self) -> str:
            return str(tune.get_context().get_trial_name())

        @property
        def trial_id(self) -> str:
            return str(tune.get_context().get_trial_id())

    InTrial.__name__, InTrial.__qualname__ = cls.__name__, cls.__qualname__
    return InTrial


def _saved(model: Any, directory: str) -> Any:
    """Returns the checkpoint of a tune.Trainable; None if its class does not save.

    `save_checkpoint` writes to the directory, or returns a dictionary that `load_checkpoint` gets.
    """
    from ray import tune

    if type(model).save_checkpoint is tune.Trainable.save_checkpoint:
        return None
    model.save(directory)
    checkpoint = tune.Checkpoint.from_directory(directory)
    checkpoint.update_metadata({_ITERATION: model.iterations})
    return checkpoint
