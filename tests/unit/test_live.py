"""The report of a running study: written in the background, and reloaded by the browser."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siftune.record import history
from siftune.report import live, page
from siftune.report.live import LivePage

Written = Callable[..., Any]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_S", 0)


def await_page(report: Path) -> str:
    deadline = time.monotonic() + 60
    while not report.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return report.read_text()


def test_the_page_of_a_running_study_is_written_and_reloads_itself(written: Written) -> None:
    study = written(trials=2)
    study.epoch(study.start(), 1, 0.5)
    study.driver()
    live_page, report = LivePage(study.directory), study.directory / "report.html"
    live_page.look()
    text = await_page(report)
    assert '<meta http-equiv="refresh" content="30">' in text
    assert "This page reloads every 30 s" in text
    live_page.end()
    study.driver(ended=study.now)
    assert "refresh" not in page.html(history.load(study.directory))
    assert not list(study.directory.glob("*.part"))


def test_the_page_is_written_again_when_it_is_due_and_by_one_process(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = written(trials=2)
    study.driver()
    live_page, report = LivePage(study.directory), study.directory / "report.html"
    live_page.look()
    process = live_page._process
    live_page.look()
    assert live_page._process is process  # it has not ended
    await_page(report)
    live_page.end()
    report.unlink()
    live_page.look()
    assert live_page._process is None  # 30 s have not passed
    monkeypatch.setattr(live, "RELOAD_S", 0.1)
    live_page = LivePage(study.directory)
    for _ in range(2):
        report.unlink(missing_ok=True)
        deadline = time.monotonic() + 60
        while not report.exists():
            assert time.monotonic() < deadline
            live_page.look()
            time.sleep(0.05)
    live_page.end()


def test_a_directory_that_cannot_be_written_does_not_disturb_the_study(written: Written) -> None:
    study = written(trials=2)
    (study.directory / "report.html").mkdir()
    live_page = LivePage(study.directory)
    live_page.look()
    live_page.end()


def test_a_users_file_may_be_named_like_a_library(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = written(trials=2)
    study.driver()
    monkeypatch.chdir(study.directory)
    for name in ("csv", "json", "numpy", "yaml"):
        Path(f"{name}.py").write_text("raise SystemExit('the wrong file')")
    live_page = LivePage(study.directory)
    live_page.look()
    await_page(study.directory / "report.html")
    live_page.end()
