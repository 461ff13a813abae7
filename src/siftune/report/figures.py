"""The figures of the page, each drawn from the history of a study."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from siftune.record.history import Epoch, History
from siftune.record.journal import STATES, UNDER_WAY
from siftune.record.wording import duration, place, short
from siftune.report import chart
from siftune.report.chart import Chart
from siftune.report.importance import MIN_TRIALS, Importance, importances
from siftune.report.markup import Markup, join, tag
from siftune.space.domains import Choice, Domain

_POINTS = 40_000  # maximum in one chart
_LANES = 200  # maximum number of slots in the timeline


# ── Progress over time ──────────────────────────────────────────────────────────────────────────


def _figure(drawn: Chart, caption: str) -> Markup:
    return tag("figure", drawn.svg(), tag("figcaption", caption))


def _elapsed(history: History) -> tuple[Callable[[float], float], list[tuple[float, float]]]:
    """Returns a function that maps a time to seconds of work since the start of the study, and the
    interruptions: for each, its position in seconds of work and its length in s.

    An interrupted study may spend hours in the queue between two jobs. On the axis these would
    leave no space for the actual work.
    """
    spans = sorted((epoch.begin, epoch.end) for epoch in history.epochs)
    longest = max(60.0, 3 * max(end - begin for begin, end in spans))
    pauses, covered = [], spans[0][1]
    for begin, end in spans:
        if begin - covered > longest:
            pauses.append((covered, begin))
        covered = max(covered, end)
    zero = history.began or spans[0][0]

    def elapsed(moment: float) -> float:
        cut = sum(max(0.0, min(moment, end) - begin) for begin, end in pauses)
        return moment - zero - cut

    return elapsed, [(elapsed(begin), end - begin) for begin, end in pauses]


def _thin(items: Sequence[Any], most: int) -> Sequence[Any]:
    """Returns at most about `most` of the items, evenly spaced, including the last one."""
    every = -(-len(items) // max(2, most))
    return items if every <= 1 else [*items[:-1:every], items[-1]]


def _metric_scale(history: History) -> chart.Scale:
    values = [epoch.value for epoch in history.epochs]
    return chart.robust(history.study.metric, values, sign=history.study.sign())


def best_so_far(history: History) -> Markup:
    elapsed, pauses = _elapsed(history)
    end = elapsed(max(epoch.end for epoch in history.epochs))
    x = chart.time("time", end)
    drawn = Chart("Best so far over time", x, _metric_scale(history), width=540, height=290)
    drawn.dots([(elapsed(e.end), e.value) for e in _thin(history.epochs, 4000)], "all")
    for at, seconds in pauses:
        drawn.rule(at, f"interrupted for {duration(seconds)}")
    records = [(elapsed(e.end), e.value) for e in history.records]
    drawn.steps([*records, (end, records[-1][1])], "best")
    caption = "Best value so far (line), and all epochs of all trials (dots)."
    if pauses:
        caption += " Dashed lines mark interruptions; their time is not shown."
    return _figure(drawn, caption)


def kind(history: History, trial: str) -> str:
    best = history.best
    return "best" if best and best.trial == trial else history.trials[trial].state


def curves(history: History) -> Markup:
    """Returns the learning curves, or nothing if every trial has reported once only."""
    if all(len(history.trials[name].epochs) < 2 for name in history.tops):
        return Markup("")
    last = max(epoch.epoch for epoch in history.epochs)
    x = chart.linear("epoch", min(1, last - 1), last, whole=True)
    drawn = Chart("Learning curves", x, _metric_scale(history), width=540, height=290)
    shown = sorted(history.tops, key=lambda trial: _layer(history, trial))
    for name in shown:
        epochs = sorted(history.trials[name].epochs.items())
        points = [(epoch, metrics[history.study.metric]) for epoch, metrics in epochs]
        draw = drawn.line if len(points) > 1 else drawn.dots
        title = f"trial {name}, {history.state(history.trials[name])}"
        draw(_thin(points, _POINTS // len(shown)), kind(history, name), title)
    caption = "The learning curve of each trial. Values far worse than most are drawn at the edge."
    return _figure(drawn, join(caption, _key(history)))


def _layer(history: History, trial: str) -> int:
    """Returns the layer of a trial. Higher layers are drawn later, on top."""
    return ("pruned", "failed", "completed", "paused", "running", "best").index(
        kind(history, trial)
    )


def _key(history: History) -> Markup:
    present = {kind(history, trial) for trial in history.trials}
    kinds = [k for k in ("best", *STATES, *UNDER_WAY) if k in present]
    labels = {} if history.is_running else dict.fromkeys(UNDER_WAY, "unfinished")
    keys = (
        (tag("i", class_="key", style=f"background:var(--{k})"), labels.get(k, k)) for k in kinds
    )
    return join(*(join(*key) for key in keys))


def timeline(history: History) -> Markup:
    elapsed, pauses = _elapsed(history)
    end = elapsed(max(epoch.end for epoch in history.epochs))
    lanes = [(where, lane) for where, slots in sorted(_lanes(history).items()) for lane in slots]
    shown = lanes[:_LANES]
    thick = 14 if len(shown) <= 40 else 6
    names, seen = [], ""
    for i, (where, _) in enumerate(shown):
        if where != seen:
            names.append((float(i), short(where, most=18)))
            seen = where
    y = chart.Scale("", len(shown) - 0.5, -0.5, names)
    height = len(shown) * (thick + 4) + Chart.TOP + Chart.BOTTOM
    drawn = Chart("Timeline", chart.time("time", end), y, width=1100, height=height, left=110)
    for i, (_, lane) in enumerate(shown):
        for first, last in _bars(lane, least_s=end / 1000):
            title = f"trial {last.trial}, to epoch {last.epoch}"
            when = elapsed(first.begin), elapsed(last.end)
            drawn.bar(*when, i, kind(history, last.trial), title, thick=thick)
    for at, seconds in pauses:
        drawn.rule(at, f"interrupted for {duration(seconds)}")
    caption = (
        "Each bar is a trial in one slot, from the start of its first epoch to the report of its "
        "last one. White means idle."
    )
    if len(lanes) > len(shown):
        caption += f" {len(lanes) - len(shown)} more slots are not shown."
    return join(tag("h2", "Timeline"), _figure(drawn, join(caption, _key(history))))


def _bars(lane: list[Epoch], *, least_s: float) -> Iterator[tuple[Epoch, Epoch]]:
    """Yields the first and last epoch of each bar.

    A bar is one trial, or several trials that are too short to tell apart.
    """
    first = last = lane[0]
    for epoch in lane[1:]:
        near = epoch.begin - last.end < least_s
        if not (near and (epoch.trial == last.trial or last.end - first.begin < least_s)):
            yield first, last
            first = epoch
        last = epoch
    yield first, last


def _lanes(history: History) -> dict[str, list[list[Epoch]]]:
    """Returns the slots of each node and GPU, each with the epochs that it trained, in order.

    The journal names the GPU but not the slot. An epoch is assigned to a free slot whose last epoch
    was of the same trial, or otherwise to the slot that has been idle longest.
    """
    lanes: dict[str, list[list[Epoch]]] = {}
    for epoch in sorted(history.epochs, key=lambda epoch: epoch.begin):
        here = lanes.setdefault(place(epoch.node, epoch.gpu), [])
        # A report takes a moment to arrive. By then the next epoch has begun.
        free = [
            lane for lane in here if lane[-1].end - epoch.begin < 0.5 * (epoch.end - epoch.begin)
        ]
        order = [(lane[-1].trial != epoch.trial, lane[-1].end, lane) for lane in free]
        if not order:
            here.append([])
        lane = min(order, key=lambda entry: entry[:2])[2] if order else here[-1]
        lane.append(epoch)
    return lanes


# ── Hyper-parameters ────────────────────────────────────────────────────────────────────────────


def ranked(history: History) -> list[Importance]:
    """Returns the importance of the parameters; [] if too few trials have ended."""
    columns, effects = {}, _effects(history)
    for name, parameter in history.study.space.parameters.items():
        ended = [e for e in effects[name] if history.trials[e[1].trial].state in STATES]
        columns[name] = (parameter.domain, [v for v, _ in ended], [top.value for _, top in ended])
    return importances(columns)


def importance(ranked: Sequence[Importance]) -> Markup:
    title = tag("h2", "Importance of the hyper-parameters")
    if not ranked:
        few = f"Too few trials: at least {MIN_TRIALS} must have ended."
        return tag("section", title, tag("p", few, class_="note"))
    names = [(float(i), short(entry.name, most=20)) for i, entry in enumerate(ranked)]
    y = chart.Scale("", len(ranked) - 0.5, -0.5, names)
    x = chart.linear("share of the variance of the ranks", 0, 1)
    height = len(ranked) * 18 + Chart.TOP + Chart.BOTTOM
    drawn = Chart("Importance of the hyper-parameters", x, y, width=540, height=height, left=130)
    for i, entry in enumerate(ranked):
        words = f"{entry.name}: {entry.share:.2f}, p = {entry.p:.2g}, {entry.trials} trials"
        drawn.bar(0, entry.share, i, "completed" if entry.told else "chance", words, thick=12)
        drawn.text(entry.share, i, f"{entry.share:.2f}{'' if entry.told else ' (may be chance)'}")
    caption = (
        "For each parameter: how much of the variance in the trials' ranks it explains alone "
        "(trials ranked by best epoch). Grey bars are not significant with this number of trials "
        "(p ≥ 0.05; Kruskal–Wallis permutation test with Holm's correction). A searcher varies "
        "parameters together, so this shows correlation, not causation."
    )
    return tag("section", title, _figure(drawn, caption))


def scatter(history: History) -> Markup:
    y, panels, effects = _metric_scale(history), [], _effects(history)
    for name, parameter in history.study.space.parameters.items():
        x, title = chart.of_domain(name, parameter.domain), f"{history.study.metric} by {name}"
        drawn = Chart(title, x, y, width=270, height=190)
        dots: dict[str, list[chart.Point]] = {}
        for i, (value, top) in enumerate(_thin(effects[name], 5 * _POINTS // len(effects))):
            point = _spread(parameter.domain, value, i), top.value
            dots.setdefault(kind(history, top.trial), []).append(point)
        for its_kind, points in dots.items():
            drawn.dots(points, its_kind)
        panels.append(tag("figure", drawn.svg()))
    heading = tag("h2", f"{history.study.metric} by hyper-parameter")
    caption = "The best epoch of each trial in which the parameter has an effect."
    return join(heading, tag("p", caption, class_="note"), tag("div", *panels, class_="many"))


def _effects(history: History) -> dict[str, list[tuple[Any, Epoch]]]:
    """Returns, for each parameter, a pair for each trial in which it is active: the parameter's
    value and the trial's best epoch."""
    effects: dict[str, list[tuple[Any, Epoch]]] = {n: [] for n in history.study.space.parameters}
    for top in sorted(history.tops.values(), key=lambda top: _layer(history, top.trial)):
        active = history.study.space.active(top.config)
        for name in effects.keys() & active.keys():
            effects[name].append((active[name], top))
    return effects


def _spread(domain: Domain, value: Any, i: int) -> float:
    """Returns the position of a value on its axis.

    Options are jittered so that trials with the same option do not overlap.
    """
    if not isinstance(domain, Choice):
        return float(value)
    return domain.encode(value) + (i * 0.618 % 1 - 0.5) * 0.4
