"""Known configs, which are the first trials of a study: `--try` and `--try-file`.

A known config may name only some parameters. The study draws random values for the others.
"""

import csv
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.space import Config, Space, domains
from siftune.space.conditions import Condition
from siftune.space.domains import Value
from siftune.study.text import load_yaml, parse_value

_SHOWN = 60  # letters of a config in a message


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


def read(given: str | Path) -> list[Config]:
    """Returns the config in `NAME=VALUE NAME=VALUE`, or the configs in a file.

    Values stay text until they are compared with a space. Raises UsageError.
    """
    return _read_file(given) if isinstance(given, Path) else [_read_text(given)]


def _read_text(text: str) -> Config:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--try cannot read {text!r}: {error}") from None
    config: Config = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(
                f"--try must be 'NAME=VALUE NAME=VALUE', with quotes around a value that has "
                f"spaces, got {text!r}"
            )
        config[name] = value
    return config


def _read_file(path: Path) -> list[Config]:
    if path.suffix == ".csv":
        configs = _read_csv(path)
    elif path.suffix in (".yaml", ".yml"):
        configs = load_yaml(path)
    else:
        raise UsageError(f"--try-file must be FILE.yaml or FILE.csv, got {str(path)!r}")
    if not isinstance(configs, list) or not all(isinstance(c, dict) and c for c in configs):
        raise UsageError(f"{path} must contain a list of configs, each with names and values")
    if not configs:
        raise UsageError(f"{path} contains no config")
    return configs


def _read_csv(path: Path) -> list[Config]:
    """Returns a config for each row. An empty cell does not name the parameter of its column."""
    configs: list[Config] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            for row in rows:
                if None in row:
                    raise UsageError(f"{path}, line {rows.line_num}: more cells than names")
                cells = {name.strip(): (cell or "").strip() for name, cell in row.items()}
                configs.append({name: cell for name, cell in cells.items() if cell})
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a valid CSV file: {error}") from None
    return configs


# ── Checks ──────────────────────────────────────────────────────────────────────────────────────


def check(configs: list[Config], space: Space) -> tuple[list[Config], list[str]]:
    """Returns the configs with the values that the space has for them, and a sentence for each
    mistake: an unknown name, a value outside the space, or a parameter that has no effect."""
    checked: list[Config] = []
    wrong: dict[str, list[int]] = {}  # the numbers of the configs with this mistake
    for number, given in enumerate(configs, start=1):
        config, mistakes = _check(given, space)
        checked.append(config)
        for mistake in mistakes or _inactive(config, space):
            wrong.setdefault(mistake, []).append(number)
    sentences = []
    for mistake, numbers in wrong.items():
        first = numbers[0]
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        shown = _shown(configs[first - 1])
        sentences.append(f"--try config {first} ({shown}){others}: {mistake}")
    return checked, sentences


def _check(given: Config, space: Space) -> tuple[Config, list[str]]:
    config: Config = {}
    mistakes: list[str] = []
    for name, value in flat(given, space):
        try:
            config[name] = value_in(space, name, value)
        except ValueError as error:
            mistakes.append(str(error))
    return config, mistakes


def flat(
    given: Mapping[Any, Any], space: Space, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Value]]:
    """Yields the names and values of a config, with the names of nested entries as in the space."""
    for key, value in given.items():
        parts = (*path, str(key))
        dotted, slashed = "/".join(parts), "/".join(parts).replace(".", "/")
        name = slashed if dotted not in space and slashed in space else dotted
        if isinstance(value, dict) and value and name not in space:
            yield from flat(value, space, parts)
        else:
            yield name, value


def value_in(space: Space, name: str, given: Value) -> Value:
    """Returns the value of the space that a value or its text stands for. Raises ValueError."""
    if name not in space:
        raise ValueError(f"unknown parameter {name!r}; the space has: {', '.join(space.names)}")
    readings = [given, parse_value(given)] if isinstance(given, str) else [given]
    if name in space.drawn:
        return domains.plain(readings[-1])
    if name in space.constants:
        fixed = space.constants[name]
        if any(_same(value, fixed) for value in readings):
            return fixed
        raise ValueError(f"{name} has the fixed value {fixed!r} in the space, got {_text(given)}")
    domain = space.parameters[name].domain
    for value in readings:
        if domain.contains(value) and _same(domain.canonical(value), value):
            return domain.canonical(value)
    raise ValueError(f"{name} must be in {domain}, got {_text(given)}")


def _same(value: Value, other: Value) -> bool:
    """Returns whether two values are equal, up to rounding errors of numbers."""
    numbers = isinstance(value, int | float) and isinstance(other, int | float)
    if numbers and math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12):
        return True
    return bool(domains.plain(value) == domains.plain(other))


def _inactive(config: Config, space: Space) -> Iterator[str]:
    """Yields a sentence for each parameter whose condition does not hold, or depends on parameters
    that the config does not name."""
    conditional = {
        name: condition
        for name in config
        if name in space.parameters and (condition := space.parameters[name].condition)
    }
    defaults = {name: p.domain.default() for name, p in space.parameters.items()}
    active = space.active(defaults | config)
    for name, condition in conditional.items():
        unnamed = [
            other
            for other in Condition(condition).names
            if other not in config and other not in space.constants
        ]
        if unnamed:
            yield f"{name} has an effect only if {condition}: name {', '.join(unnamed)} as well"
        elif name not in active:
            yield f"{name} has no effect, because it needs {condition}: leave it out"


def _shown(config: Config) -> str:
    words = " ".join(f"{name}={_text(value)}" for name, value in config.items())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"


def _text(value: Value) -> str:
    return value if isinstance(value, str) else repr(value)


# ── Completion ──────────────────────────────────────────────────────────────────────────────────


def complete(config: Config, space: Space, rng: np.random.Generator) -> Config:
    """Returns a checked config with random values for the parameters that it does not name.

    Raises UsageError as `Space.draw` does.
    """
    values = space.sample(rng) | config
    drawn = [name for name in space.drawn if name not in config]
    whole = space.canonical({name: v for name, v in values.items() if name not in drawn})
    for name in drawn:
        whole[name] = space.drawn[name].draw(name, space.given(whole), rng)
    return whole
