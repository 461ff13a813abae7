"""The metrics of an epoch as the journal can hold them."""

import sys
from collections.abc import Mapping
from typing import Any


def recordable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, with whole numbers beyond the range of a float in words.

    Python computes with such numbers but does not write those of more than 4300 digits, and nothing
    that compares or draws metrics can take them.
    """
    return {name: _recordable(value) for name, value in metrics.items()}


def _recordable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return recordable(value)
    if isinstance(value, list | tuple):
        return [_recordable(entry) for entry in value]
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        sign = "negative " if value < 0 else ""
        return f"a {sign}whole number of {value.bit_length()} bits"
    return value
