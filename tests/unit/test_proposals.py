"""A searcher that raises is replaced by a random proposal and a message; the study continues."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from siftune.driver import prefetch
from siftune.driver.prefetch import Prefetch
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.record.journal import Event
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.searchers.bayesopt import BayesOpt
from siftune.searchers.bohb import Bohb
from siftune.searchers.random import Random
from siftune.space import Config, Space
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study

SPACE = {"x": "uniform(-1, 1)", "width": "choice([8, 16, 32])", "epochs": 2}
TRIALS = 8
CALLS = ("propose", "begin", "report", "end")


def study(searcher: str = "random", *, slots: int = 2, **more: Any) -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": SPACE, "trials": TRIALS}
    layer |= {"searcher": searcher, "scheduler": "none", "seed": 0} | more
    return plan(read([layer], {}), slots=slots)[0]


def failing(kind: type[Searcher], call: str, fails: Callable[[int], bool]) -> Searcher:
    """Returns a searcher whose method `call` raises for the call numbers that `fails` accepts."""

    class Failing(kind):  # type: ignore[misc, valid-type]
        calls = 0

    def raising(self: Any, *words: Any) -> Any:
        Failing.calls += 1
        if fails(Failing.calls):
            raise FloatingPointError(f"a matrix is singular,\nin {call}")
        return getattr(kind, call)(self, *words)

    setattr(Failing, call, raising)
    return Failing(Space.read(SPACE), seed=0)


def run(progress: Progress, until: int = TRIALS + 1) -> None:
    """Runs two trials at a time, to the end or until `until` trials have begun."""
    deadline = time.monotonic() + 120
    while not progress.done and len(progress.trials) < until:
        assert time.monotonic() < deadline, "no proposal within the deadline"
        while len(progress.unfinished()) < 2 and progress.begin():
            pass
        for name in progress.unfinished()[:1]:
            epoch = progress.trials[name].epoch + 1
            loss = progress.trials[name].config["x"] ** 2 + 1 / epoch
            progress.report(name, epoch, {"loss": loss}, seconds=0.1)
            if epoch == 2:
                progress.end(name, "completed")
        time.sleep(0.001)


def made(study: Study, proposals: Proposals, log: list[Event]) -> Progress:
    return Progress(study, proposals, study.build_scheduler(), slots=2, write=log.append)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Random, Bohb])
@pytest.mark.parametrize("fails", [lambda n: True, lambda n: n % 3 == 0], ids=["always", "often"])
def test_a_searcher_that_raises_does_not_end_the_study(
    kind: type[Searcher], call: str, fails: Callable[[int], bool]
) -> None:
    s, messages = study(), list[str]()
    progress = made(s, Proposals(s, failing(kind, call, fails), say=messages.append), [])
    run(progress)
    assert progress.by_state()["completed"] == TRIALS
    assert progress.proposals.searcher.running == {}
    assert all("FloatingPointError: a matrix is singular, in " in line for line in messages)
    assert all("(test_proposals.py:" in line and "\n" not in line for line in messages)
    if call == "propose":
        trials = [line.split()[1] for line in messages]
        expected = [f"{n:04d}" for n in range(1, TRIALS + 1)]
        assert trials == expected if fails(1) else set(trials) < set(expected)
    else:
        assert len(messages) == 1
        assert messages[0].startswith(
            f"the searcher random raised an exception for the {call!r} event"
        )


def test_the_random_config_of_a_trial_is_the_same_after_a_restart() -> None:
    def searcher() -> Searcher:
        return failing(Random, "propose", lambda n: True)

    s, whole, cut = study(), list[Event](), list[Event]()
    run(made(s, Proposals(s, searcher(), say=print), whole))
    run(made(s, Proposals(s, searcher(), say=print), cut), until=5)
    resumed = made(s, Proposals(s, searcher(), say=print), cut)
    resumed.replay(list(cut))
    run(resumed)
    starts = [[e["config"] for e in log if e["event"] == "start"] for log in (whole, cut)]
    assert starts[0] == starts[1]


@pytest.mark.parametrize("proposal", [None, {}, {"x": float("nan"), "width": 8, "epochs": 2}])
def test_a_proposal_that_is_no_config_of_the_space_is_a_failure(proposal: Any) -> None:
    s, messages = study(), list[str]()
    searcher = failing(Random, "propose", lambda n: False)
    searcher.propose = lambda number, attempt=0: proposal  # type: ignore[method-assign]
    config = Proposals(s, searcher, say=messages.append).ask(0).config
    assert s.space.mistakes(config) == []
    assert len(messages) == 1


def test_a_space_without_a_config_left_is_no_failure() -> None:
    s, messages = study(), list[str]()
    searcher = failing(Random, "propose", lambda n: False)

    def propose(number: int, attempt: int = 0) -> Config:
        raise SpaceExhausted

    searcher.propose = propose  # type: ignore[method-assign]
    with pytest.raises(SpaceExhausted):
        Proposals(s, searcher, say=messages.append).ask(0)
    assert messages == []


# ── In other processes ──────────────────────────────────────────────────────────────────────────

RAISES = """
from siftune.searchers.bayesopt import BayesOpt
def raising(*words):
    raise FloatingPointError("a matrix is singular")
BayesOpt.{call} = raising
"""


def in_processes(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each new Python process run this code first."""
    (directory / "sitecustomize.py").write_text(text)
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.mark.parametrize("call", ["suggest", "learn", "begin"])
def test_a_searcher_that_raises_ends_none_of_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], call: str
) -> None:
    in_processes(RAISES.format(call=call), tmp_path, monkeypatch)
    s = study("bayesopt", searcher_options={"startup": 3})
    with closing(prefetch.build(s, slots=2)) as proposals:
        assert isinstance(proposals, Prefetch)
        progress = made(s, proposals, [])
        run(progress)
        assert progress.by_state()["completed"] == TRIALS
        assert len(proposals._processes) == 1
    lines = capfd.readouterr().err.splitlines()
    assert "has ended" not in " ".join(lines)
    assert len(lines) == len(set(lines)) >= 1
    assert all("FloatingPointError: a matrix is singular (sitecustomize.py:4)" in s for s in lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            RAISES.format(call="__init__").replace("*words", "self, space, *, seed, startup=3"),
            "FloatingPointError: a matrix is singular (sitecustomize.py:4)",
        ),
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 (Killed)"),
    ],
    ids=["raises", "exits", "killed"],
)
def test_a_process_that_cannot_go_on_is_said_with_its_cause(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    s = study("bayesopt", searcher_options={"startup": 3})
    in_processes(text, tmp_path, monkeypatch)
    with closing(prefetch.build(s, slots=2)) as proposals:
        progress = made(s, proposals, [])
        run(progress)
        assert progress.by_state()["completed"] == TRIALS
    errors = capfd.readouterr().err
    assert f"a process that computes proposals has ended: {words}" in errors
    assert errors.count("\n") == 1


def test_processes_that_end_together_are_each_missed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One process turns out to have ended while it is sent another one's answer."""
    s = study("hebo", searcher_options={"startup": 2})
    with closing(prefetch.build(s, slots=2)) as proposals:
        assert isinstance(proposals, Prefetch)
        first, second = proposals._processes
        second._process.kill()
        second._process.wait()
        theirs, ours = prefetch.Pipe()
        first.connection.close()
        first.connection = ours
        config = Proposals(s, Random(s.space, seed=0)).ask(3).config
        theirs.send((3, config, 0, 0, 0.1, []))
        proposals._ordered[3] = first
        proposals._collect()
        assert proposals._processes == [first]
        assert proposals._ready[3] is not None
    assert capfd.readouterr().err.count("has ended: signal 9") == 1


def test_the_driver_itself_goes_on_where_its_processes_have_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def suggest(*words: Any) -> Any:
        raise FloatingPointError("a matrix is singular")

    monkeypatch.setattr(BayesOpt, "suggest", suggest)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    s = study("bayesopt", searcher_options={"startup": 3})
    with closing(prefetch.build(s, slots=2)) as proposals:
        progress = made(s, proposals, [])
        run(progress)
        assert progress.by_state()["completed"] == TRIALS
    errors = capfd.readouterr().err
    assert "has ended: exit code 1; the driver now computes them" in errors
    assert "gets a random config, because the searcher bayesopt failed" in errors


def test_bohb_moves_on_from_good_configs_that_happen_to_lie_close_together() -> None:
    space = Space.read({"x": "uniform(0, 1)", "kind": "choice(['a', 'b'])"})
    nearest = []
    for seed in range(11):
        searcher, distances = Bohb(space, seed=seed), []
        for number in range(40):
            config = searcher.propose(number)
            searcher.begin(str(number), config)
            distances.append(abs(config["x"] - 0.3))
            searcher.report(str(number), 1, distances[-1])
            searcher.end(str(number), distances[-1])
        nearest.append(min(distances))
    assert median(nearest) < 0.005  # 0.014 with the bandwidth of the paper
