"""Catalogues: the names of searchers, schedulers and trainables, and the class of each.

A class is imported only when it is used, because its libraries take seconds to import. Its options
are the keyword-only parameters of its constructor that have a default value.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from siftune.errors import UsageError


class Catalogue(Mapping[str, str]):
    """Maps each name to the text "module:Class"."""

    def __init__(self, kind: str, classes: Mapping[str, str]) -> None:
        """`kind`: the word for an entry in error messages, such as "searcher"."""
        self.kind = kind
        self._classes = dict(classes)

    def __getitem__(self, name: str) -> str:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def module(self, name: str) -> str:
        """Returns the name of the module that holds the class."""
        return self[name].partition(":")[0]

    def load(self, name: str) -> Any:
        """Imports and returns the class."""
        module, _, attribute = self[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{self.kind} {name!r} needs the package {error.name!r}, which is not installed: "
                "use the image or `make setup`, which have it, or install it"
            ) from error

    def name_mistakes(self, name: str, *, also: tuple[str, ...] = ()) -> list[str]:
        """Returns a message that lists the known names if `name` is unknown, else []."""
        known = (*also, *self)
        return [] if name in known else [f"unknown {self.kind} {name!r}; known: {', '.join(known)}"]

    def options(self, name: str) -> dict[str, Any]:
        """Returns the options of the class with their defaults."""
        parameters = inspect.signature(self.load(name)).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
        }

    def option_mistakes(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """Returns a message for each given option that the class does not have."""
        known = self.options(name)
        listed = ", ".join(f"{option}={default!r}" for option, default in known.items()) or "none"
        return [
            f"{self.kind} {name!r} has no option {option!r}; it has: {listed}"
            for option in given
            if option not in known
        ]

    def build(self, name: str, given: Mapping[str, Any], **needed: Any) -> Any:
        """Returns an instance. `needed`: arguments that are not options.

        Raises UsageError for unknown options, and for values that the class rejects.
        """
        if mistakes := self.option_mistakes(name, given):
            raise UsageError(mistakes)
        try:
            return self.load(name)(**needed, **given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.kind} {name!r}: {error}") from None
