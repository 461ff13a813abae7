"""A function in a user's file, FILE.py:FUNC, or another callable object."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config, Space
from siftune.trainables.base import Report, Trainable
from siftune.trainables.user.file import load_file, load_space
from siftune.trainables.user.ray_class import run_class
from siftune.trainables.user.seed import seed_everything


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
        if not isinstance(getattr(load_file(self._path), "SPACE", None), dict):
            raise UsageError(
                f"--trainable {self._name} has no space: give --space FILE.py:NAME or FILE.yaml, "
                "or define a dictionary SPACE in its file"
            )
        return load_space(self._path, "SPACE")

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
            if mistake := _mistake(function):
                raise UsageError(f"{self._name} {mistake}")
            return function
        names = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise UsageError(
            f"{self._path} has no function {self._attribute!r}; it has: {', '.join(names)}"
        )


def _mistake(function: Callable[..., Any]) -> str | None:
    """Returns why an object cannot be trained with a config; None if it can."""
    if isinstance(function, type):
        tune = sys.modules.get("ray.tune")  # a subclass of tune.Trainable has imported it
        if tune is not None and issubclass(function, tune.Trainable):
            return None
        return (
            "is a class, and not a subclass of tune.Trainable: name an object of it that can be "
            f"called with a config, such as train = {function.__name__}(…)"
        )
    for call in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
            return "is asynchronous: give a function that calls asyncio.run"
    with suppress(ValueError):  # a function written in C may have no signature
        try:
            inspect.signature(function).bind({})
        except TypeError as error:
            return (
                f"cannot be called with a config alone: {error}. Bind other arguments with "
                "functools.partial or tune.with_parameters"
            )
    return None
