"""Proposals computed ahead in real processes: which results they know, and how processes end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from siftune.driver import prefetch
from siftune.driver.prefetch import Prefetch
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.record.journal import Event, trial_name
from siftune.space import Config
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study
from tests.told import proposed

SPACE = {
    "x": "uniform(-1, 1)",
    "lr": "loguniform(1e-4, 1)",
    "width": "choice([8, 16, 32])",
    "epochs": 1,
}
SLOTS, TRIALS = 4, 14
SEARCHERS: list[tuple[str, dict[str, Any]]] = [
    ("hebo", {"startup": 8}),  # a proposal of its model takes several seconds
    ("bayesopt", {"startup": 4}),
    ("optuna", {"startup": 4, "sampler": "gp"}),
]


def study(searcher: str = "bayesopt", options: dict[str, Any] | None = None, **more: Any) -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": SPACE, "trials": TRIALS}
    layer |= {
        "seed": 0,
        "searcher": searcher,
        "searcher_options": options or {},
        "scheduler": "none",
    } | more
    return plan(read([layer], {}), slots=SLOTS)[0]


def loss(config: Config) -> float:
    return config["x"] ** 2 + config["width"] / 32


def run(study: Study, proposals: Proposals) -> list[Event]:
    """Runs a whole study and returns its journal."""
    log: list[Event] = []
    go_on(Progress(study, proposals, study.build_scheduler(), slots=SLOTS, write=log.append))
    return log


def go_on(progress: Progress, *, until: int = TRIALS) -> None:
    """Runs the study until `until` trials have begun, or all have ended.

    Trials end one at a time, in the order in which they started.
    """
    deadline = time.monotonic() + 240
    while not progress.done and (until == TRIALS or len(progress.trials) < until):
        assert time.monotonic() < deadline, "no proposal within the deadline"
        while len(progress.unfinished()) < SLOTS and progress.begin():
            pass
        if len(progress.unfinished()) == SLOTS or progress.all_begun:
            name = progress.unfinished()[0]
            progress.report(name, 1, {"loss": loss(progress.trials[name].config)}, seconds=0.1)
            progress.end(name, "completed")
        time.sleep(0.01)


@pytest.mark.parametrize(("searcher", "options"), SEARCHERS)
def test_each_proposal_knows_the_ends_before_it_and_all_that_runs(
    searcher: str, options: dict[str, Any]
) -> None:
    s = study(searcher, options)
    with closing(prefetch.build(s, slots=SLOTS)) as proposals:
        assert isinstance(proposals, Prefetch)
        log = run(s, proposals)
    starts = [event for event in log if event["event"] == "start"]
    assert [event["trial"] for event in starts] == [trial_name(n) for n in range(TRIALS)]
    for start in starts:
        ended = sum(event["event"] == "end" for event in log[: log.index(start)])
        assert ("knew" in start) == (ended >= options["startup"])
        if "knew" not in start:
            continue
        # Proposals are computed ahead: at most two trials have ended since then.
        assert ended - SLOTS // 2 <= start["knew"] <= ended
        assert start["config"] in proposed(s, log, start)


def test_one_slot_waits_for_its_proposal_and_knows_all() -> None:
    assert not isinstance(prefetch.build(study(), slots=1), Prefetch)


def test_fast_searchers_propose_when_they_are_asked() -> None:
    assert processes(prefetch.build(study("bohb", scheduler="bohb"), slots=8)) == []
    assert processes(prefetch.build(study("optuna"), slots=8)) == []


def processes(proposals: Proposals) -> list[int]:
    assert isinstance(proposals, Prefetch)
    return [process._process.pid for process in proposals._processes]


@pytest.mark.parametrize("until", [2, TRIALS - 4])
def test_without_its_processes_a_study_goes_on(
    until: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kills the processes before the searcher's first model, and after it."""
    s = study("hebo", {"startup": 4})
    with closing(prefetch.build(s, slots=SLOTS)) as proposals:
        log: list[Event] = []
        progress = Progress(s, proposals, s.build_scheduler(), slots=SLOTS, write=log.append)
        go_on(progress, until=until)
        for pid in processes(proposals):
            os.kill(pid, signal.SIGKILL)
        go_on(progress)
        assert progress.by_state()["completed"] == TRIALS
        assert processes(proposals) == []
    assert "has ended" in capfd.readouterr().err


def test_a_finite_space_is_trained_to_its_end() -> None:
    s = study(
        options={"startup": 1},
        space={"width": "choice([8, 16, 32])", "x": 0.5, "epochs": 1},
        trials=9,
    )
    with closing(prefetch.build(s, slots=SLOTS)) as proposals:
        log = run(s, proposals)
    configs = [event["config"]["width"] for event in log if event["event"] == "start"]
    assert sorted(configs) == [8, 16, 32]


def test_no_process_outlives_its_driver() -> None:
    program = (
        "import os, sys, time\n"
        "from siftune.driver import prefetch; from tests.unit.test_prefetch import study\n"
        "p = prefetch.build(study(), slots=4); print(p._processes[0]._process.pid, flush=True);"
        "time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    pid = int(driver.stdout.readline())
    os.kill(pid, 0)
    driver.kill()
    driver.wait()
    await_(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
