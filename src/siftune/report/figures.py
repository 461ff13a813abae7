"""The page's figures, each with what it is read from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from siftune.record.history import Epoch, History
from siftune.record.journal import STATES, UNDER_WAY
from siftune.record.wording import duration, place, short
from siftune.report import chart
from siftune.report.chart import Chart
from siftune.report.importance import MIN_TRIALS, importances
from siftune.report.markup import Markup, join, tag
from siftune.space.domains import Choice, Domain

_POINTS = 40_000  # in one chart
_LANES = 200  # of the timeline


# ── How it went ─────────────────────────────────────────────────────────────────────────────────


def _figure(drawn: Chart, caption: str) -> Markup:
    return tag("figure", drawn.svg(), tag("figcaption", caption))


def _elapsed(found: History) -> tuple[Callable[[float], float], list[tuple[float, float]]]:
    """Seconds of work since the begin, from a time; and where a pause was cut out, and its length.

    Between the jobs of an interrupted study hours may pass in a queue, in which nothing runs: these
    would leave no room for what did.
    """
    spans = sorted((epoch.begin, epoch.end) for epoch in found.epochs)
    longest = max(60.0, 3 * max(end - begin for begin, end in spans))
    pauses, covered = [], spans[0][1]
    for begin, end in spans:
        if begin - covered > longest:
            pauses.append((covered, begin))
        covered = max(covered, end)
    zero = found.began or spans[0][0]

    def elapsed(moment: float) -> float:
        cut = sum(max(0.0, min(moment, end) - begin) for begin, end in pauses)
        return moment - zero - cut

    return elapsed, [(elapsed(begin), end - begin) for begin, end in pauses]


def _thin(things: Sequence[Any], most: int) -> Sequence[Any]:
    """At most about `most` of the things, evenly, the last among them."""
    every = -(-len(things) // max(2, most))
    return things if every <= 1 else [*things[:-1:every], things[-1]]


def _metric_scale(found: History) -> chart.Scale:
    values = [epoch.value for epoch in found.epochs]
    return chart.robust(found.study.metric, values, sign=found.study.sign())


def best_so_far(found: History) -> Markup:
    elapsed, pauses = _elapsed(found)
    end = elapsed(max(epoch.end for epoch in found.epochs))
    x = chart.time("time", end)
    drawn = Chart("Best so far over time", x, _metric_scale(found), width=540, height=290)
    drawn.dots([(elapsed(e.end), e.value) for e in _thin(found.epochs, 4000)], "all")
    for at, seconds in pauses:
        drawn.rule(at, f"interrupted for {duration(seconds)}")
    records = [(elapsed(e.end), e.value) for e in found.records]
    drawn.steps([*records, (end, records[-1][1])], "best")
    caption = "Best so far (line) over all epochs of all trials (dots)."
    if pauses:
        caption += " Dashed: here it was interrupted; that time is left out."
    return _figure(drawn, caption)


def kind(found: History, trial: str) -> str:
    best = found.best
    return "best" if best and best.trial == trial else found.trials[trial].state


def curves(found: History) -> Markup:
    last = max(epoch.epoch for epoch in found.epochs)
    x = chart.linear("epoch", min(1, last - 1), last, whole=True)
    drawn = Chart("Learning curves", x, _metric_scale(found), width=540, height=290)
    shown = sorted(found.tops, key=lambda trial: _layer(found, trial))
    for name in shown:
        epochs = sorted(found.trials[name].epochs.items())
        points = [(epoch, metrics[found.study.metric]) for epoch, metrics in epochs]
        draw = drawn.line if len(points) > 1 else drawn.dots
        title = f"trial {name}, {found.state(found.trials[name])}"
        draw(_thin(points, _POINTS // len(shown)), kind(found, name), title)
    caption = "Every trial, epoch by epoch. What is far worse than most is drawn at the edge."
    return _figure(drawn, join(caption, _key(found)))


def _layer(found: History, trial: str) -> int:
    """What is drawn later lies above."""
    return ("pruned", "failed", "completed", "paused", "running", "best").index(kind(found, trial))


def _key(found: History) -> Markup:
    there = {kind(found, trial) for trial in found.trials}
    kinds = [k for k in ("best", *STATES, *UNDER_WAY) if k in there]
    words = {} if found.is_running else dict.fromkeys(UNDER_WAY, "unfinished")
    keys = (
        (tag("i", class_="key", style=f"background:var(--{k})"), words.get(k, k)) for k in kinds
    )
    return join(*(join(*key) for key in keys))


def timeline(found: History) -> Markup:
    elapsed, pauses = _elapsed(found)
    end = elapsed(max(epoch.end for epoch in found.epochs))
    lanes = [(where, lane) for where, of in sorted(_lanes(found).items()) for lane in of]
    shown = lanes[:_LANES]
    thick = 14 if len(shown) <= 40 else 6
    names, seen = [], ""
    for i, (where, _) in enumerate(shown):
        if where != seen:
            names.append((float(i), short(where, most=18)))
            seen = where
    y = chart.Scale("", len(shown) - 0.5, -0.5, names)
    height = len(shown) * (thick + 4) + Chart.TOP + Chart.BOTTOM
    drawn = Chart("What ran where", chart.time("time", end), y, width=1100, height=height, left=110)
    for i, (_, lane) in enumerate(shown):
        for first, last in _bars(lane, least_s=end / 1000):
            title = f"trial {last.trial}, to epoch {last.epoch}"
            when = elapsed(first.begin), elapsed(last.end)
            drawn.bar(*when, i, kind(found, last.trial), title, thick=thick)
    for at, seconds in pauses:
        drawn.rule(at, f"interrupted for {duration(seconds)}")
    caption = (
        "Each bar is a trial in a slot, from the begin of an epoch to its report; white is idle."
    )
    if len(lanes) > len(shown):
        caption += f" {len(lanes) - len(shown)} more slots are not shown."
    return join(tag("h2", "What ran where"), _figure(drawn, join(caption, _key(found))))


def _bars(lane: list[Epoch], *, least_s: float) -> Iterator[tuple[Epoch, Epoch]]:
    """The first and the last epoch of each bar: a trial, or trials too short to be seen apart."""
    first = last = lane[0]
    for epoch in lane[1:]:
        near = epoch.begin - last.end < least_s
        if not (near and (epoch.trial == last.trial or last.end - first.begin < least_s)):
            yield first, last
            first = epoch
        last = epoch
    yield first, last


def _lanes(found: History) -> dict[str, list[list[Epoch]]]:
    """Of each node and GPU the slots, each with the epochs that it trained, in their order.

    The journal names the GPU and not the slot: an epoch goes to a slot that its trial was in last,
    else to the one that has been idle longest.
    """
    lanes: dict[str, list[list[Epoch]]] = {}
    for epoch in sorted(found.epochs, key=lambda epoch: epoch.begin):
        here = lanes.setdefault(place(epoch.node, epoch.gpu), [])
        # A report takes a moment to arrive, in which the next epoch is under way.
        free = [
            lane for lane in here if lane[-1].end - epoch.begin < 0.5 * (epoch.end - epoch.begin)
        ]
        order = [(lane[-1].trial != epoch.trial, lane[-1].end, lane) for lane in free]
        if not order:
            here.append([])
        lane = min(order, key=lambda one: one[:2])[2] if order else here[-1]
        lane.append(epoch)
    return lanes


# ── What mattered ───────────────────────────────────────────────────────────────────────────────


def importance(found: History) -> Markup:
    columns, effects = {}, _effects(found)
    for name, parameter in found.study.space.parameters.items():
        ended = [e for e in effects[name] if found.trials[e[1].trial].state in STATES]
        columns[name] = (parameter.domain, [v for v, _ in ended], [top.value for _, top in ended])
    ranked = importances(columns)
    title = tag("h2", "Which hyper-parameters matter")
    if not ranked:
        few = f"Too few trials to say: at least {MIN_TRIALS} that have ended are needed."
        return tag("section", title, tag("p", few, class_="note"))
    names = [(float(i), short(one.name, most=20)) for i, one in enumerate(ranked)]
    y = chart.Scale("", len(ranked) - 0.5, -0.5, names)
    x = chart.linear("share of the variance in rank", 0, 1)
    height = len(ranked) * 18 + Chart.TOP + Chart.BOTTOM
    drawn = Chart("Importance of the hyper-parameters", x, y, width=540, height=height, left=130)
    for i, one in enumerate(ranked):
        words = f"{one.name}: {one.share:.2f}, p = {one.p:.2g}, {one.trials} trials"
        drawn.bar(0, one.share, i, "completed" if one.told else "chance", words, thick=12)
        drawn.text(one.share, i, f"{one.share:.2f}{'' if one.told else ' (may be chance)'}")
    caption = (
        "What each accounts for alone, of how the trials' best epochs rank. Grey is not told from "
        "chance by as many trials as there are (p ≥ 0.05; Kruskal–Wallis, permuted, Holm). "
        "A searcher makes parameters move together, so this shows what goes with the metric."
    )
    return tag("section", title, _figure(drawn, caption))


def scatter(found: History) -> Markup:
    y, panels, effects = _metric_scale(found), [], _effects(found)
    for name, parameter in found.study.space.parameters.items():
        x, title = chart.of_domain(name, parameter.domain), f"{found.study.metric} by {name}"
        drawn = Chart(title, x, y, width=270, height=190)
        dots: dict[str, list[chart.Point]] = {}
        for i, (value, top) in enumerate(_thin(effects[name], 5 * _POINTS // len(effects))):
            point = _spread(parameter.domain, value, i), top.value
            dots.setdefault(kind(found, top.trial), []).append(point)
        for its_kind, points in dots.items():
            drawn.dots(points, its_kind)
        panels.append(tag("figure", drawn.svg()))
    heading = tag("h2", f"{found.study.metric} by hyper-parameter")
    caption = "Best epoch of each trial in which the parameter has an effect."
    return join(heading, tag("p", caption, class_="note"), tag("div", *panels, class_="many"))


def _effects(found: History) -> dict[str, list[tuple[Any, Epoch]]]:
    """By parameter: its value and the best epoch, of each trial in which it has an effect."""
    effects: dict[str, list[tuple[Any, Epoch]]] = {n: [] for n in found.study.space.parameters}
    for top in sorted(found.tops.values(), key=lambda top: _layer(found, top.trial)):
        active = found.study.space.active(top.config)
        for name in effects.keys() & active.keys():
            effects[name].append((active[name], top))
    return effects


def _spread(domain: Domain, value: Any, i: int) -> float:
    """Where a value is on its axis; options are spread out a little, so that equals are seen."""
    if not isinstance(domain, Choice):
        return float(value)
    return domain.encode(value) + (i * 0.618 % 1 - 0.5) * 0.4
