"""Names to classes, imported only when one is used, and the options that a class takes.

A registry is a plain dictionary from name to "module:Class". The options of a class are the
keyword-only parameters of its constructor that have a default.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from siftune.errors import UsageError


def load(registry: Mapping[str, str], name: str) -> Any:
    """The class of that name."""
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def options(cls: Any) -> dict[str, Any]:
    """Names and defaults of the options that `cls` takes."""
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
    }


def option_mistakes(what: str, name: str, cls: Any, given: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that `cls`, the `what` called `name`, does not take."""
    known = options(cls)
    listed = ", ".join(f"{option}={default!r}" for option, default in known.items()) or "none"
    return [
        f"{what} {name!r} has no option {option!r}; it has: {listed}"
        for option in given
        if option not in known
    ]


def name_mistakes(what: str, name: str, registry: Mapping[str, str]) -> list[str]:
    """[] if `name` is in the registry, else a sentence with the names that are."""
    return [] if name in registry else [f"unknown {what} {name!r}; known: {', '.join(registry)}"]


def build(
    what: str, registry: Mapping[str, str], name: str, given: Mapping[str, Any], **needed: Any
) -> Any:
    """An instance of `registry[name]`. Raises UsageError for unknown or impossible options."""
    cls = load(registry, name)
    if mistakes := option_mistakes(what, name, cls, given):
        raise UsageError(mistakes)
    try:
        return cls(**needed, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} {name!r}: {error}") from None
