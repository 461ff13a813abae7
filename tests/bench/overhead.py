"""Measures the cost of a trial beyond its training: siftune, Ray Tune, Optuna and Syne Tune."""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# The same trainable as a function, and as a script that takes --x. Both import torch, as most
# trainables do.
TRAINABLE = """
import torch
from ray import tune
SPACE = {"x": tune.uniform(0, 1)}
def train(config):
    tune.report({"loss": config["x"]})
"""
SCRIPT = """
import argparse, json
import torch
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
x = parser.parse_known_args()[0].x
if "siftune_syne" in __file__:
    from syne_tune import Reporter
    Reporter()(loss=x)
else:
    print(json.dumps({"loss": x}))
"""
SLOTS = 2


def measure(trials: int = 256) -> dict[str, float]:
    """Returns the wall time per trial of each tool, in seconds, and its ratio to siftune's.

    All tools propose at random, train nothing, and run two trials at a time. The start of Ray is
    not counted. Tools that start a process for each trial run a quarter of the trials, because each
    trial costs the same. The others run both all trials and a quarter of them: `warm` is the cost
    per additional trial, without the start.
    """
    import ray

    few = max(1, trials // 4)
    seconds = {}

    def with_start(side: str, measure_one: Callable[[int, Path], float], scratch: Path) -> None:
        few_s = measure_one(few, scratch / f"few_{side}")
        all_s = seconds[side] = measure_one(trials, scratch / f"all_{side}")
        seconds[f"{side}_warm"] = (all_s * trials - few_s * few) / (trials - few)

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ray.init("local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
        with_start("ray_reuse", _ray_reuse, scratch)
        seconds["ray"] = _ray_tune(few, scratch, reuse_actors=False)
        ray.shutdown()
        # By default with a process for each trial, and then with reused processes.
        with_start("siftune", _apart, scratch)
        with_start("siftune_reuse", partial(_apart, reuse=True), scratch)
        seconds["optuna"] = _optuna(few, scratch)
        seconds["syne_tune"] = _syne_tune(few, scratch)
    ratios = {f"{name}_ratio": s / seconds["siftune"] for name, s in seconds.items()}
    ratios["warm"] = seconds["ray_reuse_warm"] / seconds["siftune_reuse_warm"]
    return {f"{name}_s": s for name, s in seconds.items()} | ratios


def growth(trials: int = 2101) -> dict[str, float]:
    """Returns the seconds per trial around the 200th and 2,000th of a study with Optuna's TPE."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _apart(trials, scratch, searcher="optuna")
        lines = (scratch / "study" / "trials.jsonl").read_text().splitlines()
    ends = [event["time"] for event in map(json.loads, lines) if event["event"] == "end"]

    def per_trial(number: int, around: int = 100) -> float:
        return (ends[number + around] - ends[number - around]) / (2 * around)

    figures = {f"trial_{n}_s": per_trial(n) for n in (200, 2000)}
    return figures | {"ratio": figures["trial_2000_s"] / figures["trial_200_s"]}


def _apart(trials: int, scratch: Path, *, searcher: str = "random", reuse: bool = False) -> float:
    """Runs a study of siftune in its own process; returns seconds per trial without Ray's start."""
    scratch.mkdir(exist_ok=True)
    file = scratch / "trivial.py"
    file.write_text(TRAINABLE)
    command = [sys.executable, str(Path(__file__).parents[2] / "entrypoints" / "tune.py")]
    command += ["--name", "study", "--trainable", f"{file}:train", "--trials", str(trials)]
    command += ["--searcher", searcher, "--scheduler", "none", "--concurrent", str(SLOTS)]
    command += ["--results", str(scratch), *(["--reuse-processes"] if reuse else [])]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True)
    summary = json.loads((scratch / "study" / "summary.json").read_text())
    assert summary["trials"]["completed"] == trials
    wall_s: float = summary["wall_s"]
    return wall_s / trials


def _ray_reuse(trials: int, scratch: Path) -> float:
    return _ray_tune(trials, scratch, reuse_actors=True)


def _ray_tune(trials: int, scratch: Path, *, reuse_actors: bool) -> float:
    """Runs Ray Tune as documented; without `reuse_actors` it starts a new actor for each trial."""
    from ray import tune

    namespace: dict[str, Any] = {}
    exec(TRAINABLE, namespace)

    def train(config: dict[str, float]) -> None:
        import torch  # noqa: F401
        from ray import tune

        tune.report({"loss": config["x"]})

    began = time.perf_counter()
    tuner = tune.Tuner(
        train,
        param_space=namespace["SPACE"],
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=SLOTS, reuse_actors=reuse_actors
        ),
        run_config=tune.RunConfig(storage_path=str(scratch), name=f"ray{reuse_actors}", verbose=0),
    )
    results = tuner.fit()
    wall_s = time.perf_counter() - began
    assert len(results) == trials
    assert not results.errors
    return wall_s / trials


def _optuna(trials: int, scratch: Path) -> float:
    """Runs Optuna with a process per trial, as is usual for scripts that may not clean up."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    script = scratch / "script.py"
    script.write_text(SCRIPT)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        done = subprocess.run(
            [sys.executable, script, "--x", str(x)], capture_output=True, check=True, text=True
        )
        loss: float = json.loads(done.stdout)["loss"]
        return loss

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials, n_jobs=SLOTS)
    return (time.perf_counter() - began) / trials


def _syne_tune(trials: int, scratch: Path) -> float:
    """Runs Syne Tune with its local backend, which looks for results ten times a second."""
    script = scratch / "siftune_syne.py"
    script.write_text(SCRIPT)
    os.environ["SYNETUNE_FOLDER"] = str(scratch / "syne")
    with _quiet(), contextlib.chdir(scratch):
        from syne_tune import StoppingCriterion, Tuner
        from syne_tune.backend import LocalBackend
        from syne_tune.config_space import uniform
        from syne_tune.optimizer.baselines import RandomSearch

        tuner = Tuner(
            trial_backend=LocalBackend(str(script)),
            scheduler=RandomSearch({"x": uniform(0, 1)}, metrics=["loss"]),
            stop_criterion=StoppingCriterion(max_num_trials_completed=trials),
            n_workers=SLOTS,
            sleep_time=0.1,
            save_tuner=False,
        )
        began = time.perf_counter()
        tuner.run()
    return (time.perf_counter() - began) / trials


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    what: Callable[..., dict[str, float]] = growth if options.growth else measure
    for name, value in what(*([options.trials] if options.trials else [])).items():
        print(f"{name}: {value:.4g}")
