"""The words of a command line that give a script the values of a config."""

import ast
import functools
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siftune.errors import UsageError
from siftune.machine.packages import how_to_install
from siftune.space import Space
from siftune.trainables.user import help_text
from siftune.trainables.user.file import as_module, require_file
from siftune.trainables.user.help_text import Help

HELP_S = 120.0
TRIAL_DIRECTORY = "{trial_dir}"  # in a value or an argument: the trial's own directory


class Arguments(ABC):
    """The parameters that a script takes."""

    @abstractmethod
    def mistakes(self, space: Space) -> list[str]:
        """Returns a sentence for each reason why the script cannot take the space."""

    @abstractmethod
    def words(self, config: Mapping[str, Any], trial_directory: Path) -> list[str]:
        """Returns the words for a config. None leaves a parameter out."""


class FlagArguments(Arguments):
    """A script with flags, of which --help tells."""

    def __init__(self, path: Path, fixed: tuple[str, ...], help: Help) -> None:
        """`fixed`: words that every trial gets."""
        self._path = path
        self._fixed = fixed
        self._help = help

    def mistakes(self, space: Space) -> list[str]:
        names = space.names
        wrong = [
            f"{self._path} has no flag --{name}; it has: {self._listed()}"
            for name in names
            if self._help.find(name) is None and self._help.find_off(name) is None
        ]
        given = {flag.name for name in names if (flag := self._help.find(name))}
        given |= {word.partition("=")[0] for word in self._fixed}
        lacking = [
            flag.name
            for flag in self._help.flags
            if flag.required and flag.name not in given and not given & set(flag.spellings)
        ]
        if not any(not word.startswith("-") for word in self._fixed):
            lacking += self._help.positionals
        if lacking:
            wrong.append(
                f"{self._path} requires {', '.join(lacking)}, which the space does not have: add "
                "it to the space, or give it to every trial: --trainable-arg args='…'"
            )
        return wrong + self._boolean_mistakes(space)

    def _boolean_mistakes(self, space: Space) -> list[str]:
        return [
            f"{self._path} reads --{name} with type=bool, which takes every text, also 'False', "
            "for true: use action=argparse.BooleanOptionalAction there"
            for name in space.names
            if False in space.options(name) and _plain(name) in _read_with_bool(self._path)
        ]

    def words(self, config: Mapping[str, Any], trial_directory: Path) -> list[str]:
        words = [_placed(word, trial_directory) for word in self._fixed]
        for name, value in config.items():
            words += self._words(name, value, trial_directory)
        return words

    def _words(self, name: str, value: Any, trial_directory: Path) -> list[str]:
        flag, off = self._help.find(name), self._help.find_off(name)
        if value is None:
            return []
        if flag is None or flag.is_switch:
            if value:
                return [flag.name] if flag else []
            return [off] if off else []
        if flag.several and isinstance(value, list | tuple):
            return [flag.name, *(_placed(str(one), trial_directory) for one in value)]
        text = _placed(str(value), trial_directory)
        # With its flag in one word, a value may begin with a dash: -1e-05, -O2.
        return [f"{flag.name}={text}" if flag.name.startswith("--") else f"{flag.name}{text}"]

    def _listed(self) -> str:
        return ", ".join(flag.name for flag in self._help.flags)


class HydraArguments(Arguments):
    """A Hydra application: NAME=VALUE without dashes. Its run directory is the trial's."""

    def __init__(self, path: Path, fixed: tuple[str, ...], names: frozenset[str]) -> None:
        """`names`: of the config's entries, with dots."""
        self._path = path
        self._fixed = fixed
        self._names = names

    def mistakes(self, space: Space) -> list[str]:
        return [
            f"{self._path} has no config entry {name!r}; it has: {', '.join(sorted(self._names))}"
            for name in space.names
            if name.lstrip("+").replace("/", ".") not in self._names and not name.startswith("+")
        ]

    def words(self, config: Mapping[str, Any], trial_directory: Path) -> list[str]:
        words = [_placed(word, trial_directory) for word in self._fixed]
        for name, value in config.items():
            text = "null" if value is None else _placed(str(value), trial_directory)
            words.append(f"{name.replace('/', '.')}={text}")
        return [*words, f"hydra.run.dir={trial_directory}"]


@functools.cache
def read(path: Path, fixed: tuple[str, ...]) -> Arguments:
    """Returns the arguments of a script. `fixed`: words that every trial gets.

    Raises UsageError if the script does not exist, or does not tell its flags.
    """
    require_file(path)
    if _uses_hydra(path):
        return HydraArguments(path, fixed, _hydra_names(_output(path, fixed, "--cfg", "job")))
    help = help_text.parse(_output(path, _subcommands(fixed), "--help"))
    if not help.flags:
        raise UsageError(f"{path} --help shows no flags: give it a flag for each hyper-parameter")
    return FlagArguments(path, fixed, help)


def _subcommands(fixed: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the words before the first flag: a subcommand has a help of its own."""
    first = next((i for i, word in enumerate(fixed) if word.startswith("-")), len(fixed))
    return fixed[:first]


def _output(path: Path, *words: Any) -> str:
    """Returns what the script prints with these words. Raises UsageError if it fails."""
    flat = [word for group in words for word in ([group] if isinstance(group, str) else group)]
    shown = f"{path} {' '.join(flat)}"
    environment = {"COLUMNS": "1000", "TERMINAL_WIDTH": "1000", "NO_COLOR": "1"}
    program = [str(path)]
    if module := as_module(path):
        root, name = module
        program = ["-m", name]
        outer = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(root), *([outer] if outer else [])])
    try:
        done = subprocess.run(
            [sys.executable, *program, *flat],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=HELP_S,
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{shown} takes more than {HELP_S:.0f} s: parse the flags before any slow work"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        missing = how_to_install(path) if last.startswith("ModuleNotFoundError") else ""
        raise UsageError(f"{shown} fails: {last}{missing}")
    return done.stdout or done.stderr  # fire writes its help to standard error


def _placed(text: str, trial_directory: Path) -> str:
    return text.replace(TRIAL_DIRECTORY, str(trial_directory))


def _plain(name: str) -> str:
    return name.replace("-", "_")


# ── The script's source ─────────────────────────────────────────────────────────────────────────


@functools.cache
def _tree(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _uses_hydra(path: Path) -> bool:
    """Whether a function of the script is decorated with hydra.main."""
    for node in ast.walk(_tree(path)):
        for decorator in getattr(node, "decorator_list", ()):
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(call) in ("hydra.main", "hydra_main"):
                return True
    return False


def _hydra_names(text: str) -> frozenset[str]:
    """Returns the entries of a Hydra config, printed as YAML, with dots."""
    import yaml

    def flat(prefix: str, values: Any) -> list[str]:
        if not isinstance(values, dict) or not values:
            return [prefix]
        names = [flat(f"{prefix}.{name}" if prefix else str(name), v) for name, v in values.items()]
        return [prefix, *(name for group in names for name in group)]

    return frozenset(flat("", yaml.safe_load(text))) - {""}


def _read_with_bool(path: Path) -> set[str]:
    """Returns the parameters that argparse reads with type=bool in the script."""
    names = set()
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("add_argument"):
            continue
        if any(k.arg == "type" and ast.unparse(k.value) == "bool" for k in node.keywords):
            spellings = [a.value for a in node.args if isinstance(a, ast.Constant)]
            names |= {_plain(str(spelling).lstrip("-")) for spelling in spellings}
    return names
