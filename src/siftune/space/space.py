"""The space: hyper-parameters, their domains and their conditions.

A condition is written once, with its domain, and applies to every searcher:

    SPACE = {
        "conv3_channels": tune.choice([0, 16, 32]),
        "kernel3": when("conv3_channels > 0", tune.choice([3, 5, 7])),
    }

A parameter whose condition does not hold is inactive and gets a canonical value. Two configs that
train the same model are therefore the same config.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.space import domains, entries, grids
from siftune.space.conditions import Condition, with_slashes
from siftune.space.domains import Domain, Value
from siftune.space.drawn import Drawn
from siftune.space.entries import Parameter, When

Config = dict[str, Value]

_GRID_LIMIT = 100_000  # a finite space with more points is not counted one by one


class Space:
    """Parameters, constants, and entries that a function draws (`tune.sample_from`).

    `Space.read` builds a space, which does not change afterwards.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        constants: Mapping[str, Value],
        nested: Mapping[str, tuple[Any, ...]] | None = None,
        drawn: Mapping[str, Drawn] | None = None,
        order: Sequence[str] = (),
    ) -> None:
        """`nested`: names that stand for entries of nested dictionaries, with their paths.
        `order`: all names in the order in which the user wrote them."""
        self.parameters = dict(parameters)
        self.constants = {name: domains.plain(value) for name, value in constants.items()}
        self._given = dict(constants)  # with tuples
        self._nested = dict(nested or {})
        self.drawn = dict(drawn or {})
        self._written = order or self.names
        self._conditions = {
            p.name: Condition(p.condition) for p in self.parameters.values() if p.condition
        }
        self._order = _dependency_order(self._conditions, self.parameters)

    @classmethod
    def read(cls, mapping: Mapping[str, Any]) -> "Space":
        """Builds a space from a dictionary of Ray Tune domains, domains as text, and constants.

        Raises UsageError with every mistake, such as a malformed domain, or a condition that
        cannot be parsed or that names an unknown parameter.
        """
        parameters: dict[str, Parameter] = {}
        constants: dict[str, Value] = {}
        drawn: dict[str, Drawn] = {}
        mistakes: list[str] = []
        listed, nested = entries.flat(mapping)
        for name, given in listed:
            if not isinstance(name, str) or not entries.NAME.fullmatch(name):
                mistakes.append(
                    "parameter names must be letters and digits with '_', '.', '-' or '/' between "
                    f"them, got {name!r}"
                )
                continue
            if name in parameters or name in constants or name in drawn:
                mistakes.append(f"parameter {name!r} is given twice, flat and nested")
                continue
            try:
                domain, condition = entries.read_entry(given)
                entry_mistakes = entries.mistakes(domain, given)
                if condition is not None:
                    condition = with_slashes(condition, nested)
                    entry_mistakes += entries.condition_mistakes(condition, domain, dict(listed))
            except (TypeError, ValueError) as error:
                domain, condition, entry_mistakes = None, None, [str(error)]
            mistakes += [f"parameter {name!r}: {mistake}" for mistake in entry_mistakes]
            if entry_mistakes:
                continue
            if domain is None:
                constants[name] = domains.scalar(given)
            elif isinstance(domain, Drawn):
                drawn[name] = domain
            else:
                parameters[name] = Parameter(name, domain, condition)
        mistakes += entries.comparison_mistakes(parameters, constants)
        mistakes += entries.drawn_mistakes(parameters, drawn)
        try:
            space = cls(parameters, constants, nested, drawn, [name for name, _ in listed])
        except UsageError as error:
            mistakes += error.mistakes
        if mistakes:
            raise UsageError(mistakes)
        return space

    def override(self, settings: Mapping[str, Any]) -> "Space":
        """Returns a space with some entries replaced. Conditions stay unless new ones are given.

        Raises UsageError for names that are not in the space, and for the same mistakes as
        `read`.
        """
        # A nested entry may be named with dots, as most command lines have it.
        changes = {self._named(name): given for name, given in settings.items()}
        mistakes = [
            f"unknown parameter {name!r}; the space has: {', '.join(self.names)}"
            for name in changes
            if name not in self
        ]
        entries = (
            self.texts()
            | self.drawn
            | {
                name: self._conditioned(name, given)
                for name, given in changes.items()
                if name in self
            }
        )
        try:
            space = Space.read(self._nest(entries))
        except UsageError as error:
            mistakes += error.mistakes
        if mistakes:
            raise UsageError(mistakes)
        return space

    def _named(self, name: str) -> str:
        slashed = name.replace(".", "/")
        return slashed if name not in self and slashed in self._nested else name

    def _conditioned(self, name: str, given: Any) -> Any:
        """Returns `given` with the condition of `name`, unless `given` has its own condition."""
        old = self.parameters.get(name)
        if old is None or old.condition is None:
            return given
        try:
            domain, condition = entries.read_entry(given)
        except (TypeError, ValueError):
            return given  # `read` reports the mistake
        return When(old.condition, given) if domain and condition is None else given

    def __contains__(self, name: str) -> bool:
        return name in self.parameters or name in self.constants or name in self.drawn

    @property
    def names(self) -> list[str]:
        return [*self.parameters, *self.constants, *self.drawn]

    def bounds(self, name: str) -> tuple[Any, Any]:
        """Returns the smallest and the largest value of a numeric parameter or constant."""
        if name in self.constants:
            return self.constants[name], self.constants[name]
        domain = self.parameters[name].domain
        if isinstance(domain, domains.Choice):
            return min(domain.options), max(domain.options)
        return domain.low, domain.high

    def unfit(self, other: "Space") -> list[str]:
        """Returns the reasons why this space cannot replace the other: names that it lacks, and
        text or lists where the other has numbers."""
        lacking = [
            name
            for name in other.names
            if name not in self
            and (name in other.constants or not other.parameters[name].condition)
        ]
        drawn = [name for name in other.names if name in self.drawn]
        wrong = [
            (name, value)
            for name in other.names
            if name in self and other._is_number(name) and not self._is_number(name)
            for value in self.options(name)
            if isinstance(value, str | list)
        ]
        mistakes = [f"the space has no {', '.join(lacking)}"] * bool(lacking)
        mistakes += [
            f"{name} must be a domain or a value: the values of a sample_from cannot be checked "
            "before the study starts"
            for name in drawn
        ]
        return mistakes + [f"{name} must be a number, got {value!r}" for name, value in wrong]

    def _is_number(self, name: str) -> bool:
        return not any(isinstance(value, str | list) for value in self.options(name))

    def options(self, name: str) -> tuple[Value, ...]:
        """Returns the values of a constant or a choice; () for other domains, which are numeric,
        and for `sample_from`."""
        if name in self.constants:
            return (self.constants[name],)
        if name in self.drawn:
            return ()
        domain = self.parameters[name].domain
        return domain.options if isinstance(domain, domains.Choice) else ()

    def to_dict(self) -> dict[str, Value]:
        """Returns the space as text that `Space.read` takes, as study.yaml holds it."""
        return self._nest(self.texts())

    def texts(self) -> dict[str, Value]:
        """Returns the domains and the `sample_from` entries as text, and the constants, by name, in
        the order in which the user wrote them."""
        written: dict[str, Value] = {
            p.name: f"{p.domain} if {p.condition}" if p.condition else str(p.domain)
            for p in self.parameters.values()
        }
        written |= self._given | {name: str(entry) for name, entry in self.drawn.items()}
        return {name: written[name] for name in self._written}

    def _nest(self, values: Mapping[str, Value]) -> dict[str, Value]:
        whole: dict[Any, Value] = {}
        for name, value in values.items():
            *outer, last = self._nested.get(name, (name,))
            inner = whole
            for key_ in outer:
                inner = inner.setdefault(key_, {})
            inner[last] = value
        return whole

    # ── Configs ─────────────────────────────────────────────────────────────────────────────────

    def canonical(self, config: Mapping[str, Value]) -> Config:
        """Returns `config` with the constants added, values snapped to their domains, and inactive
        parameters set to their defaults."""
        return self._resolve(config)[0]

    def given(self, config: Mapping[str, Value]) -> dict[str, Value]:
        """Returns a config as the user wrote the space: nested, and with tuples."""
        values = dict(config)
        for name, value in config.items():
            if name in self._given:
                values[name] = self._given[name]
            elif (p := self.parameters.get(name)) and isinstance(p.domain, domains.Choice):
                with suppress(ValueError):  # a config of an earlier space
                    values[name] = p.domain.canonical(value)
        return self._nest(values)

    def active(self, config: Mapping[str, Value]) -> Config:
        """Returns the active entries of a config: those whose conditions hold."""
        values, active = self._resolve(config)
        return {name: value for name, value in values.items() if active[name]}

    def _resolve(self, config: Mapping[str, Value]) -> tuple[Config, dict[str, bool]]:
        values = dict(self.constants)
        values |= {name: config[name] for name in self.drawn if name in config}
        active = dict.fromkeys(values, True)
        for name in self._order:
            domain, condition = self.parameters[name].domain, self._conditions.get(name)
            active[name] = condition is None or (
                all(active[other] for other in condition.names) and condition.holds(values)
            )
            values[name] = domain.canonical(config[name]) if active[name] else domain.default()
        return {name: values[name] for name in self.names if name in values}, active

    def mistakes(self, config: Mapping[str, Value]) -> list[str]:
        """Returns a sentence for each mistake in a config that a user wrote."""
        needed = (*self.parameters, *self.drawn)
        missing = [f"the config lacks {name!r}" for name in needed if name not in config]
        outside = [
            f"{name} must be in {self.parameters[name].domain}, got {value!r}"
            for name, value in config.items()
            if name in self.parameters and not self.parameters[name].domain.contains(value)
        ]
        return missing + outside

    def sample(self, rng: np.random.Generator) -> Config:
        """Returns a random config, uniform in every coordinate. Raises UsageError as `draw`."""
        config = self.decode(
            {
                name: float(rng.random()) if p.domain.kind == "unit" else self._draw(rng, p.domain)
                for name, p in self.parameters.items()
            }
        )
        return self.draw(config, rng)

    def draw(self, config: Mapping[str, Value], rng: np.random.Generator) -> Config:
        """Returns `config` with the values of the `sample_from` entries, in order of appearance.

        Raises UsageError if one of their functions fails.
        """
        values = dict(config)
        for name, entry in self.drawn.items():
            values[name] = entry.draw(name, self.given(values), rng)
        return values

    @staticmethod
    def _draw(rng: np.random.Generator, domain: Domain) -> int:
        assert domain.size is not None
        return int(rng.integers(domain.size))

    def encode(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Returns the coordinates of a config by parameter; see siftune.space.domains."""
        return {name: p.domain.encode(config[name]) for name, p in self.parameters.items()}

    def identity(self, config: Mapping[str, Value]) -> str:
        """Returns the same text for configs that are the same in single precision, in which some
        searchers compute."""
        try:
            coordinates = self.encode(config)
        except (TypeError, ValueError):  # a value that is not in the space
            return key(config)
        rounded = {name: float(np.float32(u)) for name, u in coordinates.items()}
        return key(rounded | {name: config.get(name) for name in self.drawn})

    def decode(self, coordinates: Mapping[str, float]) -> Config:
        """Returns the canonical config at these coordinates, without `sample_from` entries."""
        return self.canonical(
            {name: p.domain.decode(coordinates[name]) for name, p in self.parameters.items()}
        )

    def grid(self) -> Iterator[Config]:
        """Yields every distinct config of a finite space, in the order of the parameters' values.

        The configs lack the `sample_from` entries; see `draw`.
        Raises UsageError if a domain is continuous; the message says how to discretise it.
        """
        mistakes = [
            f"parameter {name!r} is continuous, so a grid cannot cover it: give it steps, such as "
            f"--set '{name}={grids.discretised(p.domain)}'"
            for name, p in self.parameters.items()
            if p.domain.size is None
        ]
        if mistakes:
            raise UsageError(mistakes)
        seen = set()
        values = [p.domain.values() or () for p in self.parameters.values()]
        for point in grids.product(values):
            config = self.canonical(dict(zip(self.parameters, point, strict=True)))
            if (identity := key(config)) not in seen:
                seen.add(identity)
                yield config

    def points(self) -> int:
        """Returns the number of points of a finite space, before equal configs are taken together;
        0 if a domain is continuous."""
        return math.prod(p.domain.size or 0 for p in self.parameters.values())

    def size(self) -> int | None:
        """Returns the number of distinct configs, in which `sample_from` entries do not count; None
        if infinite or too large to count."""
        sizes = [p.domain.size for p in self.parameters.values()]
        counts = [size for size in sizes if size is not None]
        if len(counts) < len(sizes) or math.prod(counts) > _GRID_LIMIT:
            return None
        return sum(1 for _ in self.grid())


def key(config: Mapping[str, Value]) -> str:
    """Returns a text that identifies a config, whatever the order of its entries."""
    return json.dumps(config, sort_keys=True)


def _dependency_order(
    conditions: Mapping[str, Condition], parameters: Mapping[str, Parameter]
) -> list[str]:
    """Returns the parameters, each after those that its condition names.

    Raises UsageError if conditions depend on one another.
    """
    order: list[str] = []
    waiting = list(parameters)
    while waiting:
        ready = [
            name
            for name in waiting
            if name not in conditions
            or not any(other in waiting for other in conditions[name].names)
        ]
        if not ready:
            raise UsageError(f"the conditions of {', '.join(waiting)} depend on one another")
        order += ready
        waiting = [name for name in waiting if name not in ready]
    return order
