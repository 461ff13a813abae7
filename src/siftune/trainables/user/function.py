"""A function in a user's file, FILE.py:FUNC."""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config, Space
from siftune.trainables.base import Report, Trainable
from siftune.trainables.user.file import load_file
from siftune.trainables.user.seed import seed_everything


def run_class(cls: type, config: dict[str, Any], start: Path | None, report: Report) -> None:
    """Trains a subclass of tune.Trainable: a step is an epoch, and its checkpoint is saved.

    It ends when a step returns `done`, and at the last epoch of the study.
    """
    from ray import tune

    model: Any = cls(config)
    try:
        if start is not None:
            model.load_checkpoint(str(start))
        while True:
            result = dict(model.step())
            with tempfile.TemporaryDirectory() as directory:
                report(result, checkpoint=_saved(model, directory, tune.Checkpoint))
            if result.get("done"):
                return
    finally:
        model.cleanup()


def _saved(model: Any, directory: str, checkpoint: Callable[[str], Any]) -> Any:
    """Returns the checkpoint of a tune.Trainable; None if its class does not save."""
    from ray import tune

    if type(model).save_checkpoint is tune.Trainable.save_checkpoint:
        return None
    saved = model.save_checkpoint(directory)
    if isinstance(saved, dict):
        raise TypeError(
            "save_checkpoint returned a dictionary: write it to a file in the directory that it "
            "is given, and read it in load_checkpoint"
        )
    return checkpoint(directory)


def is_function(name: str) -> bool:
    """Whether `--trainable NAME` names a function in a file."""
    file, colon, attribute = name.rpartition(":")
    return bool(colon and attribute) and file.endswith(".py")


class UserFunction(Trainable):
    """A function of one config that calls `tune.report`, yields its metrics, or returns them."""

    def __init__(self, name: str, *, seed: int, metric: str = "") -> None:
        """`name`: FILE.py:FUNC. The file is imported on first use. `metric`: the name of a number
        that the function returns."""
        file, _, self._attribute = name.rpartition(":")
        self._name = name
        self._path = Path(file)
        self._seed = seed
        self._metric = metric or "loss"

    def mistakes(self, space: Space) -> list[str]:
        try:
            self.load()
        except UsageError as error:
            return list(error.mistakes)
        return []

    def default_space(self) -> dict[str, Any]:
        space = getattr(load_file(self._path), "SPACE", None)
        if not isinstance(space, dict):
            raise UsageError(
                f"--trainable {self._name} has no space: give --space FILE.py:NAME or FILE.yaml, "
                "or define a dictionary SPACE in its file"
            )
        return space

    def load(self) -> None:
        self._function()

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Report,
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        """Calls the function, which reads `start` with `tune.get_checkpoint`."""
        train = self._function()
        seed_everything(self._seed)  # after the import of the user's file, which may draw numbers
        if isinstance(train, type):
            run_class(train, dict(config), start, report)
            return
        output: Any = train(dict(config))
        if hasattr(output, "__next__"):
            for metrics in output:
                report(metrics)
        elif isinstance(output, Mapping):
            report(output)
        elif isinstance(output, int | float) or hasattr(output, "item"):
            report({self._metric: output})

    def _function(self) -> Callable[[Config], Any]:
        """Returns the function. Raises UsageError if the file has no such function."""
        module = load_file(self._path)
        function = getattr(module, self._attribute, None)
        if callable(function):
            return function
        names = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise UsageError(
            f"{self._path} has no function {self._attribute!r}; it has: {', '.join(names)}"
        )
