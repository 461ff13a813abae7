"""A user's script, run unchanged. It takes flags and prints lines of JSON.

    python my_train.py --lr 0.01 --batch-size 64      how to run it without siftune
    {"loss": 0.31, "accuracy": 0.9}                   the line that it prints once per epoch

The values of a config become its flags.
"""

import ast
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from siftune.errors import UsageError
from siftune.machine.packages import how_to_install
from siftune.space import Config, Space
from siftune.trainables.base import Report, Trainable
from siftune.trainables.user.seed import seed_everything

HELP_S = 120.0

# Libraries that are imported before any trial if the script imports them. They keep no state of a
# trial, and importing them takes seconds.
_HEAVY = {"lightgbm", "lightning", "numpy", "pandas", "pytorch_lightning", "scipy", "sklearn"}
_HEAVY |= {"torch", "torchvision", "transformers", "xgboost"}


def is_script(name: str) -> bool:
    """Whether `--trainable NAME` names a script, not a function in a file."""
    return ":" not in name and name.endswith(".py")


class UserScript(Trainable):
    """A script that prints its metrics. Each trial is one process."""

    several_processes = False

    def __init__(self, name: str, *, seed: int) -> None:
        """`name`: the path of the script."""
        self._path = Path(name)
        self._seed = seed

    def mistakes(self, space: Space) -> list[str]:
        return mistakes(self._path, space.names)

    def default_space(self) -> dict[str, Any]:
        raise UsageError(
            f"--trainable {self._path} is a script: give its flags and their domains in "
            "--space FILE.yaml or FILE.py:NAME"
        )

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Report,
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        seed_everything(self._seed)
        run(self._path, config, report)


def mistakes(path: Path, parameters: Iterable[str]) -> list[str]:
    """Returns a sentence for each reason why the script cannot take these hyper-parameters."""
    try:
        known = _flags(path)
    except UsageError as error:
        return list(error.mistakes)
    return [_unknown_flag(path, name, known) for name in parameters if _flag(name, known) is None]


def run(path: Path, config: Mapping[str, Any], report: Report) -> None:
    """Runs the script once and passes each printed line that is a JSON dictionary to `report`.

    Raises RuntimeError if the exit code is not 0.
    """
    lines, errors = _Lines(report, sys.stdout), _Tail(sys.stderr)
    argv, sys.argv = sys.argv, [str(path), *_arguments(path, config)]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with redirect_stdout(lines), redirect_stderr(errors):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if lines.stopped:  # `report` raised it, because the scheduler stops the trial
            raise
        if end.code not in (None, 0):
            raise RuntimeError(f"{path} exited with {end.code}: {errors.last}") from None
    finally:
        sys.argv = argv


def _arguments(path: Path, config: Mapping[str, Any]) -> list[str]:
    known = _flags(path)
    words: list[str] = []
    for name, value in config.items():
        flag = _flag(name, known)
        if flag is None:
            raise UsageError(_unknown_flag(path, name, known))
        if known[flag]:
            words += [flag, str(value)]
        elif value:
            words.append(flag)
        elif (negation := f"--no-{flag[2:]}") in known:
            words.append(negation)
    return words


def _unknown_flag(path: Path, name: str, known: Iterable[str]) -> str:
    return f"{path} has no flag --{name}; it has: {', '.join(known)}"


def _flag(name: str, known: Iterable[str]) -> str | None:
    """Returns the flag of a hyper-parameter: batch_size is --batch_size or --batch-size."""
    spelled = (f"--{name}", f"--{name.replace('_', '-')}")
    return next((flag for flag in spelled if flag in known), None)


@functools.cache
def _flags(path: Path) -> dict[str, bool]:
    """Returns the script's flags, and whether each takes a value, from the usage in its --help.

    Raises UsageError if --help fails or shows no flags.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        done = subprocess.run(
            [sys.executable, str(path), "--help"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=HELP_S,
            env=os.environ | {"COLUMNS": "1000", "NO_COLOR": "1"},
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{path} --help takes more than {HELP_S:.0f} s: parse the flags before any slow work"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        missing = how_to_install(path) if last.startswith("ModuleNotFoundError") else ""
        raise UsageError(f"{path} --help fails: {last}{missing}")
    usage = " ".join(done.stdout.partition("\n\n")[0].split())
    flags = re.findall(r"(?<![\w-])(--[A-Za-z0-9][\w-]*)( [^\s\[\]|-][^\s\]|]*)?", usage)
    if not flags:
        raise UsageError(f"{path} --help shows no flags: give it a flag for each hyper-parameter")
    return {flag: bool(value) for flag, value in flags if flag != "--help"}


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


class _Lines(io.TextIOBase):
    """Standard output that reports JSON dictionaries and passes all other lines on."""

    def __init__(self, report: Report, to: TextIO) -> None:
        self.stopped = False
        self._report = report
        self._to = to
        self._unfinished = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        for line in whole:
            if (metrics := _metrics(line)) is None:
                self._to.write(line + "\n")
                continue
            try:
                self._report(metrics)
            except SystemExit:
                self.stopped = True
                raise
        return len(text)


def _metrics(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class _Tail(io.TextIOBase):
    """Standard error that remembers its last line."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._text = ""

    @property
    def last(self) -> str:
        return (self._text.strip().splitlines() or ["no message"])[-1]

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._text = (self._text + text)[-2000:]
        return self._to.write(text)
