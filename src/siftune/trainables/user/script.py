"""A user's script, run unchanged. It takes flags and prints lines of JSON.

    python my_train.py --lr 0.01 --batch-size 64      how to run it without siftune
    {"loss": 0.31, "accuracy": 0.9}                   the line that it prints once per epoch

The values of a config become its flags.
"""

import ast
import functools
import importlib.util
import os
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.space import Config, Space
from siftune.space.entries import flat
from siftune.trainables.base import Report, Trainable
from siftune.trainables.user import arguments, output
from siftune.trainables.user.file import as_module, require_file
from siftune.trainables.user.printed import PrintedMetrics
from siftune.trainables.user.seed import seed_everything

# Libraries that are imported before any trial if the script imports them. They keep no state of a
# trial, and importing them takes seconds.
_HEAVY = {"lightgbm", "lightning", "numpy", "pandas", "pytorch_lightning", "scipy", "sklearn"}
_HEAVY |= {"torch", "torchvision", "transformers", "xgboost"}


class UserScript(Trainable):
    """A script that prints its metrics. Each trial is one process."""

    several_processes = False

    def __init__(self, name: str, *, seed: int, printed: PrintedMetrics, args: str = "") -> None:
        """`name`: the path of the script. `args`: words that every trial gets, as in a shell."""
        self._path = Path(name)
        self._seed = seed
        self._printed = printed
        self._args = tuple(shlex.split(args))

    def mistakes(self, space: Space) -> list[str]:
        try:
            return arguments.read(self._path, self._args).mistakes(space)
        except UsageError as error:
            return list(error.mistakes)

    def default_space(self) -> dict[str, Any]:
        require_file(self._path)
        raise UsageError(
            f"--trainable {self._path} is a script: give its flags and their domains in "
            "--space FILE.yaml or FILE.py:NAME"
        )

    def load(self) -> None:
        """Reads the script's help, which may take seconds."""
        arguments.read(self._path, self._args)

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Report,
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        seed_everything(self._seed)
        directory = Path(os.environ.get("SIFTUNE_TRIAL_DIR", "."))
        words = arguments.read(self._path, self._args).words(dict(flat(config)[0]), directory)
        run(self._path, words, report, self._printed)


def run(path: Path, words: list[str], report: Report, how: PrintedMetrics) -> None:
    """Runs the script once with these words, and reports the metrics that it prints.

    Lines that its child processes print count too. Raises RuntimeError if the exit code is not 0.
    """
    argv, sys.argv = sys.argv, [str(path), *words]
    module = as_module(path)
    directory = str(module[0] if module else path.parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    with output.reported(report, how) as printed:
        try:
            if module:
                runpy.run_module(module[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if printed.stopped:  # `report` raised it, because the scheduler stops the trial
                raise
            if end.code not in (None, 0):
                said = end.code if isinstance(end.code, str) else printed.last_error
                code = 1 if isinstance(end.code, str) else end.code
                raise RuntimeError(f"{path} ended with exit code {code}: {said}") from None
        finally:
            sys.argv = argv


@functools.cache
def heavy_imports(path: Path) -> list[str]:
    """Returns the heavy libraries that the script imports and that are installed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return [name for name in sorted(_HEAVY & names) if importlib.util.find_spec(name)]
