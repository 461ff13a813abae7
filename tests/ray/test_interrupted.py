"""A study that was killed and resumed has the same results as an uninterrupted one.

Tested for every pair of searcher and scheduler, with a real Ray and SIGKILL to the driver.
"""

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from drivers import Driver

from siftune.record import journal
from siftune.record.journal import Event, Trial, fold
from siftune.schedulers import SCHEDULERS
from siftune.schedulers.base import Clone, Decision, Order, Resume, Stop
from siftune.searchers import SEARCHERS
from siftune.searchers.base import Searcher
from siftune.space import Config, key
from siftune.study.pairs import refusal
from siftune.study.reading import read_saved
from siftune.study.study import Study
from tests.readme import assert_part
from tests.told import proposed

PLAIN = ("random", "none")
PAIRS = [(s, c) for s in SEARCHERS for c in SCHEDULERS if refusal(s, c) is None]
WALKER = Path(__file__).with_name("walker.py")
TABLE = "src/siftune/searchers/README.md"
TRIALS, EPOCHS = 10, 4
# Few results before the first model, so that most proposals after a kill come from a model.
SEARCHER_ARGS = {"optuna": "startup=2", "hebo": "startup=5", "bayesopt": "startup=2"}
SEARCHER_ARGS |= {"bohb": "min_points=2", "portfolio": "startup=2"}
SCHEDULER_ARGS = {name: "eta=2" for name in ("asha", "hyperband", "bohb")}


class Ran:
    """The content of a study directory. `begun` also counts epochs that a kill cut short."""

    def __init__(self, directory: Path, *, kills: tuple[int, ...]) -> None:
        self.kills = kills
        self.begun = (directory / "begun").read_text().count("\n")
        self.directory = directory / "results" / "s"
        text = (self.directory / "trials.jsonl").read_text()
        self.events: list[Event] = [json.loads(line) for line in text.splitlines()]
        self.best = json.loads((self.directory / "best.json").read_text())
        self.summary = json.loads((self.directory / "summary.json").read_text())
        self.study: Study = read_saved(self.directory)
        self.trials: dict[str, Trial] = {}
        for event in self.events:
            fold(self.trials, event)

    @property
    def epochs(self) -> int:
        return sum(len(trial.epochs) for trial in self.trials.values())

    def decided(self) -> dict[str, Any]:
        """Returns each trial's config, epochs and state, and the best trial."""
        trials = {
            name: (trial.config, trial.epochs, trial.state) for name, trial in self.trials.items()
        }
        return {"trials": trials, "best": self.best | {"checkpoint": None}}


@pytest.fixture(scope="module")
def run(job: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """Runs a study to its end. Kills its driver with SIGKILL after these lines of the journal."""
    base = tmp_path_factory.mktemp("studies")

    def begin(
        pair: tuple[str, str],
        *,
        slots: int,
        kills: tuple[int, ...] = (),
        spoil: tuple[Callable[[Path, str], None], ...] = (),
    ) -> Ran:
        searcher, scheduler = pair
        directory = Path(tempfile.mkdtemp(prefix=f"{searcher}-{scheduler}-", dir=base))
        walker = shutil.copy(WALKER, directory)
        flags = ["--trainable", f"{walker}:train", "--name", "s", "--trials", str(TRIALS)]
        flags += ["--searcher", searcher, "--scheduler", scheduler, "--concurrent", str(slots)]
        flags += ["--seed", "0", "--cpus-per-trial", "0.2"]  # many studies run at the same time
        flags += ["--space", f"{walker}:GRID"] if searcher == "grid" else []
        if searcher in SEARCHER_ARGS:
            # A model of HEBO takes seconds, so most pairs use only a few. With hyperband, most
            # trials have started when the fifth ends, so the model must start earlier.
            early = pair == ("hebo", "hyperband")
            flags += ["--searcher-arg", "startup=2" if early else SEARCHER_ARGS[searcher]]
        if scheduler in SCHEDULER_ARGS:
            flags += ["--scheduler-arg", SCHEDULER_ARGS[scheduler]]
        study = directory / "results" / "s"
        for lines in kills:
            driver = Driver(flags, directory=directory, environment=job)
            driver.wait_for(study / "trials.jsonl", lines)
            driver.kill()
            flags = ["--resume", "s"]
        for number, spoil_one in enumerate(spoil, start=1):
            driver = Driver(flags, directory=directory, environment=job)
            driver.wait_until(lambda name=f"{number:04d}": _epochs(study, name) >= 2)
            driver.kill()
            spoil_one(study, f"{number:04d}")
            flags = ["--resume", "s"]
        driver = Driver(flags, directory=directory, environment=job)
        assert driver.wait() == 0, driver.said
        return Ran(directory, kills=kills)

    return begin


def _epochs(study: Path, trial: str) -> int:
    """Returns the number of epochs of the trial in the journal."""
    events = journal.events(study)
    return max((e["epoch"] for e in events if e["trial"] == trial and "metrics" in e), default=0)


@pytest.fixture(scope="module")
def ran(
    run: Callable[..., Ran], request: pytest.FixtureRequest
) -> Iterator[dict[tuple[str, str], list[Future[Ran]]]]:
    """Yields three studies per pair: uninterrupted, killed twice, and killed once with two slots.

    Several run at once, ahead of their tests: they mostly wait for processes to start.
    """
    wanted = [getattr(item, "callspec", None) for item in request.session.items]
    studies: dict[tuple[str, str], list[Future[Ran]]] = {}
    with ThreadPoolExecutor(5) as threads:
        for pair in [call.params["pair"] for call in wanted if call and "pair" in call.params]:
            rng = random.Random("-".join(pair))
            # With PBT, all trials start before the first is cloned.
            first = rng.randint(22, 40) if pair[1] == "pbt" else rng.randint(6, 16)
            second = first + rng.randint(4, 12)
            studies[pair] = [
                threads.submit(run, pair, slots=1),
                threads.submit(run, pair, slots=1, kills=(first, second)),
                threads.submit(run, pair, slots=2, kills=(rng.randint(first, second),)),
            ]
        yield studies
        threads.shutdown(cancel_futures=True)


results: dict[tuple[str, str], str] = {}  # for the table in TABLE


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_killed_study_is_the_study_that_was_not(
    ran: dict[tuple[str, str], list[Future[Ran]]], pair: tuple[str, str]
) -> None:
    whole, killed, in_two_slots = [study.result() for study in ran[pair]]
    results[pair] = "differs"
    assert killed.decided() == whole.decided()
    results[pair] = "same"

    for study in (killed, in_two_slots):
        assert_nothing_is_lost_or_doubled(study)
        assert_decisions_are_those_of_one_scheduler(study)
    assert_proposals_are_those_of_one_searcher(in_two_slots)
    assert whole.summary["restarts"] == 0
    assert killed.summary["restarts"] <= 2


def lose_lines(study: Path, trial: str) -> None:
    """Removes the end of the journal, as if only that had not been on the disk yet."""
    path = study / "trials.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def tear_line(study: Path, trial: str) -> None:
    path = study / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def lose_files(study: Path, trial: str) -> None:
    for name in ("best.json", "summary.json"):
        (study / name).unlink()


def checkpoints(study: Path, trial: str) -> list[Path]:
    directories = sorted((study / "checkpoints" / trial).glob("checkpoint_*"))
    assert directories
    return directories


def lose_checkpoints(study: Path, trial: str) -> None:
    for path in checkpoints(study, trial):
        shutil.rmtree(path)


def empty_checkpoints(study: Path, trial: str) -> None:
    for path in checkpoints(study, trial):
        (path / "state.json").unlink()


def truncate_last_checkpoint(study: Path, trial: str) -> None:
    (checkpoints(study, trial)[-1] / "state.json").write_text("")


def test_what_a_power_cut_takes_is_done_again(run: Callable[..., Ran]) -> None:
    """Kills the driver in each trial after its second epoch, and each time removes other data."""
    spoil: tuple[Callable[[Path, str], None], ...] = (lose_lines, tear_line, lose_files)
    spoil += (lose_checkpoints, empty_checkpoints, truncate_last_checkpoint)
    with ThreadPoolExecutor() as threads:
        whole = threads.submit(run, PLAIN, slots=1)
        spoilt = threads.submit(run, PLAIN, slots=1, spoil=spoil)
    assert spoilt.result().decided() == whole.result().decided()


def assert_nothing_is_lost_or_doubled(ran: Ran) -> None:
    names = [f"{number:04d}" for number in range(1, TRIALS + 1)]
    assert [e["trial"] for e in ran.events if e["event"] == "start"] == names
    assert Counter(e["trial"] for e in ran.events if e["event"] == "end") == Counter(names)
    for trial in ran.trials.values():
        assert list(trial.epochs) == [*range(1, trial.epoch + 1)]
        assert (trial.state, trial.epoch < EPOCHS) in {("completed", False), ("pruned", True)}
    slots = ran.study.concurrent or 0
    assert 0 <= ran.begun - ran.epochs <= len(ran.kills) * slots, "epochs trained again"
    # An epoch that was trained again has the same metrics.
    metrics: dict[tuple[str, int], Any] = {}
    for event in ran.events:
        if event["event"] == "epoch":
            first = metrics.setdefault((event["trial"], event["epoch"]), event["metrics"])
            assert event["metrics"] == first
    assert ran.best["metrics"] == min(metrics.values(), key=lambda m: m["loss"])
    assert (ran.directory / ran.best["checkpoint"]).is_file()
    states = {state: count for state, count in ran.summary["trials"].items() if count}
    assert states == Counter(trial.state for trial in ran.trials.values())
    assert 0 < ran.summary["busy_fraction"] <= 1


def assert_decisions_are_those_of_one_scheduler(ran: Ran) -> None:
    """Asserts that one uninterrupted scheduler, told the whole journal, decides the same.

    This shows that an interruption does not change the rungs.
    """
    scheduler = ran.study.build_scheduler()
    trials: dict[str, Trial] = {}
    decisions: dict[str, Decision] = {}

    def ordered(trial: str) -> list[Order]:
        idle = scheduler.orders(idle=True) if len(trials) == TRIALS else []
        return [order for order in scheduler.orders() + idle if order.trial == trial]

    for event in ran.events:
        name, kind, epoch = event["trial"], event["event"], event.get("epoch")
        new = kind == "epoch" and epoch not in trials[name].epochs
        paused = decisions.get(name) is Decision.PAUSE
        if kind == "restart" and "donor" in event:
            assert Clone(name, event["donor"], event["config"]) in ordered(name)
        elif new and paused:
            assert any(isinstance(order, Resume | Clone) for order in ordered(name))
        elif new:
            assert decisions.get(name) is not Decision.STOP
        elif kind == "end" and event["state"] == "pruned":
            stopped = decisions[name] is Decision.STOP
            assert stopped or (paused and Stop(name) in ordered(name))
        elif kind == "end":
            assert decisions[name] is Decision.CONTINUE
        trial = fold(trials, event)
        if kind == "start":
            scheduler.begin(name, trial.config)
        elif new:
            decision = scheduler.report(name, epoch, event["metrics"]["loss"])
            decisions[name] = decision if epoch < EPOCHS else Decision.CONTINUE
        elif kind == "end":
            scheduler.end(name)


def assert_proposals_are_those_of_one_searcher(ran: Ran) -> None:
    """Asserts that one searcher, told the whole journal, proposes the configs that were trained.

    Checks each trial started after the first kill. A searcher that is told nothing must propose
    other configs, if the searcher has a model.
    """
    searcher = ran.study.build_searcher()
    trials: dict[str, Trial] = {}
    known: set[str] = set()
    learnt = 0
    for line, event in enumerate(ran.events, start=1):
        name, kind, epoch = event["trial"], event["event"], event.get("epoch")
        if kind == "start" and line > ran.kills[0]:
            number = len(trials)
            if "knew" in event:  # the proposal was computed ahead
                assert event["config"] in proposed(ran.study, ran.events, event)
            else:
                assert event["config"] == propose(searcher, number, known)
            ignorant = propose(ran.study.build_searcher(), number, known)
            learnt += event["config"] != ignorant
        new = kind == "epoch" and epoch not in trials[name].epochs
        trial = fold(trials, event)
        known.add(key(trial.config))
        if kind == "start":
            searcher.begin(name, trial.config)
        elif new:
            searcher.report(name, epoch, event["metrics"]["loss"], event["seconds"])
        elif kind == "end":
            searcher.end(name, min(metrics["loss"] for metrics in trial.epochs.values()))
    assert (learnt > 0) == (ran.study.searcher not in ("random", "grid"))


def propose(searcher: Searcher, number: int, known: set[str]) -> Config:
    """Returns the first proposal that was not trained before."""
    proposals = (searcher.propose(number, attempt) for attempt in range(20))
    return next(config for config in proposals if key(config) not in known)


def test_the_table_of_killed_studies_is_what_was_found() -> None:
    if len(results) < len(PAIRS):
        pytest.skip("the table needs all pairs, but only some were run")
    rows = ["| | " + " | ".join(f"`{name}`" for name in SCHEDULERS) + " |"]
    rows.append("|---" * (1 + len(SCHEDULERS)) + "|")
    for searcher in SEARCHERS:
        cells = [results.get((searcher, scheduler), "—") for scheduler in SCHEDULERS]
        rows.append(f"| `{searcher}` | " + " | ".join(cells) + " |")
    assert_part(TABLE, "interrupted", rows)
