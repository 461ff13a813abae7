"""The metrics that a user's code reports, as JSON can hold them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

_MOST_BITS = 1023  # of a whole number that a float can hold
_LONGEST_TEXT = 2000  # characters of a metric that is neither a number nor a list


def plain(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """The same metrics with names of text and values of JSON.

    Nested dictionaries are flattened, their names joined by a slash. Scalars of numpy and torch
    become numbers. Whatever JSON does not know becomes text, and so do whole numbers that no float
    can hold: nothing that compares or draws metrics could take them. Raises TypeError if `metrics`
    is no mapping.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"tune.report takes a dictionary of metrics, got {type(metrics).__name__}: "
            'tune.report({"loss": value})'
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
        with suppress(Exception):  # whatever somebody's `item` raises
            value = value.item()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        sign = "negative " if value < 0 else ""
        return f"a {sign}whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        # A lone surrogate could be written to no file.
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    try:
        return str(value)[:_LONGEST_TEXT]
    except Exception as error:
        return f"a {type(value).__name__} whose text cannot be had: {type(error).__name__}"
