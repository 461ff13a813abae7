"""The space: hyper-parameters, their domains and their conditions.

A condition is written once, with its domain, and applies to every searcher:

    SPACE = {
        "conv3_channels": tune.choice([0, 16, 32]),
        "kernel3": when("conv3_channels > 0", tune.choice([3, 5, 7])),
    }

A parameter whose condition does not hold is inactive and gets a canonical value. Two configs that
train the same model are therefore the same config.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.space import domains
from siftune.space.conditions import Condition
from siftune.space.domains import Domain, Value

Config = dict[str, Value]

_GRID_LIMIT = 100_000  # a finite space with more points is not counted one by one


@dataclass(frozen=True, slots=True)
class When:
    """A domain that is active only if `condition` holds."""

    condition: str
    domain: Any


def when(condition: str, domain: Any) -> When:
    """Returns `domain` (a Ray Tune object, text or a value) with a condition on other parameters.

    The condition compares parameters with constants: `conv3_channels > 0`,
    `scheduler == 'step'`, `optimizer in ('adam', 'adamw') and depth >= 2`.
    """
    return When(condition, domain)


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    domain: Domain
    condition: str | None = None


class Space:
    """Parameters and constants. `Space.read` builds a space, which does not change afterwards."""

    def __init__(self, parameters: Mapping[str, Parameter], constants: Mapping[str, Value]) -> None:
        self.parameters = dict(parameters)
        self.constants = dict(constants)
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
        mistakes: list[str] = []
        for name, given in mapping.items():
            if not isinstance(name, str) or not name.isidentifier():
                mistakes.append(f"parameter names must be identifiers, got {name!r}")
                continue
            try:
                domain, condition = _read_entry(given)
                entry_mistakes = domain.mistakes() if domain else _constant_mistakes(given)
                if condition is not None:
                    entry_mistakes += _unknown_mistakes(condition, mapping)
            except (TypeError, ValueError) as error:
                domain, condition, entry_mistakes = None, None, [str(error)]
            mistakes += [f"parameter {name!r}: {mistake}" for mistake in entry_mistakes]
            if entry_mistakes:
                continue
            if domain is None:
                constants[name] = domains.plain(given)
            else:
                parameters[name] = Parameter(name, domain, condition)
        mistakes += _comparison_mistakes(parameters, constants)
        try:
            space = cls(parameters, constants)
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
        mistakes = [
            f"unknown parameter {name!r}; the space has: {', '.join(self.names)}"
            for name in settings
            if name not in self
        ]
        entries = self.to_dict() | {
            name: self._conditioned(name, given) for name, given in settings.items() if name in self
        }
        try:
            space = Space.read(entries)
        except UsageError as error:
            mistakes += error.mistakes
        if mistakes:
            raise UsageError(mistakes)
        return space

    def _conditioned(self, name: str, given: Any) -> Any:
        """Returns `given` with the condition of `name`, unless `given` has its own condition."""
        old = self.parameters.get(name)
        if old is None or old.condition is None:
            return given
        try:
            domain, condition = _read_entry(given)
        except (TypeError, ValueError):
            return given  # `read` reports the mistake
        return When(old.condition, given) if domain and condition is None else given

    def __contains__(self, name: str) -> bool:
        return name in self.parameters or name in self.constants

    @property
    def names(self) -> list[str]:
        return [*self.parameters, *self.constants]

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
        wrong = [
            (name, value)
            for name in other.names
            if name in self and other._is_number(name) and not self._is_number(name)
            for value in self._options(name)
            if isinstance(value, str | list)
        ]
        mistakes = [f"the space has no {', '.join(lacking)}"] * bool(lacking)
        return mistakes + [f"{name} must be a number, got {value!r}" for name, value in wrong]

    def _is_number(self, name: str) -> bool:
        return not any(isinstance(value, str | list) for value in self._options(name))

    def _options(self, name: str) -> tuple[Value, ...]:
        """Returns the values of a constant or a choice; () for other domains, which are numeric."""
        if name in self.constants:
            return (self.constants[name],)
        domain = self.parameters[name].domain
        return domain.options if isinstance(domain, domains.Choice) else ()

    def to_dict(self) -> dict[str, Value]:
        """Returns the space in the form of study.yaml, which `Space.read` accepts."""
        written: dict[str, Value] = {
            p.name: f"{p.domain} if {p.condition}" if p.condition else str(p.domain)
            for p in self.parameters.values()
        }
        return written | self.constants

    # ── Configs ─────────────────────────────────────────────────────────────────────────────────

    def canonical(self, config: Mapping[str, Value]) -> Config:
        """Returns `config` with constants, values snapped to domains, inactive ones at defaults."""
        return self._resolve(config)[0]

    def active(self, config: Mapping[str, Value]) -> Config:
        """Returns the active entries of a config: those whose conditions hold."""
        values, active = self._resolve(config)
        return {name: value for name, value in values.items() if active[name]}

    def _resolve(self, config: Mapping[str, Value]) -> tuple[Config, dict[str, bool]]:
        values = dict(self.constants)
        active = dict.fromkeys(self.constants, True)
        for name in self._order:
            domain, condition = self.parameters[name].domain, self._conditions.get(name)
            active[name] = condition is None or (
                all(active[other] for other in condition.names) and condition.holds(values)
            )
            values[name] = domain.canonical(config[name]) if active[name] else domain.default()
        return {name: values[name] for name in self.names}, active

    def mistakes(self, config: Mapping[str, Value]) -> list[str]:
        """Returns a sentence for each mistake in a config that a user wrote."""
        missing = [f"the config lacks {name!r}" for name in self.parameters if name not in config]
        outside = [
            f"{name} must be in {self.parameters[name].domain}, got {value!r}"
            for name, value in config.items()
            if name in self.parameters and not self.parameters[name].domain.contains(value)
        ]
        return missing + outside

    def sample(self, rng: np.random.Generator) -> Config:
        """Returns a random config, uniform in every coordinate."""
        return self.decode(
            {
                name: float(rng.random()) if p.domain.kind == "unit" else self._draw(rng, p.domain)
                for name, p in self.parameters.items()
            }
        )

    @staticmethod
    def _draw(rng: np.random.Generator, domain: Domain) -> int:
        assert domain.size is not None
        return int(rng.integers(domain.size))

    def encode(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Returns the coordinates of a config by parameter; see siftune.space.domains."""
        return {name: p.domain.encode(config[name]) for name, p in self.parameters.items()}

    def decode(self, coordinates: Mapping[str, float]) -> Config:
        """Returns the canonical config at these coordinates."""
        return self.canonical(
            {name: p.domain.decode(coordinates[name]) for name, p in self.parameters.items()}
        )

    def grid(self) -> Iterator[Config]:
        """Yields every distinct config of a finite space, in the order of the parameters' values.

        Raises UsageError if a domain is continuous; the message says how to discretise it.
        """
        mistakes = [
            f"parameter {name!r} is continuous, so a grid cannot cover it: give it steps, such as "
            f"--set '{name}={_discretised(p.domain)}'"
            for name, p in self.parameters.items()
            if p.domain.size is None
        ]
        if mistakes:
            raise UsageError(mistakes)
        seen = set()
        values = [p.domain.values() or () for p in self.parameters.values()]
        for point in itertools.product(*values):
            config = self.canonical(dict(zip(self.parameters, point, strict=True)))
            if (identity := key(config)) not in seen:
                seen.add(identity)
                yield config

    def size(self) -> int | None:
        """Returns the number of distinct configs; None if infinite or too large to count."""
        sizes = [p.domain.size for p in self.parameters.values()]
        counts = [size for size in sizes if size is not None]
        if len(counts) < len(sizes) or math.prod(counts) > _GRID_LIMIT:
            return None
        return sum(1 for _ in self.grid())


def key(config: Mapping[str, Value]) -> str:
    """Returns a text that identifies a config, whatever the order of its entries."""
    return json.dumps(config, sort_keys=True)


def _discretised(domain: Domain) -> str:
    assert isinstance(domain, domains.Float)
    points = [domain.decode(k / 2) for k in range(3)]
    return f"choice([{', '.join(f'{point:.3g}' for point in points)}])"


def _read_entry(given: Any) -> tuple[Domain | None, str | None]:
    """Returns domain and condition of an entry, (None, None) for a constant. Raises ValueError."""
    if isinstance(given, When):
        domain, inner = _read_entry(given.domain)
        if inner:
            raise ValueError(
                f"two conditions, {given.condition!r} and {inner!r}: join them with 'and'"
            )
        return domain or domains.Choice((domains.plain(given.domain),)), given.condition
    if isinstance(given, domains.Float | domains.Integer | domains.Choice):
        return given, None
    if isinstance(given, str):
        return domains.parse(given) or (None, None)
    return domains.from_ray(given), None


def _constant_mistakes(given: Any) -> list[str]:
    if isinstance(given, dict):
        return ["a space cannot be nested: make each inner parameter an entry of the space"]
    try:
        json.dumps(domains.plain(given))
    except (TypeError, ValueError):
        return [f"a constant must be a number, text, or a list of them, got {given!r}"]
    return []


def _unknown_mistakes(condition: str, space: Mapping[str, Any]) -> list[str]:
    return [
        f"its condition {condition!r} names {unknown!r}, which the space does not have; "
        f"it has: {', '.join(map(str, space))}"
        for unknown in Condition(condition).names
        if unknown not in space
    ]


def _comparison_mistakes(
    parameters: Mapping[str, Parameter], constants: Mapping[str, Value]
) -> list[str]:
    """Returns a sentence for each condition that compares different types, as `optimizer > 3`."""
    options = {name: (value,) for name, value in constants.items()} | {
        # For a numeric domain one value is enough.
        name: p.domain.options if isinstance(p.domain, domains.Choice) else (p.domain.default(),)
        for name, p in parameters.items()
    }
    mistakes = []
    for p in parameters.values():
        condition = Condition(p.condition) if p.condition else None
        if condition is None or not all(name in options for name in condition.names):
            continue
        for values in itertools.product(*(options[name] for name in condition.names)):
            try:
                condition.holds(dict(zip(condition.names, values, strict=True)))
            except TypeError as error:
                mistakes.append(f"parameter {p.name!r}: its condition {p.condition!r}: {error}")
                break
    return mistakes


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
