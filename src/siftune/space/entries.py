"""The entries of a space as users write them: domains, conditions, constants, dictionaries."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siftune.space import domains, text
from siftune.space.conditions import Condition
from siftune.space.domains import Domain, Value
from siftune.space.drawn import Drawn

NAME = re.compile(r"[A-Za-z_0-9]+([./-][A-Za-z_0-9]+)*")


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


def flat(
    mapping: Mapping[Any, Any], path: tuple[Any, ...] = ()
) -> tuple[list[tuple[Any, Any]], dict[str, tuple[Any, ...]]]:
    """Returns the entries of nested dictionaries, their names joined by slashes, and the paths of
    those that are nested. Keys in a path are as they were given, such as the number 1."""
    entries: list[tuple[Any, Any]] = []
    nested: dict[str, tuple[Any, ...]] = {}
    for name, value in mapping.items():
        if isinstance(value, dict) and value and "grid_search" not in value:
            inner, paths = flat(value, (*path, name))
            entries += inner
            nested |= paths
        elif path:
            joined = "/".join(map(str, (*path, name)))
            entries.append((joined, value))
            nested[joined] = (*path, name)
        else:
            entries.append((name, value))
    return entries, nested


def read_entry(given: Any) -> tuple[Domain | Drawn | None, str | None]:
    """Returns domain and condition of an entry, (None, None) for a constant. Raises ValueError."""
    if isinstance(given, Drawn):
        return given, None
    if isinstance(given, When):
        domain, inner = read_entry(given.domain)
        if inner:
            raise ValueError(
                f"two conditions, {given.condition!r} and {inner!r}: join them with 'and'"
            )
        return domain or domains.Choice((domains.plain(given.domain),)), given.condition
    if isinstance(given, domains.Float | domains.Integer | domains.Choice):
        return given, None
    if isinstance(given, str):
        return text.parse(given) or (None, None)
    return text.from_ray(given), None


def mistakes(domain: Domain | Drawn | None, given: Any) -> list[str]:
    """Returns a sentence for each mistake in an entry, besides those in its condition."""
    if domain is None:
        return constant_mistakes(given)
    return [] if isinstance(domain, Drawn) else domain.mistakes()


def constant_mistakes(given: Any) -> list[str]:
    if isinstance(given, dict) and given:
        return ["grid_search must be the only entry of its dictionary"]
    try:
        json.dumps(domains.plain(given))
    except (TypeError, ValueError):
        return [f"a constant must be a number, text, or a list of them, got {given!r}"]
    return []


def condition_mistakes(
    condition: str, domain: Domain | Drawn | None, space: Mapping[str, Any]
) -> list[str]:
    if isinstance(domain, Drawn):
        return [
            f"sample_from cannot have the condition {condition!r}: its function gets the config "
            "and can return None"
        ]
    return [
        f"its condition {condition!r} names {unknown!r}, which the space does not have; "
        f"it has: {', '.join(map(str, space))}"
        for unknown in Condition(condition).names
        if unknown not in space
    ]


def drawn_mistakes(parameters: Mapping[str, Parameter], drawn: Mapping[str, Drawn]) -> list[str]:
    """Returns a sentence for each condition that depends on the value of a `sample_from`."""
    return [
        f"parameter {p.name!r}: its condition {p.condition!r} names {name!r}, which is a "
        "sample_from: a condition must name entries with domains or fixed values"
        for p in parameters.values()
        if p.condition
        for name in Condition(p.condition).names
        if name in drawn
    ]


def comparison_mistakes(
    parameters: Mapping[str, Parameter], constants: Mapping[str, Value]
) -> list[str]:
    """Returns a sentence for each condition that compares different types, e.g. `optimizer > 3`."""
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
