"""The progress table: what it says of the time left and of the best."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from siftune.record import history
from siftune.report import table
from siftune.report.table import Bests, Snapshot

Written = Callable[..., Any]


@pytest.fixture
def seen(written: Written) -> Snapshot:
    """A running study with 3 of 10 trials, of which two have ended after 10 s each."""
    study = written(trials=10)
    study.trial(0.5)
    study.trial(0.2, state="pruned")
    study.epoch(study.start(), 1, 0.7)
    study.driver()
    return replace(
        table.snapshot(history.load(study.directory)), began=0.0, ends=[10.0, 20.0], now=20.0
    )


def text(seen: Snapshot, *, height: int = 30) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table.draw(seen, height=height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_journal_becomes_the_table_of_the_driver(seen: Snapshot) -> None:
    lines = text(seen).splitlines()
    assert lines[0].startswith("2 of 10 trials done (1 completed, 1 pruned), 1 running, ")
    assert lines[1].startswith("best loss 0.2 ")
    assert " in trial 0002: " in lines[1]
    assert [line.split()[1] for line in lines if "│ 00" in line] == ["0001", "0002", "0003"]


@pytest.mark.parametrize("height", [1, 9, 12])
def test_the_table_keeps_to_the_height(seen: Snapshot, height: int) -> None:
    rows = [replace(seen.rows[0], trial=f"{n:04}") for n in range(50)]
    assert len(text(replace(seen, rows=rows), height=height).splitlines()) <= max(height, 8)


def test_the_time_left_is_a_range_that_narrows_with_the_number_of_trials(seen: Snapshot) -> None:
    few = table.left_s(seen)
    assert few is not None
    assert few[0] < 80 < few[1]
    regular = replace(seen, ends=[10.0, 20.0, 30.0], now=30.0)
    left = table.left_s(regular)
    assert left == pytest.approx((80, 80))  # two of the three rows have ended: 8 trials are left
    assert ", 80 s left" not in text(regular)
    assert ", about 80 s left" in text(regular)
    irregular = table.left_s(replace(seen, ends=[5.0, 20.0, 30.0], now=30.0))
    assert irregular is not None
    assert irregular[0] < 80 < irregular[1]
    after_a_break = table.left_s(replace(seen, ends=[10.0, 20.0, 1e6, 1e6 + 10], now=1e6 + 10))
    assert after_a_break is not None
    assert after_a_break[1] < 3600


def test_the_time_limit_bounds_the_time_left(seen: Snapshot) -> None:
    limited = replace(seen, study=replace(seen.study, time_limit_s=50.0))
    assert table.left_s(limited) is not None
    assert table.left_s(limited)[1] == 30  # type: ignore[index]


def test_no_time_is_given_before_the_first_end_and_after_the_last(seen: Snapshot) -> None:
    assert table.left_s(replace(seen, ends=[])) is None
    assert " left" not in text(replace(seen, running=False))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 0.5, 0.0], "   █████▅▅▅▁"),
        ([0.0, 0.5, 1.0], "   ▁▁▁▁▁▅▅▅█"),
        ([1.0, 1.0, 1.0], ""),
        ([float("inf"), 1.0, 0.0], "        ███▁"),
        ([-1.5e308, 0.0, 1.5e308], "   ▁▁▁▁▁▅▅▅█"),
        ([], ""),
    ],
)
def test_the_sparkline_has_the_best_at_each_time(values: list[float], expected: str) -> None:
    bests = Bests([40.0, 90.0, 120.0][: len(values)], values, "0001", {})
    assert table.sparkline(bests, 0.0, 120.0) == expected


def test_watch_redraws_until_the_study_has_ended(written: Written) -> None:
    study = written(trials=1)
    trial = study.start()
    study.epoch(trial, 1, 0.25)
    study.driver()
    words = ["status", study.directory.name, "--results", str(study.directory.parent), "--watch"]
    command = [sys.executable, "-c", "from siftune.cli import main; main()", *words]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "--watch redraws a terminal" in refused.stderr
    words = ["script", "-qec", " ".join(f"'{word}'" for word in command), "/dev/null"]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    watch = subprocess.Popen(words, text=True, **pipes)
    assert watch.stdout is not None
    try:
        output = ""
        while "1 running" not in output:
            output += watch.stdout.readline()
        study.event("end", trial, state="completed")
        study.driver(ended=study.now)
        output += watch.communicate(timeout=60)[0]
    finally:
        watch.kill()
    assert watch.returncode == 0, output
    assert output.index("1 running") < output.index("1 of 1 trials done (1 completed)")
    assert "best loss 0.25 in trial 0001" in output
