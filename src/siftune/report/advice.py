"""Writes what to do next: sentences that follow from the data of a study, with their figures."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from siftune.errors import UsageError
from siftune.record.history import Epoch, History
from siftune.record.journal import STATES
from siftune.record.wording import duration, short
from siftune.report.importance import MIN_TRIALS, Importance
from siftune.space.domains import Choice, Domain, Float, Integer, Normal

_BEST = 5  # trials that are looked at for an edge
_EDGE = 0.05  # of the range of a domain
_TOP = 10  # trials, or a quarter of all if that is more, that are looked at for an option
_CHANCE = 0.01  # an option is missing among the best by chance, at most
_WITHOUT_EFFECT = 40  # least number of trials for a parameter without effect
_IDLE = 0.2  # least share of the slots' time that is worth a sentence

Pairs = Sequence[tuple[Any, Epoch]]  # values of a parameter, and the best epochs of their trials


def advice(history: History, ranked: Sequence[Importance]) -> list[str]:
    """Returns the sentences; none where there are too few trials.

    `ranked`: the importance of the parameters.
    """
    ended = [t for t in history.tops.values() if history.trials[t.trial].state in STATES]
    if len(ended) < MIN_TRIALS:
        return []
    ended.sort(key=lambda top: history.study.sign() * top.value)
    sentences, edges = [], set[str]()
    for name, parameter in history.study.space.parameters.items():
        pairs = [
            (active[name], top)
            for top in ended
            if name in (active := history.study.space.active(top.config))
        ]
        if len(pairs) < MIN_TRIALS:
            continue
        if sentence := _edge(history, name, parameter.domain, pairs):
            edges.add(name)
            sentences.append(sentence)
        sentences += _missing(history, name, parameter.domain, pairs)
    sentences += _without_effect(history, [entry for entry in ranked if entry.name not in edges])
    return [*sentences, *_stalled(history), *_idle(history)]


# ── The space ───────────────────────────────────────────────────────────────────────────────────


def _edge(history: History, name: str, domain: Domain, pairs: Pairs) -> str | None:
    """Returns the sentence about a number whose best values lie at an edge of its domain."""
    if isinstance(domain, Choice | Normal) or domain.low == domain.high:
        return None
    places = [_place(domain, value) for value, _ in pairs]
    # With few values, such as those of a grid, several of the best share one by chance.
    least = 3 if len(set(places)) >= 10 else _BEST
    for upper in (True, False):
        near = sum(p >= 1 - _EDGE if upper else p <= _EDGE for p in places[:_BEST])
        wider = _wider(domain, upper=upper)
        if near < least or wider is None:
            continue
        edge, limit = ("upper", wider.high) if upper else ("lower", wider.low)
        return (
            f"{name}: {near} of the {_BEST} best trials lie within {100 * _EDGE:.0f} % of the "
            f"{edge} edge of {domain}. Widen it to {short(limit)} in a new study, if such values "
            f"make sense{_command(history, name, wider)}."
        )
    return None


def _place(domain: Float | Integer, value: float) -> float:
    """Returns where a value lies in its domain, from 0 to 1."""
    return float(Float(domain.low, domain.high, log=domain.log).encode(value))


def _wider(domain: Float | Integer, *, upper: bool) -> Float | Integer | None:
    """Returns the domain with one edge moved, or None if that edge looks like a natural limit."""
    low, high = domain.low, domain.high
    if domain.log:
        factor = min(10.0, math.sqrt(high / low))
        limit = high * factor if upper else low / factor
    elif upper:
        limit = high + (high - low) / 2
    else:
        limit = low - (high - low) / 2
        limit = max(0.0, limit) if low >= 0 else limit
    is_share = isinstance(domain, Float) and low >= 0 and high == 1
    if upper and is_share and not domain.log:
        return None
    if isinstance(domain, Integer):
        whole = round(limit) if upper or low < 1 else max(1, round(limit))
        if whole == (high if upper else low):
            return None
        return replace(domain, high=whole) if upper else replace(domain, low=whole)
    if not math.isfinite(limit) or (not upper and limit == low):
        return None
    limit = float(f"{limit:.3g}")
    return replace(domain, high=limit) if upper else replace(domain, low=limit)


def _missing(history: History, name: str, domain: Domain, pairs: Pairs) -> Iterator[str]:
    """Yields a sentence about options that none of the best trials has, unless it is chance."""
    if not isinstance(domain, Choice) or domain.kind != "category":
        return
    used = [domain.encode(value) for value, _ in pairs]
    top = max(_TOP, len(used) // 4)
    best, dropped = set(used[:top]), []
    for k in range(domain.size):
        others = len(used) - used.count(k)
        # The hypergeometric probability that the best trials lack an option of no effect.
        chance = math.comb(others, top) / math.comb(len(used), top)
        if k not in best and chance < _CHANCE:
            dropped.append(k)
    if not dropped:
        return
    kept = Choice(tuple(domain.decode(k) for k in range(domain.size) if k not in dropped))
    options = " and ".join(f"{short(domain.decode(k))} ({used.count(k)} trials)" for k in dropped)
    yield (
        f"{name}: none of the {top} best of {len(used)} trials has {options}. Drop "
        f"{'it' if len(dropped) == 1 else 'them'} in a new study"
        f"{_command(history, name, kept)}."
    )


def _without_effect(history: History, ranked: Sequence[Importance]) -> Iterator[str]:
    """Yields a sentence for each parameter without effect, if the trials show another's effect."""
    if history.best is None or not any(entry.told for entry in ranked):
        return
    active = history.study.space.active(history.best.config)
    for entry in ranked:
        if entry.told or entry.share >= 0.05 or entry.trials < _WITHOUT_EFFECT:
            continue
        if entry.name in active:
            value = active[entry.name]
            yield (
                f"{entry.name} shows no effect of its own in {entry.trials} trials "
                f"({100 * entry.share:.0f} % of the variance of the ranks, p = {entry.p:.2g}). "
                f"Fix it at the best trial's value, {short(value)}, in a new study"
                f"{_command(history, entry.name, value)}."
            )


def _command(history: History, name: str, entry: Any) -> str:
    """Returns the flag that changes the space, or nothing if the rest of the space forbids it.

    `entry`: a domain or a constant.
    """
    is_domain = isinstance(entry, Float | Integer | Choice)
    try:
        history.study.space.override({name: str(entry) if is_domain else entry})
    except UsageError:
        return ""
    text = str(entry) if is_domain else repr(entry)
    return f" ({shlex.join(['--set', f'{name}={text}'])})"


# ── The course of the study ─────────────────────────────────────────────────────────────────────


def _stalled(history: History) -> Iterator[str]:
    """Yields a sentence if the later half of the trials, or more, brought no improvement."""
    best, names = history.best, [n for n, t in history.trials.items() if t.state in STATES]
    if best is None or best.trial not in names or history.study.scheduler == "pbt":
        return
    later = len(names) - 1 - names.index(best.trial)
    if later >= max(MIN_TRIALS, len(names) / 2):
        yield (
            f"No improvement since trial {best.trial}: the {later} trials after it, of "
            f"{len(names)} that have ended, were not better. More trials of this "
            "space are unlikely to gain much; change the space, or train the best config longer."
        )


def _idle(history: History) -> Iterator[str]:
    """Yields a sentence if slots waited long for proposals."""
    summary = history.summary
    wall_s, waited_s = summary.get("wall_s", 0.0), summary.get("suggest_wait_s", 0.0)
    slot_s = summary.get("slot_s") or wall_s * summary.get("slots", 0)
    if wall_s < 60 or not slot_s or waited_s / slot_s < _IDLE:
        return
    searcher = history.study.searcher
    faster = "" if searcher in ("random", "grid", "optuna") else "--searcher optuna, or "
    yield (
        f"Slots were idle {100 * waited_s / slot_s:.0f} % of the time, {duration(waited_s)} in "
        f"all, because they waited for proposals of {searcher}. Use {faster}fewer slots with "
        "--concurrent."
    )
