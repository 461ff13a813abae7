"""Converts the metrics that the user's code reports to JSON values."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

_MAX_BITS = 1023  # of an integer that a float can hold
_MAX_TEXT = 2000  # characters kept of a value that is converted to text


def plain(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the metrics with string keys and JSON-compatible values.

    Nested dictionaries are flattened and their keys joined by a slash. NumPy and torch scalars
    become numbers. Values that JSON cannot hold become text. So do integers that no float can hold,
    because they can be neither compared nor plotted. Raises TypeError if `metrics` is not a
    mapping.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"tune.report takes a dictionary of metrics, got {type(metrics).__name__}: "
            'call tune.report({"loss": value})'
        )
    return dict(_flat("", metrics))


def _flat(prefix: str, metrics: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{path}/", value)
        else:
            yield path, _plain(value)


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        with suppress(Exception):  # the value's own `item` may raise anything
            value = value.item()
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        sign = "negative " if value < 0 else ""
        return f"a {sign}whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        # A lone surrogate could not be written to a file.
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    try:
        return str(value)[:_MAX_TEXT]
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown as text: {type(error).__name__}"
