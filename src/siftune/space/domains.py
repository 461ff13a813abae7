"""The domain of one hyper-parameter, and the coordinates by which searchers see its values.

A domain has three equivalent forms: a Ray Tune object (`tune.loguniform(1e-5, 1e-2)`), text
(`loguniform(1e-5, 1e-2)`, in YAML, study.yaml and `--set`), and one of the three classes below.
The rest of siftune works with the classes.

Searchers work with coordinates and not with values. There are three kinds of coordinates:

    unit       a float in [0, 1], linear or logarithmic: real numbers, integers on a log scale
    level      an int in 0..size-1 whose order has a meaning: integers, numeric choices
    category   an int in 0..size-1 whose order has no meaning: other choices
"""

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

Value = Any  # a YAML value: str, int, float, bool, None, or a list of them
Kind = Literal["unit", "level", "category"]

_MOST_LEVELS = 10_000  # of an integer; with more it is continuous for searchers


@dataclass(frozen=True, slots=True)
class Float:
    """A real number in [low, high]; only multiples of `step` if that is given."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def mistakes(self) -> list[str]:
        return _range_mistakes(self.low, self.high, self.log, self.step)

    @property
    def kind(self) -> Kind:
        return "unit"

    @property
    def size(self) -> int | None:
        """The number of values, or None if the domain is continuous."""
        if self.low == self.high:
            return 1
        return None if self.step is None else len(self._multiples(self.step))

    def encode(self, value: Value) -> float:
        if self.low == self.high:
            return 0.0
        low, high = self._scaled(self.low), self._scaled(self.high)
        return min(1.0, max(0.0, (self._scaled(value) - low) / (high - low)))

    def decode(self, coordinate: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + coordinate * (high - low)
        return self.canonical(math.exp(value) if self.log else value)

    def canonical(self, value: Value) -> float:
        if self.step is not None and self.low < self.high:
            multiples = self._multiples(self.step)
            k = min(multiples[-1], max(multiples[0], round(value / self.step)))
            # Rounded to 12 digits, so that 3 * 0.1 equals 0.3, however the value was computed.
            value = float(f"{k * self.step:.12g}")
        return float(min(self.high, max(self.low, value))) + 0.0  # not -0.0

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def default(self) -> float:
        return self.canonical(self.low)

    def values(self) -> Sequence[float] | None:
        if self.low == self.high:
            return (self.canonical(self.low),)
        if self.step is None:
            return None
        return [self.canonical(k * self.step) for k in self._multiples(self.step)]

    def __str__(self) -> str:
        name = ("q" if self.step is not None else "") + ("log" if self.log else "") + "uniform"
        step = "" if self.step is None else f", {self.step!r}"
        return f"{name}({self.low!r}, {self.high!r}{step})"

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _multiples(self, step: float) -> range:
        return _multiples(self.low, self.high, step)


@dataclass(frozen=True, slots=True)
class Normal(Float):
    """A normally distributed number. Its coordinate is its quantile, so every searcher can work
    with it; values beyond six standard deviations are not proposed."""

    mean: float = 0.0
    sd: float = 1.0

    @classmethod
    def of(cls, mean: float, sd: float, step: float | None = None) -> "Normal":
        return cls(mean - 6 * sd, mean + 6 * sd, step=step, mean=mean, sd=sd)

    def mistakes(self) -> list[str]:
        if not _is_number(self.sd) or not self.sd > 0:
            return [f"the standard deviation must be above 0, got {self.sd!r}"]
        return _range_mistakes(self.low, self.high, False, self.step)

    def encode(self, value: Value) -> float:
        return NormalDist(self.mean, self.sd).cdf(float(value))

    def decode(self, coordinate: float) -> float:
        quantile = min(1 - 1e-9, max(1e-9, coordinate))
        return self.canonical(NormalDist(self.mean, self.sd).inv_cdf(quantile))

    def default(self) -> float:
        return self.canonical(self.mean)

    def __str__(self) -> str:
        if self.step is None:
            return f"randn({self.mean!r}, {self.sd!r})"
        return f"qrandn({self.mean!r}, {self.sd!r}, {self.step!r})"


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in [low, high], both included; only multiples of `step`."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def mistakes(self) -> list[str]:
        numbers = (self.low, self.high, self.step)
        if all(map(_is_number, numbers)) and not all(isinstance(n, int) for n in numbers):
            return [f"low, high and step must be whole numbers, got {_listed(numbers)}"]
        return _range_mistakes(self.low, self.high, self.log, self.step)

    @property
    def kind(self) -> Kind:
        return "unit" if self._is_continuous() else "level"

    @property
    def size(self) -> int:
        return self.high // self.step - -(-self.low // self.step) + 1

    def encode(self, value: Value) -> float | int:
        if self._is_continuous():
            return self._continuous().encode(value)
        return round(value / self.step) - self._first()

    def decode(self, coordinate: float) -> int:
        if self._is_continuous():
            return self.canonical(self._continuous().decode(coordinate))
        return (self._first() + int(coordinate)) * self.step

    def canonical(self, value: Value) -> int:
        last = self.high // self.step
        # Whole numbers beyond 2^53 are not divided as floats.
        nearest = (2 * round(value) + self.step) // (2 * self.step)
        return min(last, max(self._first(), nearest)) * self.step

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high and value == int(value)

    def default(self) -> int:
        return self._first() * self.step

    def values(self) -> Sequence[int]:
        return range(self.default(), self.high + 1, self.step)

    def __str__(self) -> str:
        if self.step == 1:
            return f"{'log' if self.log else ''}randint({self.low}, {self.high + 1})"
        return f"q{'log' if self.log else ''}randint({self.low}, {self.high}, {self.step})"

    def _first(self) -> int:
        return -(-self.low // self.step)

    def _continuous(self) -> Float:
        return Float(self.low, self.high, log=self.log)

    def _is_continuous(self) -> bool:
        """Whether searchers see it as a continuous domain: one with so many levels needs memory
        for each, and no searcher tells neighbours apart."""
        return self.log or self.size > _MOST_LEVELS


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options. They are ordered if all of them are numbers."""

    options: tuple[Value, ...]

    def mistakes(self) -> list[str]:
        if not self.options:
            return ["a choice needs at least one option, got none"]
        invalid = [option for option in self.options if not _is_plain(option)]
        # Equal options are the same option, as in every look-up: 1, 1.0 and True.
        repeated = [o for i, o in enumerate(self.options) if o in self.options[:i]]
        return [
            *[f"an option must be a number, text or a list, got {_listed(invalid)}"]
            * bool(invalid),
            *[f"a choice must not repeat an option, got {_listed(repeated)}"] * bool(repeated),
        ]

    @property
    def kind(self) -> Kind:
        return "level" if all(_is_number(option) for option in self.options) else "category"

    @property
    def size(self) -> int:
        return len(self.options)

    def encode(self, value: Value) -> int:
        return self._index(self._ordered(), value)

    def decode(self, coordinate: float) -> Value:
        return self._ordered()[int(coordinate)]

    def canonical(self, value: Value) -> Value:
        return self.options[self._index(self.options, value)]

    def contains(self, value: Value) -> bool:
        return plain(value) in [plain(option) for option in self.options]

    def default(self) -> Value:
        return self.options[0]

    def values(self) -> Sequence[Value]:
        return self.options

    def __str__(self) -> str:
        return f"choice([{_listed(self.options)}])"

    @staticmethod
    def _index(options: Sequence[Value], value: Value) -> int:
        """The journal has a tuple as a list: they are the same option. Raises ValueError."""
        return [plain(option) for option in options].index(plain(value))

    def _ordered(self) -> tuple[Value, ...]:
        return tuple(sorted(self.options)) if self.kind == "level" else self.options


Domain = Float | Integer | Choice


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scalar(value: Any) -> Value:
    """Returns NumPy scalars as Python numbers, also those in lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)(scalar(item) for item in value)
    return plain(value)


def plain(value: Any) -> Value:
    """Returns `value` as a YAML value, with Python numbers for NumPy's and lists for tuples."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    is_scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def _is_plain(value: Value) -> bool:
    """Returns whether the value can be written as text and as JSON, and read back."""
    try:
        json.dumps(value)
        return bool(ast.literal_eval(repr(value)) == value)
    except (SyntaxError, TypeError, ValueError):
        return False


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(map(repr, values))


def _multiples(low: float, high: float, step: float) -> range:
    """Returns every k with k × step in [low, high], up to rounding errors."""
    return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)


def _range_mistakes(low: float, high: float, log: bool, step: float | None) -> list[str]:
    if not all(_is_number(bound) and math.isfinite(bound) for bound in (low, high)):
        return [f"low and high must be finite numbers, got {low!r} and {high!r}"]
    if low > high:
        return [f"low must not be above high, got low {low!r} and high {high!r}"]
    if log and low <= 0:
        return [f"a log scale must begin above 0, got {low!r}: use a small positive low"]
    if step is None:
        return []
    if not _is_number(step) or not 0 < step < math.inf:
        return [f"the step must be a number above 0, got {step!r}"]
    if not _multiples(low, high, step):
        return [f"no multiple of {step!r} lies between {low!r} and {high!r}"]
    return []
