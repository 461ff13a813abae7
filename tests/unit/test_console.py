"""The live table follows a study. One thread updates the study, another one draws the table."""

import io
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from siftune.driver.console import Table
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.record.journal import Event, Trial
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study


@pytest.fixture
def study() -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": {"x": "uniform(0, 1)", "epochs": 2}}
    layer |= {"trials": 400, "searcher": "random", "scheduler": "none"}
    return plan(read([layer], {}), slots=4)[0]


def progress_of(study: Study, *sinks: Any, log: list[Event] | None = None) -> Progress:
    proposals = Proposals(study, study.build_searcher())
    write = [].append if log is None else log.append
    scheduler = study.build_scheduler()
    return Progress(study, proposals, scheduler, slots=4, write=write, sinks=sinks)


def run(progress: Progress, trials: int, *, epochs: int = 2) -> None:
    for _ in range(trials):
        trial = progress.begin()
        assert trial is not None
        for epoch in range(1, epochs + 1):
            progress.report(trial.trial, epoch, {"loss": trial.config["x"]}, seconds=0.1)
        if epochs == 2:
            progress.end(trial.trial, "completed")


def text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Owned(dict[str, Trial]):
    """A dictionary that only its creator thread may read: others could see half a change."""

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.get_ident()

    def __getattribute__(self, name: str) -> Any:
        if threading.get_ident() != object.__getattribute__(self, "_owner"):
            raise RuntimeError("another thread reads a dictionary that the driver changes")
        return super().__getattribute__(name)


def test_the_table_is_drawn_without_a_look_at_what_the_driver_changes(study: Study) -> None:
    table, failures, over = Table(study), list[BaseException](), threading.Event()

    def draw() -> None:
        while not over.is_set() and not failures:
            try:
                table.render()
            except BaseException as error:
                failures.append(error)

    progress = progress_of(study, table)
    progress.trials = Owned()
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        run(progress, 400)
    finally:
        over.set()
        thread.join()
    assert failures == []
    assert "400 of 400 trials done (400 completed) " in text(table)


def test_the_table_shows_what_runs_and_the_best_and_the_latest(study: Study) -> None:
    table = Table(study)
    assert "starting Ray" in text(table)
    progress = progress_of(study, table)
    run(progress, 30)
    run(progress, 2, epochs=1)
    assert progress.best is not None
    drawn = text(table)
    title, best = drawn.splitlines()[:2]
    assert re.fullmatch(
        r"30 of 400 trials done \(30 completed\), 2 running, (about )?\d.* left *", title
    )
    value = progress.best.metrics["loss"]
    assert best.startswith(f"best loss {value:.4g} ")
    assert best.rstrip().endswith(f" in trial {progress.best.trial}: x={value:.4g}")
    shown = [line.split()[1] for line in drawn.splitlines()[2:] if "completed" in line]
    latest = [f"{n:04d}" for n in range(18, 31)]
    assert set(latest) <= {*shown, progress.best.trial}
    assert len(shown) == 14
    assert drawn.count("running") == 1 + 2  # the title counts them


def test_an_interrupted_study_is_in_the_table_from_its_first_event_on(study: Study) -> None:
    log: list[Event] = []
    run(progress_of(study, log=log), 5)
    table = Table(study)
    progress = progress_of(study, table)
    progress.replay(log)
    run(progress, 1, epochs=1)
    assert "5 of 400 trials done (5 completed), 1 running" in text(table)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("metric", ["loss", "validation/mean_average_precision_loss"])
def test_state_epoch_and_metric_are_readable_at_any_width(width: int, metric: str) -> None:
    """With the default space, of 17 parameters, whose configs are cut."""
    layer = {"trainable": "mnist", "name": "s", "metric": metric, "mode": "min", "trials": 40}
    layer |= {"searcher": "random", "scheduler": "none"}
    study = plan(read([layer], {}), slots=4)[0]
    output = io.StringIO()
    console = Console(file=output, width=width, height=20)
    table = Table(study, console)
    progress = progress_of(study, table)
    for _ in range(30):
        trial = progress.begin()
        assert trial is not None
        progress.report(trial.trial, 1, {metric: 0.123456}, seconds=0.1)
        progress.end(trial.trial, "completed")
    console.print(table.render())
    lines = output.getvalue().splitlines()
    assert len(lines) <= 20  # the title and the header stay in sight
    rows = [line for line in lines if "00" in line and "completed" in line]
    assert len(rows) >= 10
    assert all("0.1235" in row and "lr=" in row for row in rows)
    assert all(len(line) <= width for line in lines)
