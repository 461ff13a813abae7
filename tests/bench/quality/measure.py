"""Runs the methods on the tasks, and writes the tables of tests/bench/quality/README.md."""

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Any

from scipy.stats import rankdata, wilcoxon

from tests.bench.quality.pairs import Pair
from tests.bench.quality.peers import PEERS
from tests.bench.quality.simulation import Method, simulate
from tests.bench.quality.tasks import TASKS, Task
from tests.readme import write_part

RESULTS = Path(__file__).with_name("results.json")
PAGE = "tests/bench/quality/README.md"

# Trials that report once: this many, with 1 and with 8 at once. Trials with learning curves: in 4
# slots, for the time in which this many trials of all epochs train.
TRIALS, TRAININGS, CURVE_SLOTS = 40, 20, 4
SEEDS, ONCE_SEEDS = 10, 5
QUARTERS = (0.25, 0.5, 1.0)  # of the trials or of the time, at which the regret is taken
LEAST = 1e-4  # a smaller regret counts as this one

ONCE = ("random+none", "optuna+none", "optuna.gp+none", "bayesopt+none", "portfolio+none")
ONCE += ("Optuna TPE", "Optuna GP")
SLOW = ("hebo+none", "HEBO")  # a proposal takes seconds: they run if they are asked for
CURVES = ("random+asha", "optuna+asha", "portfolio+asha", "optuna.gp+asha", "optuna+hyperband")
CURVES += ("bohb+bohb", "Optuna TPE + successive halving", "Optuna TPE + Hyperband")
CURVES += ("Optuna random + successive halving",)


@dataclass(frozen=True)
class Cell:
    """One run of a method on a task. `regret`: at each of `QUARTERS`."""

    task: str
    method: str
    slots: int
    seed: int
    regret: tuple[float, ...] = ()


def build(name: str, task: Task, *, slots: int, seed: int, trials: int) -> Method:
    """Returns a peer of this name, or a pair of siftune's."""
    method: Any = PEERS.get(name)
    if method is not None:
        built: Method = method(task, slots=slots, seed=seed, trials=trials)
        return built
    return Pair(name, task, slots=slots, seed=seed, trials=trials)


def run(cell: Cell) -> Cell:
    """Returns the cell with its regrets: the best loss so far minus the task's minimum."""
    task = TASKS[cell.task]
    if task.epochs > 1:
        trials, until_s = 5000, TRAININGS * task.epochs * _usual_cost(task) / cell.slots
    else:
        trials, until_s = TRIALS, TRIALS * 60.0 / cell.slots
    method = build(cell.method, task, slots=cell.slots, seed=cell.seed, trials=trials)
    points = list(simulate(task, method, slots=cell.slots, until_s=until_s + 1e-6))
    regret = []
    for quarter in QUARTERS:
        best = min((p.best for p in points if p.time <= quarter * until_s + 1e-6), default=math.inf)
        regret.append(max(LEAST, best - task.minimum))
    return Cell(cell.task, cell.method, cell.slots, cell.seed, tuple(regret))


def _usual_cost(task: Task) -> float:
    """Returns the seconds of an epoch, as the mean of random configs."""
    import numpy as np

    from siftune.space import Space

    space, rng = Space.read(task.space), np.random.default_rng(0)
    return mean(task.cost(space.sample(rng)) for _ in range(200))


def cells() -> list[Cell]:
    once = [name for name, task in TASKS.items() if task.epochs == 1]
    curves = [name for name, task in TASKS.items() if task.epochs > 1]
    slow = [(t, m, s, range(ONCE_SEEDS)) for t in once for m in SLOW for s in (1, 8)]
    fast = [(t, m, s, range(ONCE_SEEDS)) for t in once for m in ONCE for s in (1, 8)]
    long = [(t, m, CURVE_SLOTS, range(SEEDS)) for t in curves for m in CURVES]
    return [Cell(t, m, s, seed) for t, m, s, all_ in (*slow, *long, *fast) for seed in all_]


def measure(only: Sequence[str] = ()) -> dict[str, float]:
    """Runs all cells, and writes results.json and the tables. Returns the average ranks on the
    tasks that are set apart."""
    wanted = [cell for cell in cells() if cell.method in (only or (*ONCE, *CURVES))]
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as processes:
        done = list(processes.map(run, wanted, chunksize=4))
    kept = [] if not RESULTS.exists() else [Cell(**row) for row in json.loads(RESULTS.read_text())]
    kept = [cell for cell in kept if only and cell.method not in only]
    rows = [json.dumps(asdict(cell)) for cell in sorted(kept + done, key=str)]
    RESULTS.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    write_part(PAGE, "quality", tables())
    return ranks(load(), apart=True)


def load() -> list[Cell]:
    return [Cell(**row) for row in json.loads(RESULTS.read_text())]


def tables() -> list[str]:
    """Returns the tables of what was measured."""
    results = load()
    lines: list[str] = []
    for apart in (False, True):
        which = "set apart" if apart else "used while searchers were improved"
        lines += [f"### Trials with learning curves, tasks {which}", "", *_curves(results, apart)]
        lines += ["", f"### Trials that report once, tasks {which}", "", *_once(results, apart), ""]
    return lines[:-1]


def ranks(results: Iterable[Cell], *, apart: bool, quarter: int = 2) -> dict[str, float]:
    """Returns each method's average rank over tasks with curves and seeds; 1 is the best."""
    given: dict[str, list[float]] = {}
    by_run: dict[tuple[str, int], dict[str, float]] = {}
    for cell in results:
        if TASKS[cell.task].epochs > 1 and TASKS[cell.task].apart == apart:
            by_run.setdefault((cell.task, cell.seed), {})[cell.method] = cell.regret[quarter]
    for regrets in by_run.values():
        for method, rank in zip(regrets, rankdata(list(regrets.values())), strict=True):
            given.setdefault(method, []).append(float(rank))
    return {method: mean(all_) for method, all_ in given.items()}


def _curves(results: list[Cell], apart: bool) -> list[str]:
    tasks = [t.name for t in TASKS.values() if t.epochs > 1 and t.apart == apart]
    by_quarter = [ranks(results, apart=apart, quarter=q) for q in range(3)]
    head = ["method", *(f"{t}: 25, 50, 100 %" for t in tasks), "rank: 25, 50, 100 %", "p"]
    lines = [_row(head), _row(["---"] * len(head))]
    best = min(by_quarter[2], key=lambda m: by_quarter[2][m])
    for method in sorted(by_quarter[2], key=lambda m: by_quarter[2][m]):
        row = [_shown(method)]
        for task in tasks:
            mine = [c.regret for c in results if c.task == task and c.method == method]
            row.append(" ".join(f"{geometric_mean(r[q] for r in mine):.3f}" for q in range(3)))
        row.append(" ".join(f"{by_quarter[q][method]:.1f}" for q in range(3)))
        row.append("" if method == best else f"{_p(results, method, best, tasks):.2g}")
        lines.append(_row(row))
    return lines


def _once(results: list[Cell], apart: bool) -> list[str]:
    tasks = [t.name for t in TASKS.values() if t.epochs == 1 and t.apart == apart]
    head = ["method", *(f"{task}: 1 slot, 8 slots" for task in tasks)]
    lines = [_row(head), _row(["---"] * len(head))]
    measured = {cell.method for cell in results}
    for method in [m for m in (*ONCE, *SLOW) if m in measured]:
        row = [_shown(method)]
        for task in tasks:
            mine = [c for c in results if c.task == task and c.method == method]
            cell = [[c.regret[2] for c in mine if c.slots == slots] for slots in (1, 8)]
            row.append(", ".join(f"{median(r):.3f}" for r in cell if r))
        lines.append(_row(row))
    return lines


def _p(results: list[Cell], method: str, best: str, tasks: list[str]) -> float:
    """Returns the p-value of Wilcoxon's test of the final regrets, paired by task and seed."""
    both = [
        {(c.task, c.seed): math.log(c.regret[2]) for c in results if c.method == m}
        for m in (method, best)
    ]
    keys = [key for key in both[0] if key in both[1] and key[0] in tasks]
    return float(wilcoxon([both[0][k] - both[1][k] for k in keys], zero_method="zsplit").pvalue)


def _shown(method: str) -> str:
    return method if method in PEERS else f"**`{method}`**"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="METHOD", help="[all]")
    for method, rank in measure(parser.parse_args().only).items():
        print(f"{rank:5.2f} {method}")


if __name__ == "__main__":
    main()
