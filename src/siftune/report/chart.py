"""Charts as SVG text: the axes, and the lines, dots and bars on them.

The SVG is written by hand because a page with 40,000 points must be small and fast: a point takes
about ten characters here and a hundred in Matplotlib's SVG, and no library has to be imported.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siftune.record.wording import duration, short
from siftune.report.markup import Markup, tag
from siftune.space.domains import Choice, Domain

Point = tuple[float, float]
_LARGEST = sys.float_info.max / 8  # largest end of an axis


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: its label, its range, and its ticks with their labels."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float) -> float:
        """Returns the position of a value on the axis, from 0 to 1. Values outside are clipped."""
        low, high, value = (
            (math.log(v) if v > 0 else -math.inf) if self.log else v
            for v in (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear(label: str, low: float, high: float, *, whole: bool = False) -> Scale:
    """Returns an axis with about five ticks, at multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        margin = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Scale(label, low, high, [(t, f"{t:.12g}" if whole else f"{t:.6g}") for t in ticks])


def logarithmic(label: str, low: float, high: float) -> Scale:
    """Returns an axis with ticks at powers of ten, or at its ends if there are fewer than two."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ticks = [10.0**k for k in powers[:: max(1, len(powers) // 5)]]
    ticks = ticks if len(ticks) > 1 else [low, high]
    return Scale(label, low, high, [(t, f"{t:.3g}") for t in ticks], log=True)


def time(label: str, high: float) -> Scale:
    """Returns an axis from 0 to `high` seconds."""
    steps = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400]
    step = next((s for s in steps if high / s <= 6), math.ceil(high / 6 / 86400) * 86400)
    ticks = [k * step for k in range(int(high / step) + 1)]
    return Scale(label, 0.0, max(high, 1e-3), [(t, duration(t)) for t in ticks])


def of_domain(name: str, domain: Domain) -> Scale:
    """Returns the axis of a hyper-parameter, which is logarithmic if its domain is.

    The options of a choice are placed side by side.
    """
    if isinstance(domain, Choice):
        order = [domain.decode(k) for k in range(domain.size)]
        every = math.ceil(len(order) / 8)
        ticks = [(k, short(v, most=10)) for k, v in enumerate(order) if k % every == 0]
        return Scale(name, -0.5, len(order) - 0.5, ticks)
    if domain.log and domain.low < domain.high:
        return logarithmic(name, domain.low, domain.high)
    return linear(name, domain.low, domain.high, whole=isinstance(domain.default(), int))


def robust(label: str, values: Sequence[float], *, sign: int) -> Scale:
    """Returns an axis for a metric, which covers all values except those far worse than most.

    The limit is three interquartile ranges beyond the worse quartile (Tukey's outer fence), so that
    one diverged trial does not flatten all others. `sign` is 1 if small values are good, else -1.
    """
    ordered = sorted(sign * v for v in values) or [0.0]
    near, far = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    fence = far + 3 * (far - near)
    worst = max(v for v in ordered if v <= fence)
    margin = 0.04 * (worst - ordered[0])
    # The length of the axis must be finite too.
    ends = (max(-_LARGEST, min(_LARGEST, end)) for end in (ordered[0] - margin, worst + margin))
    return linear(label, *sorted(sign * end for end in ends))


class Chart:
    """One SVG with two axes. The x and y of everything drawn are values on these axes."""

    TOP, RIGHT, BOTTOM = 10, 14, 38

    def __init__(
        self, title: str, x: Scale, y: Scale, *, width: int, height: int, left: int = 62
    ) -> None:
        self._title, self._x, self._y = title, x, y
        self._width, self._height, self._left = width, height, left
        self._inner = (width - left - self.RIGHT, height - self.TOP - self.BOTTOM)
        self._drawn: list[Markup] = []

    def place(self, x: float, y: float) -> Point:
        across, down = self._inner
        return self._left + self._x.at(x) * across, self.TOP + (1 - self._y.at(y)) * down

    def line(self, points: Iterable[Point], kind: str, title: str = "") -> None:
        self._path("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in self._placed(points)), kind, title)

    def steps(self, points: Iterable[Point], kind: str) -> None:
        """Draws from each point horizontally to the x of the next one, then vertically to its y."""
        first, *others = self._placed(points)
        path = "".join(f"H{x:.1f}V{y:.1f}" for x, y in others)
        self._path(f"M{first[0]:.1f} {first[1]:.1f}{path}", kind)

    def dots(self, points: Iterable[Point], kind: str, title: str = "") -> None:
        # Lines of length zero with round ends, so that one element draws all dots.
        path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in self._placed(points))
        if path:
            self._path(path, f"dot {kind}", title)

    def bar(self, begin: float, end: float, y: float, kind: str, title: str, *, thick: int) -> None:
        (left, middle), (right, _) = self.place(begin, y), self.place(end, y)
        width = max(0.6, right - left - 0.4)  # a gap is left between neighbours
        shape = {"x": f"{left:.1f}", "y": f"{middle - thick / 2:.1f}", "width": f"{width:.1f}"}
        words = tag("title", title)
        self._drawn.append(tag("rect", words, class_=kind, height=thick, **shape))

    def text(self, x: float, y: float, words: str) -> None:
        left, middle = self.place(x, y)
        self._drawn.append(tag("text", words, x=f"{left + 6:.0f}", y=f"{middle + 4:.0f}"))

    def rule(self, x: float, title: str) -> None:
        """Draws a dashed vertical line through the whole chart."""
        left, top = self.place(x, self._y.high)
        self._path(f"M{left:.1f} {top:.1f}v{self._inner[1]}", "rule", title)

    def svg(self) -> Markup:
        box = f"0 0 {self._width} {self._height}"
        parts = [tag("title", self._title), *self._axes(), *self._drawn]
        return tag("svg", *parts, viewBox=box, role="img", aria_label=self._title)

    def _placed(self, points: Iterable[Point]) -> list[Point]:
        return [self.place(x, y) for x, y in points]

    def _path(self, d: str, kind: str, title: str = "") -> None:
        self._drawn.append(tag("path", *([tag("title", title)] if title else []), class_=kind, d=d))

    def _axes(self) -> Iterable[Markup]:
        bottom, (across, down) = self._height - self.BOTTOM, self._inner
        for value, label in self._x.ticks:
            x = self.place(value, self._y.low)[0]
            yield tag("path", class_="grid", d=f"M{x:.1f} {self.TOP}v{down}")
            yield tag("text", label, x=f"{x:.0f}", y=bottom + 15, class_="middle")
        for value, label in self._y.ticks:
            y = self.place(self._x.low, value)[1]
            yield tag("path", class_="grid", d=f"M{self._left} {y:.1f}h{across}")
            yield tag("text", label, x=self._left - 6, y=f"{y + 4:.0f}", class_="end")
        middle, words = self._left + across // 2, {"class_": "middle name"}
        yield tag("text", self._x.label, x=middle, y=self._height - 6, **words)
        turned = f"translate(12 {self.TOP + down // 2}) rotate(-90)"
        yield tag("text", self._y.label, transform=turned, **words)
