"""Entries that a user's function draws: `tune.sample_from`."""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.space import domains
from siftune.space.randomness import seeded


@dataclass(frozen=True, slots=True)
class Drawn:
    """An entry whose value a function draws, from the rest of the config or at random.

    A study directory cannot hold a function. It holds `sample_from('FILE.py:NAME', 'ENTRY')`: the
    dictionary `source` and the name of the entry in it, with slashes between nested names.
    """

    entry: Any  # Ray Tune's object
    source: str
    name: str

    def __str__(self) -> str:
        return f"sample_from({self.source!r}, {self.name!r})"


def mark(space: Mapping[Any, Any], source: str, path: tuple[str, ...] = ()) -> dict[Any, Any]:
    """Returns the dictionary `source` of a user's file with each `tune.sample_from` as `Drawn`."""
    marked: dict[Any, Any] = {}
    for name, value in space.items():
        if isinstance(value, dict):
            marked[name] = mark(value, source, (*path, str(name)))
        elif is_function(value):
            marked[name] = Drawn(value, source, "/".join((*path, str(name))))
        else:
            marked[name] = value
    return marked


def unmark(space: Mapping[Any, Any], load: Callable[[str], Mapping[Any, Any]]) -> dict[Any, Any]:
    """Returns the space of a study.yaml with each text `sample_from(…)` as `Drawn`.

    `load` returns the dictionary in a FILE.py:NAME. Raises UsageError if it has no such entry now.
    """
    found: dict[Any, Any] = {}
    for name, value in space.items():
        if isinstance(value, dict):
            found[name] = unmark(value, load)
        elif reference := _reference(value):
            found[name] = _find(load(reference[0]), *reference)
        else:
            found[name] = value
    return found


def draw(
    drawn: Mapping[str, Drawn], given: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Returns a value for each entry. `given`: the rest of the config, as the user wrote the space.

    A function may use the values of other drawn entries. Raises UsageError if a function fails or
    returns a value that cannot be stored.
    """
    config, waiting, values = _Config.of(given), dict(drawn), dict[str, Any]()
    with seeded(rng):
        while waiting:
            failed: dict[str, Exception] = {}
            for name, one in waiting.items():
                try:
                    values[name] = domains.plain(one.entry.sample(config))
                    json.dumps(values[name])
                    config.put(one.name, values[name])
                except Exception as error:
                    failed[name] = error
            # A function that lacks a value is tried again after the others.
            if len(failed) == len(waiting):
                name, cause = next(iter(failed.items()))
                raise UsageError(
                    f"parameter {name!r}: its sample_from function raised "
                    f"{type(cause).__name__}: {cause}"
                ) from cause
            waiting = {name: waiting[name] for name in failed}
    return values


class _Config(dict[str, Any]):
    """A config as Ray Tune passes it to a function: `config["lr"]`, or in the form of earlier
    versions, `spec.config.lr`."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "_Config":
        return cls({k: cls.of(v) if isinstance(v, dict) else v for k, v in values.items()})

    @property
    def config(self) -> "_Config":
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self, name: str, value: Any) -> None:
        """Sets a value. `name`: has slashes between nested names."""
        *outer, last = name.split("/")
        inner = self
        for key in outer:
            inner = inner.setdefault(key, _Config())
        inner[last] = value


def is_function(value: Any) -> bool:
    """Returns whether the value is what `tune.sample_from` returns."""
    kind = type(value)
    return kind.__name__ == "Function" and kind.__module__.startswith("ray.tune.search.sample")


def _reference(value: Any) -> tuple[str, str] | None:
    """Returns source and name of the text `sample_from(SOURCE, NAME)`; None for other values."""
    if not isinstance(value, str) or not value.startswith("sample_from("):
        return None
    try:
        source, name = ast.literal_eval(value.removeprefix("sample_from"))
    except (SyntaxError, TypeError, ValueError):
        return None
    return source, name


def _find(space: Mapping[Any, Any], source: str, name: str) -> Drawn:
    value: Any = space
    for key in name.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, Drawn):
        return value
    raise UsageError(
        f"the space has a sample_from function, {name!r} of {source}, which is no longer there: "
        "restore the file, or start a new study"
    )
