"""A function in a user's file, FILE.py:FUNC."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config, Space
from siftune.trainables.base import Report, Trainable
from siftune.trainables.user.file import load_file
from siftune.trainables.user.seed import seed_everything


def is_function(name: str) -> bool:
    """Whether `--trainable NAME` names a function in a file."""
    file, colon, attribute = name.rpartition(":")
    return bool(colon and attribute) and file.endswith(".py")


class UserFunction(Trainable):
    """A function of one config that calls `tune.report`, yields its metrics, or returns them."""

    def __init__(self, name: str, *, seed: int) -> None:
        """`name`: FILE.py:FUNC. The file is imported on first use."""
        file, _, self._attribute = name.rpartition(":")
        self._name = name
        self._path = Path(file)
        self._seed = seed

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
        output: Any = train(dict(config))
        if hasattr(output, "__next__"):
            for metrics in output:
                report(metrics)
        elif isinstance(output, Mapping):
            report(output)

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
