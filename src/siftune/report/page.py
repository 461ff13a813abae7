"""Writes report.html: one page about a study, made from study.yaml and trials.jsonl.

The page is a single file without scripts that needs no network. Its size is bounded: large data are
thinned or omitted. While the study runs, the page asks the browser to load it again.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from siftune.machine.files import replacing
from siftune.record import learned, logs
from siftune.record.history import History, load
from siftune.record.journal import Trial
from siftune.record.wording import duration, place, settings, short
from siftune.report import figures
from siftune.report.advice import advice
from siftune.report.live import RELOAD_S
from siftune.report.markup import Markup, join, tag

_ROWS = 2000  # maximum number of trials in the table, best first
_ERRORS = 20  # maximum number of causes of errors shown
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|(?<![A-Za-z_])\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TYPE = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?=:|$)", re.MULTILINE)


def write(directory: Path) -> Path:
    """Writes report.html into a study directory and returns its path.

    Raises UsageError if the directory has no readable study, OSError if it cannot be written to.
    """
    history = load(directory)
    target = directory / "report.html"
    with replacing(target) as temporary:
        temporary.write_text(html(history), encoding="utf-8")
    return target


def html(history: History) -> str:
    """Returns the whole page."""
    name = history.study.name
    parts = [_head(history), *_sections(history)]
    style = Markup(files("siftune.report").joinpath("style.css").read_text(encoding="utf-8"))
    metas = ['<meta charset="utf-8">']
    if history.is_running:
        metas.append(f'<meta http-equiv="refresh" content="{RELOAD_S}">')
    head = tag("head", *map(Markup, metas), tag("title", name), tag("style", style))
    return f"<!doctype html>\n{tag('html', head, tag('body', *parts), lang='en')}\n"


def _sections(history: History) -> Iterator[Markup]:
    if not history.trials:
        yield tag("p", "No trial has begun yet.")
        yield _space(history)
        return
    ranked = figures.ranked(history)
    if sentences := advice(history, ranked):
        items = [tag("li", sentence) for sentence in sentences]
        yield join(tag("h2", "What next"), tag("ul", *items))
    yield _errors(history)
    if history.epochs:
        yield tag("div", figures.best_so_far(history), figures.curves(history), class_="pair")
    yield tag("div", _space(history), figures.importance(ranked), class_="pair")
    if history.epochs:
        yield figures.scatter(history)
        yield figures.timeline(history)
    yield _table(history)


# ── Summary ─────────────────────────────────────────────────────────────────────────────────────


def _head(history: History) -> Markup:
    study, summary, best = history.study, history.summary, history.best
    options = ", ".join(f"{k}={short(v)}" for k, v in study.trainable_options.items())
    description = (
        f"{study.trainable}{f' ({options})' if options else ''} {study.mode}imises {study.metric}: "
        f"searcher {study.searcher}, scheduler {study.scheduler}, seed {study.seed}; "
        f"{study.cpus_per_trial:g} CPUs and {study.gpus_per_trial:g} GPUs per trial."
    )
    description = " ".join([description, *learned.counts(history.directory)])
    written = (
        f"Written {_clock(time.time())}. State at that time: {history.life()}. "
        f"Last event: {_clock(history.last)}."
        + (f" This page reloads every {RELOAD_S} s." if history.is_running else "")
    )
    cards = [("trials", history.states().replace(" trials", ""))]
    if best:
        label = f"best {study.metric}, trial {best.trial}, epoch {best.epoch}"
        cards.insert(0, (label, f"{best.value:.6g}"))
    if summary:
        slots = summary["slots"]
        busy = f"{100 * summary['busy_fraction']:.0f} %"
        cards.append((f"utilisation of {slots} slot{'s' * (slots != 1)}", busy))
        if (real := summary.get("gpu_utilisation")) is not None:
            cards.append(("GPU utilisation", f"{100 * real:.0f} %"))
        cards.append(("wall time, without interruptions", duration(summary["wall_s"])))
        waited = f"slots waited {duration(summary['suggest_wait_s'])} for proposals"
        cards.append((f"time spent in the searcher ({waited})", duration(summary["suggest_s"])))
    shown = [tag("div", tag("b", value), label) for label, value in cards]
    note = tag("p", description, Markup("<br>"), written, class_="note")
    return join(tag("h1", study.name), note, tag("div", *shown, class_="cards"))


def _clock(moment: float | None) -> str:
    if moment is None:
        return "none yet"
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment))


def _space(history: History) -> Markup:
    space, best = history.study.space, history.best
    active = space.active(best.config) if best else {}
    rows = []
    for name, entry in space.texts().items():
        value = "inactive" if best else ""
        value = short(active[name]) if name in active else value
        domain = "constant" if name in space.constants else short(entry, most=200)
        cells = (tag("td", word) for word in (name, value, domain))
        rows.append(tag("tr", *cells, class_="" if name in active else "off"))
    title = f"The best config, trial {best.trial}" if best else "Search space"
    parts = [tag("h2", title), _tabular(("parameter", "best", "domain"), rows)]
    if best:
        metrics = ", ".join(f"{k} {short(v)}" for k, v in best.metrics.items())
        parts.append(tag("p", f"After epoch {best.epoch}: {metrics}.", class_="note"))
    return tag("section", *parts)


def _tabular(columns: Sequence[str], rows: Sequence[Markup], kind: str = "") -> Markup:
    head = tag("thead", tag("tr", *(tag("th", column, scope="col") for column in columns)))
    return tag("table", head, tag("tbody", *rows), class_=kind)


# ── Trials ──────────────────────────────────────────────────────────────────────────────────────


def _table(history: History) -> Markup:
    def rank(trial: Trial) -> tuple[bool, float]:
        top = history.tops.get(trial.trial)
        return top is None, history.study.sign() * top.value if top else 0.0

    trials = sorted(history.trials.values(), key=rank)
    rows = [_row(history, trial) for trial in trials[:_ROWS]]
    columns = ("trial", "state", history.study.metric, *["at", "epochs", "time", "where", "config"])
    title = tag("h2", "Trials, best first")
    more = len(trials) - len(rows)
    note = [tag("p", f"{more} more are in trials.jsonl.", class_="note")] if more else []
    return join(title, _tabular(columns, rows, "trials"), *note)


def _row(history: History, trial: Trial) -> Markup:
    top = history.tops.get(trial.trial)
    best = [short(top.value), f"epoch {top.epoch}"] if top else ["–", "–"]
    numbers = [*best, trial.epoch, duration(trial.seconds)]
    state = history.state(trial) + (f", {trial.restarts} restarts" if trial.restarts else "")
    config = top.config if top else trial.config
    config_words = " ".join(settings(config, history.study.space))
    words = (short(place(trial.node, trial.gpu)), short(config_words, most=400))
    cells = [tag("td", trial.trial), tag("td", state)]
    cells += [tag("td", number, class_="number") for number in numbers]
    cells += [tag("td", word) for word in words]
    return tag("tr", *cells, class_=figures.kind(history, trial.trial))


def _errors(history: History) -> Markup:
    """Returns the table of errors: one row for each cause, the most frequent first."""
    failed: dict[str, list[Trial]] = {}
    for trial in history.trials.values():
        if trial.error:
            failed.setdefault(_NUMBER.sub("#", _cause(trial.error)), []).append(trial)
    if not failed:
        return Markup("")
    rows = []
    for masked, trials in sorted(failed.items(), key=lambda item: -len(item[1]))[:_ERRORS]:
        causes = {_cause(trial.error or "") for trial in trials}
        cause = masked if len(causes) > 1 else causes.pop()
        names = ", ".join(trial.trial for trial in trials[:5])
        names += f" and {len(trials) - 5} more" if len(trials) > 5 else ""
        cells = [tag("td", len(trials), class_="number"), tag("td", names)]
        rows.append(tag("tr", *cells, tag("td", short(cause, most=200), _example(history, trials))))
    more = len(failed) - len(rows)
    note = [tag("p", f"{more} other errors are in trials.jsonl.", class_="note")] if more else []
    return join(tag("h2", "Errors"), _tabular(("count", "trials", "cause"), rows), *note)


def _cause(error: str) -> str:
    """Returns the last line of an error, after the exception's type if another line has that."""
    last = (error.strip().splitlines() or ["no message"])[-1]
    types = _TYPE.findall(error)
    return last if not types or last.startswith(types[-1]) else f"{types[-1]}: … {last}"


def _example(history: History, trials: Sequence[Trial]) -> Markup:
    """Returns the error and the end of the log of the first of these trials."""
    first = trials[0]
    parts = [
        tag("summary", f"example: trial {first.trial}"),
        tag("pre", (first.error or "")[-8000:]),
    ]
    if lines := logs.tail(history.directory, first.trial):
        log = "\n".join(short(line, most=300) for line in lines)
        parts += [tag("p", f"The log of trial {first.trial} ends with"), tag("pre", log)]
    return tag("details", *parts)


if __name__ == "__main__":  # see siftune.report.live
    os.nice(10)
    with suppress(Exception):
        write(Path(sys.argv[1]))
