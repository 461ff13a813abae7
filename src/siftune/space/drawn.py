"""Entries of a space whose values a function returns: Ray Tune's `sample_from`.

The function gets the config of the other entries. It is called once per config, and its value is
written to the journal. study.yaml cannot hold a function. It holds the file and the name of the
dictionary that the function is in: `sample_from('/home/me/my_space.py:SPACE')`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.space import domains
from siftune.space.domains import Value


@dataclass(frozen=True, slots=True)
class Drawn:
    """A `sample_from` entry. `source`: FILE.py:NAME. `function`: None until the file is loaded."""

    source: str = ""
    function: Callable[[dict[str, Any]], Any] | None = None

    def draw(self, name: str, config: Mapping[str, Any], rng: np.random.Generator) -> Value:
        """Returns the value of the entry `name` for a config, as JSON holds it.

        The global random generators are seeded from `rng` during the call. Raises UsageError if the
        function raises, or if JSON cannot hold the value.
        """
        from siftune.space.randomness import seeded  # loads a library that only proposals need

        if self.function is None:
            raise UsageError(f"sample_from of {name!r} needs its function, in {self.source!r}")
        try:
            with seeded(rng):
                value = domains.plain(self.function(_Config(_readable(config))))
        except Exception as error:
            raise UsageError(
                f"sample_from of {name!r} raised {type(error).__name__}: {error}. Its function "
                "gets the config without the sample_from entries that come later in the space"
            ) from error
        try:
            return json.loads(json.dumps(value))
        except (TypeError, ValueError):
            raise UsageError(
                f"sample_from of {name!r} must return a number, text, or a list or dictionary of "
                f"them, got {value!r}"
            ) from None

    def __str__(self) -> str:
        return f"sample_from({self.source!r})"


def from_ray(value: Any) -> Drawn | None:
    """Returns the entry for what `tune.sample_from` returns, and None for another object."""
    if type(value).__module__.startswith("ray.tune.search.sample") and value.is_function():
        return Drawn(function=value.sample)  # it also calls functions without an argument
    return None


def named(space: Mapping[Any, Any], source: str) -> dict[Any, Any]:
    """Returns the dictionary `source` of a file, whose `sample_from` entries know this name."""
    entries = dict(space)
    for name, value in space.items():
        if isinstance(value, dict):
            entries[name] = named(value, source)
        elif entry := from_ray(value):
            entries[name] = replace(entry, source=source)
    return entries


class _Entries(dict[str, Any]):
    """A dictionary whose entries are also attributes, as in Ray Tune's `spec.config.lr`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class _Config(_Entries):
    """A config, which is also its own entry `config`: Ray Tune passed `spec` before."""

    def __missing__(self, name: str) -> Any:
        if name == "config":
            return self
        raise KeyError(name)


def _readable(config: Mapping[str, Any]) -> _Entries:
    return _Entries({k: _readable(v) if isinstance(v, dict) else v for k, v in config.items()})
