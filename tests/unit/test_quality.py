"""The simulation of the benchmark of the search's quality."""

import json
from pathlib import Path

import numpy as np
import pytest

from siftune.space import Config, Space
from tests.bench.quality import measure
from tests.bench.quality.measure import CURVES, ONCE, SLOW, Cell, build, cells, ranks, run, tables
from tests.bench.quality.simulation import Next, simulate
from tests.bench.quality.tasks import EPOCHS, TASKS, Task
from tests.readme import assert_part

SLOPE = Task("slope", {}, lambda config: config["x"], 0.0, cost=lambda config: config["s"])


class Listed:
    """Trains given configs in order, each for two epochs, and notes when each epoch ended."""

    def __init__(self, *configs: Config) -> None:
        self.configs = list(enumerate(configs))
        self.reports: list[tuple[str, int]] = []

    def start(self, *, idle: bool) -> tuple[str, int, Config] | None:
        if not self.configs:
            return None
        number, config = self.configs.pop(0)
        return str(number), 1, config

    def report(self, trial: str, epoch: int, loss: float, seconds: float) -> Next:
        self.reports.append((trial, epoch))
        return Next.LEAVE

    def fail(self, trial: str) -> None:
        self.reports.append((trial, 0))


def test_slots_train_at_the_same_time() -> None:
    configs = [{"x": 3.0, "s": 10.0}, {"x": 2.0, "s": 4.0}, {"x": 1.0, "s": 3.0}]
    method = Listed(*configs)
    points = list(simulate(SLOPE, method, slots=2, until_s=100))
    assert [(p.time, p.best) for p in points] == [(4.0, 2.0), (7.0, 1.0), (10.0, 1.0)]
    assert method.reports == [("1", 1), ("2", 1), ("0", 1)]
    assert [p.time for p in simulate(SLOPE, Listed(*configs), slots=1, until_s=15)] == [10.0, 14.0]


def test_a_trial_that_fails_frees_its_slot() -> None:
    task = TASKS["too large"]
    large = {"width": 1024, "batch_size": 256, "lr": 1e-3}
    small = large | {"width": 64}
    method = Listed(large, small)
    points = list(simulate(task, method, slots=1, until_s=1000))
    assert method.reports == [("0", 0), ("1", 1)]
    assert [p.time for p in points] == [120.0]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_task_repeats_itself_and_is_never_below_its_minimum(task: Task) -> None:
    space = Space.read(task.space)
    for seed in range(50):
        config = space.sample(np.random.default_rng(seed))
        curve = task.curve(config)
        assert curve == task.curve(config)
        assert curve is None or len(curve) == task.epochs
        assert curve is None or min(curve) > task.minimum - 0.06  # noise
    assert sum(task.apart for task in TASKS.values()) >= len(TASKS) / 3


@pytest.mark.parametrize("method", ONCE)
@pytest.mark.parametrize("slots", [1, 8])
def test_methods_train_all_trials_and_repeat_themselves(
    method: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "TRIALS", 14)
    cell = run(Cell("conditional", method, slots, 1))
    assert cell == run(Cell("conditional", method, slots, 1))
    assert cell.regret[0] >= cell.regret[1] >= cell.regret[2] > 0


@pytest.mark.parametrize("method", [m for m in CURVES if "gp" not in m])
def test_methods_with_curves_prune_and_use_the_whole_time(method: str) -> None:
    task = TASKS["network curves"]
    built = build(method, task, slots=4, seed=0, trials=5000)
    until_s = 20 * EPOCHS * 60.0 / 4
    points = list(simulate(task, built, slots=4, until_s=until_s))
    assert points[-1].time > 0.99 * until_s
    assert points[-1].best < 1


def test_ranks_are_averaged_over_tasks_and_seeds() -> None:
    results = [
        Cell("network curves", "a", 4, 0, (1, 1, 1.0)),
        Cell("network curves", "b", 4, 0, (1, 1, 2.0)),
        Cell("hartmann curves", "a", 4, 0, (1, 1, 3.0)),
        Cell("hartmann curves", "b", 4, 0, (1, 1, 3.0)),
        Cell("boosting curves", "a", 4, 0, (1, 1, 9.0)),  # set apart
    ]
    assert ranks(results, apart=False) == {"a": 1.25, "b": 1.75}


def test_the_page_has_what_was_measured() -> None:
    measured = {(row["task"], row["method"]) for row in json.loads(measure.RESULTS.read_text())}
    usual = {(cell.task, cell.method) for cell in cells() if cell.method not in SLOW}
    assert usual <= measured
    assert_part(measure.PAGE, "quality", tables())
    assert Path(measure.RESULTS).stat().st_size < 400_000
