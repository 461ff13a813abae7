"""Conditions on a reported metric that end a study: `--stop "val_accuracy >= 0.99"`."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NEVER = "never"  # no condition; removes those of a study that is resumed
RULE = "METRIC < NUMBER with <, <=, > or >=, such as 'val_accuracy >= 0.99'"

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([^<>=\s][^<>=]*?)\s*(<=|>=|<|>)\s*([^<>=\s]+)\s*")


@dataclass(frozen=True, slots=True)
class StopCondition:
    """A metric compared with a number."""

    text: str
    metric: str
    operator: str
    bound: float

    def holds(self, metrics: Mapping[str, Any]) -> bool:
        """Returns whether the metric is reported, is a number, and compares as asked."""
        value = metrics.get(self.metric)
        return isinstance(value, int | float) and _OPERATORS[self.operator](value, self.bound)


def parse(texts: Iterable[str]) -> list[StopCondition]:
    """Returns the conditions that the texts stand for. Raises ValueError."""
    return [_parse(text) for text in texts if text.strip() != NEVER]


def _parse(text: str) -> StopCondition:
    match = _CONDITION.fullmatch(text)
    bound = float(match[3]) if match else math.nan
    if match is None or not math.isfinite(bound):
        raise ValueError(f"a condition must be {RULE}, got {text!r}")
    return StopCondition(text.strip(), match[1], match[2], bound)
