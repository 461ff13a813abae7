"""report.html is one safe file of bounded size, whatever the state of the study."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siftune.errors import UsageError
from siftune.record import history
from siftune.report import chart, figures
from siftune.report import page as report_page
from siftune.report.importance import MIN_TRIALS, importances
from siftune.space import domains

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('x')</script>\"&<b>"
VOID = {"meta", "br"}

Written = Callable[..., Any]


class Page(HTMLParser):
    """Parses a page and checks that its elements are nested and closed correctly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page(directory: Path) -> Page:
    return Page(report_page.write(directory).read_text())


def ended(written: Written) -> Path:
    """Writes a study with a trial in every state, and returns its directory."""
    study = written()
    study.trial(3.0, 2.0, 1.0, act="gelu")
    study.trial(4.0, state="pruned", depth=3)
    study.trial(2.5, state="failed", lr=1e-3)
    study.trial(2.7, state=None)
    study.driver()
    return study.directory


def test_a_study_with_a_trial_in_every_state_is_one_page(written: Written) -> None:
    parsed = page(ended(written))
    text = " ".join(parsed.words)
    for words in ("1 completed, 1 pruned, 1 failed, 1 running of 4", "The best config, trial 0001"):
        assert words in text
    # Best so far, learning curves, a panel for each of four parameters, and the timeline.
    assert parsed.count("svg") == 2 + 4 + 1
    assert parsed.count("tr") == 1 + 5 + 1 + 4


def test_the_page_needs_nothing_but_itself(written: Written) -> None:
    directory = ended(written)
    parsed = page(directory)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    text = (directory / "report.html").read_text()
    assert not re.search(r"://|url\(|@import|src=|href=", text)


def test_a_study_without_a_trial_and_one_without_an_epoch(written: Written) -> None:
    study = written()
    assert "No trial has begun yet." in " ".join(page(study.directory).words)
    study.start()
    assert "1 unfinished of 4" in " ".join(page(study.directory).words)
    study.driver()
    assert "1 running of 4" in " ".join(page(study.directory).words)


def test_a_page_that_cannot_be_written_leaves_nothing_and_two_writers_do_not_meet(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = ended(written)
    before, names = sorted(directory.iterdir()), set[str]()

    def refuse(path: Path, target: Path) -> None:
        names.add(path.name)
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            report_page.write(directory)
    assert sorted(directory.iterdir()) == before
    assert len(names) == 2


@pytest.mark.parametrize("values", [(1.8e308, -1.8e308, 0.5), (1.8e308, 1e200), (-1e300, 1e300)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_study_with_enormous_values_is_a_page(
    written: Written, values: tuple[float, ...], mode: str
) -> None:
    study = written(mode=mode)
    largest = sys.float_info.max
    for value in values:
        study.trial(min(largest, max(-largest, value)), 0.5)
    page(study.directory)
    text = (study.directory / "report.html").read_text()
    assert not re.search(r"\b(nan|inf)\b", text)


def test_the_gpus_own_figure_is_there_where_there_is_one(written: Written) -> None:
    study = written()
    study.trial(1.0)
    summary = dict.fromkeys(("wall_s", "suggest_s", "suggest_wait_s"), 60.0) | {"slots": 8}
    for real, count in ((0.712, 1), (None, 0)):
        content = summary | {"busy_fraction": 0.97, "gpu_utilisation": real}
        (study.directory / "summary.json").write_text(json.dumps(content))
        words = page(study.directory).words
        assert "utilisation of 8 slots" in words
        assert words.count("GPU utilisation") == words.count("71 %") == count


def test_one_epoch_alone(written: Written) -> None:
    study = written()
    study.trial(0.5, state=None)
    page(study.directory)


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_torn_last_line_did_not_happen(written: Written, cut: int) -> None:
    study = written()
    study.trial(1.0, 0.5)
    study.trial(1.0, 0.1, state=None)
    journal = study.directory / "trials.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert "best loss, trial 0001, epoch 2" in page(study.directory).words


def test_whatever_the_study_says_is_text(written: Written) -> None:
    study = written(
        metric=HOSTILE,
        mode="min",
        trainable=f"{HOSTILE}.py:f",
        trainable_options={HOSTILE: HOSTILE},
        space={"act": f"choice([{HOSTILE!r}, 'b'])", "note": HOSTILE},
    )
    name = study.start(act=HOSTILE)
    study.epoch(name, 1, 0.5, node=HOSTILE, gpu=HOSTILE, metrics={HOSTILE: 0.5, "x": HOSTILE})
    study.event("end", name, state="failed", error=f"{HOSTILE}\n{HOSTILE}")
    parsed = page(study.directory)
    text = " ".join(parsed.words)
    assert parsed.count("script") == 0
    assert parsed.count("b") == 2  # only the figures on the cards
    for words in (f"best {HOSTILE}, trial 0001", f"{HOSTILE}={HOSTILE}", f"{HOSTILE}\n{HOSTILE}"):
        assert words in text
    assert all(not key.startswith("on") for _, attributes in parsed.elements for key in attributes)


def test_each_chart_has_a_title_for_those_who_do_not_see_it(written: Written) -> None:
    parsed = page(ended(written))
    for tag, attributes in parsed.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_a_value_without_effect_is_not_drawn(written: Written) -> None:
    study = written()
    study.trial(1.0, depth=2, width2=32)
    study.trial(2.0, depth=1)
    loaded = history.load(study.directory)
    drawn = {
        name: len(re.findall(r"M\d+ \d+h0", svg))
        for name, svg in re.findall(
            r'aria-label="loss by (\w+)">(.*?)</svg>', report_page.html(loaded)
        )
    }
    assert drawn == {"lr": 2, "depth": 2, "act": 2, "width2": 1}


def test_time_between_two_jobs_is_cut_out(written: Written) -> None:
    study = written()
    study.trial(3.0, 2.0)
    study.now += 50_000
    study.trial(2.5, 1.0)
    text = report_page.write(study.directory).read_text()
    assert "interrupted for 13.9 h" in text
    assert "2 h" not in text


def test_two_trials_at_once_are_two_slots_of_their_node(written: Written) -> None:
    study = written()
    first, second = study.start(), study.start()
    for epoch in (1, 2):
        for name in (first, second):
            study.epoch(name, epoch, 1.0, seconds=2.0, gpu="0")
    lanes = figures._lanes(history.load(study.directory))
    assert list(lanes) == ["node1 GPU 0"]
    assert [[epoch.trial for epoch in lane] for lane in lanes["node1 GPU 0"]] == [
        [first, first],
        [second, second],
    ]


def test_a_clone_is_shown_with_the_config_of_its_best_epoch(written: Written) -> None:
    study = written(searcher="random", scheduler="pbt")
    name = study.start(lr=0.5)
    study.epoch(name, 1, 1.0)
    study.event(
        "restart",
        name,
        epoch=1,
        donor="0002",
        config=history.load(study.directory).tops[name].config | {"lr": 0.25},
    )
    study.epoch(name, 2, 3.0)
    best = history.load(study.directory).best
    assert best is not None
    assert (best.config["lr"], best.value) == (0.5, 1.0)


def test_a_large_study_is_a_small_page_soon(written: Written) -> None:
    study, draw = written(trials=2000), random.Random(0)
    for _ in range(2000):
        values = [draw.random() for _ in range(10)]
        study.trial(*values, lr=10 ** draw.uniform(-4, 0), depth=draw.randint(1, 4))
    began = time.process_time()
    path = report_page.write(study.directory)
    assert time.process_time() - began < 20
    assert path.stat().st_size < 5_000_000


def test_many_long_errors_make_no_long_page(written: Written) -> None:
    study = written(trials=300)
    for i in range(300):
        study.event("end", study.start(), state="failed", error=f"{'x' * 100_000}\nline {'a' * i}")
    path = report_page.write(study.directory)
    assert path.stat().st_size < 500_000
    assert "280 other errors are in trials.jsonl" in path.read_text()


def test_errors_of_one_cause_are_one_row_before_the_plots(written: Written) -> None:
    study = written(trials=9)
    for i in range(7):
        error = f"Traceback:\n  line {i}\nRuntimeError: tried to allocate {i}.5 MiB at 0x{i}f"
        study.event("end", study.start(), state="failed", error=error)
    study.event("end", study.start(), state="failed", error="ValueError: two\nlines of float32")
    study.trial(2.0, 1.0)
    words = page(study.directory).words
    assert "RuntimeError: tried to allocate # MiB at #" in words
    assert "0001, 0002, 0003, 0004, 0005 and 2 more" in words
    assert "ValueError: … lines of float32" in words
    assert words.index("Errors") < words.index("Learning curves")


def test_trials_that_report_once_have_no_curves(written: Written) -> None:
    study = written()
    study.trial(1.0)
    study.trial(2.0)
    assert "Learning curves" not in page(study.directory).words
    study.trial(2.0, 1.0)
    assert "Learning curves" in page(study.directory).words


# ── Importance ──────────────────────────────────────────────────────────────────────────────────

UNIT = domains.Float(0, 1)


def column(values: Any, metric: Any) -> Any:
    return UNIT, list(values), list(metric)


def test_what_matters_is_found_though_it_has_no_trend_and_some_trials_diverged() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 60))
    metric = (x - 0.5) ** 2 + 0.01 * rng.random(60)
    metric[:3] = 1e9
    first, second = importances({"y": column(y, metric), "x": column(x, metric)})
    assert (first.name, first.told, second.told) == ("x", True, False)
    assert first.share > 0.5


def test_too_few_trials_claim_nothing() -> None:
    x = np.linspace(0, 1, MIN_TRIALS - 1)
    assert importances({"x": column(x, x)}) == []


def test_chance_is_seldom_taken_for_importance() -> None:
    rng = np.random.default_rng(0)
    studies = 60
    fooled = 0
    for _ in range(studies):
        metric = rng.random(30)
        fooled += any(
            importance.told
            for importance in importances(
                {f"x{i}": column(rng.random(30), metric) for i in range(8)}
            )
        )
    assert fooled / studies <= 0.1


def test_values_that_are_all_equal_say_nothing() -> None:
    constant = [0.5] * 40
    assert importances({"x": column(constant, range(40))}) == []
    assert not importances({"x": column(np.linspace(0, 1, 40), constant)})[0].told


# ── Scales ──────────────────────────────────────────────────────────────────────────────────────


def test_an_axis_is_logarithmic_where_the_domain_is() -> None:
    scale = chart.of_domain("lr", domains.Float(1e-5, 1e-1, log=True))
    assert scale.at(1e-3) == pytest.approx(0.5)
    assert [label for _, label in scale.ticks] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]


def test_one_diverged_trial_does_not_flatten_the_others() -> None:
    scale = chart.robust("loss", [0.1, 0.2, 0.3, 0.4, 1e9], sign=1)
    assert scale.high < 1
    assert scale.at(1e9) == 1


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e300, -1e300]])
def test_any_values_have_an_axis(values: list[float]) -> None:
    for sign in (1, -1):
        scale = chart.robust("m", values, sign=sign)
        assert all(0 <= scale.at(value) <= 1 for value in values)
        assert 1 <= len(scale.ticks) <= 12


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "entrypoints" / "report.py", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_without_a_name_it_is_the_newest_study(written: Written) -> None:
    for name in ("b", "a"):
        study = written(name)
        study.trial(1.0)
        time.sleep(0.02)
    done = run("--results", str(study.directory.parent))
    assert done.stdout == f"{study.directory / 'report.html'}\n"


def test_a_study_is_named_or_its_directory_is(written: Written) -> None:
    directory = ended(written)
    assert history.find(directory.parent, "study") == [directory]
    assert history.find(Path("elsewhere"), str(directory)) == [directory]
    done = run("nope", "--results", str(directory.parent))
    assert done.returncode == 2
    assert "no study 'nope'" in done.stderr
    assert "it has: study" in done.stderr
    with pytest.raises(UsageError, match="--results DIR"):
        history.find(directory / "ray", None)


@pytest.mark.parametrize("entrypoint", ["report", "status"])
def test_neither_ray_nor_torch_is_imported(written: Written, entrypoint: str) -> None:
    directory = ended(written)
    path = ROOT / "entrypoints" / f"{entrypoint}.py"
    heavy = "{'ray', 'torch', 'sklearn', 'matplotlib', 'optuna', 'rich'}"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', {str(directory)!r}]\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        f"except SystemExit as end: assert not end.code\n"
        f"assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_report_that_cannot_be_written_says_so_and_nothing_more(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    from siftune.driver.ending import write_report

    study = written()
    (study.directory / "report.html").mkdir()
    write_report(study.directory)
    assert capsys.readouterr().err.startswith("could not write report.html: IsADirectoryError")
