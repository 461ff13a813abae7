"""Measures the fraction of time that slots wait for proposals.

Compares siftune's slow searchers with Ray Tune's HEBOSearch, in one Ray.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

TRAINABLE = """
import math, time
from ray import tune
from siftune.trainables.mnist import SPACE
SPACE = SPACE | {"epochs": tune.randint(1, 11)}

def train(config):
    for epoch in range(config["epochs"]):
        time.sleep(2)
        tune.report({"loss": abs(math.log10(config["lr"]) + 3) + config["dropout"]})
"""
SLOTS = 8
SEARCHERS: dict[str, dict[str, Any]] = {
    "hebo": {"searcher": "hebo", "scheduler": "none"},
    "optuna_gp": {
        "searcher": "optuna",
        "searcher_options": {"sampler": "gp"},
        "scheduler": "none",
    },
    "bohb": {"searcher": "bohb", "scheduler": "bohb"},
}


def measure(trials: int = 48) -> dict[str, float]:
    """Returns the fraction of the time, from 0 to 1, that 8 slots waited.

    Trials have 1 to 10 epochs of 2 s.
    """
    from siftune.backend import environment
    from siftune.backend.connect import connect

    with tempfile.TemporaryDirectory() as scratch, environment.prepared(), connect():
        figures = {
            name: _siftune(Path(scratch), name, layer, trials) for name, layer in SEARCHERS.items()
        }
        figures["ray_hebo"] = _ray_hebo(Path(scratch), trials)
    return figures


def _siftune(scratch: Path, name: str, layer: dict[str, Any], trials: int) -> float:
    from siftune.driver.launch import launch
    from siftune.study.reading import read

    file = scratch / "sleeper.py"
    file.write_text(TRAINABLE)
    layer = {"name": name, "trainable": f"{file}:train", "trials": trials} | layer
    layer |= {"concurrent": SLOTS, "cpus_per_trial": 2 / SLOTS}
    with contextlib.redirect_stdout(io.StringIO()):
        launch(read([layer], {}), data=scratch, results=scratch)
    summary = json.loads((scratch / name / "summary.json").read_text())
    assert summary["slots"] == SLOTS
    assert summary["trials"]["failed"] == 0
    waited: float = summary["suggest_wait_s"] / summary["slot_s"]
    return waited


def _ray_hebo(scratch: Path, trials: int) -> float:
    """Runs Ray Tune with its HEBOSearch and reused actors; returns the fraction of time waited."""
    from ray import tune
    from ray.tune.search.hebo import HEBOSearch

    namespace: dict[str, Any] = {}
    exec(TRAINABLE, namespace)
    # Ray Tune does not support conditions, so all parameters are always active.
    space = {name: getattr(value, "domain", value) for name, value in namespace["SPACE"].items()}

    class Timed(HEBOSearch):
        running = 0
        waited_s = 0.0
        asked: float | None = None  # start of the wait for the whole batch

        def suggest(self, trial_id: str) -> Any:
            since = self.asked or time.perf_counter()
            suggested = super().suggest(trial_id)
            now = time.perf_counter()
            self.waited_s += (now - since) * (SLOTS - self.running)
            self.asked = now if suggested is None else None
            self.running += suggested is not None
            return suggested

        def on_trial_complete(self, trial_id: str, *words: Any, **more: Any) -> None:
            self.running -= 1
            super().on_trial_complete(trial_id, *words, **more)

    searcher = Timed()
    began = time.perf_counter()
    done = tune.run(  # not Tuner, which would use a copy of the searcher
        namespace["train"],
        config=space,
        num_samples=trials,
        max_concurrent_trials=SLOTS,
        resources_per_trial={"cpu": 2 / SLOTS},
        search_alg=searcher,
        metric="loss",
        mode="min",
        reuse_actors=True,
        storage_path=str(scratch),
        name="ray_hebo",
        verbose=0,
    )
    assert len(done.trials) == trials
    return searcher.waited_s / (SLOTS * (time.perf_counter() - began))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=48)
    for name, value in measure(parser.parse_args().trials).items():
        print(f"{name}: {value:.4g}")
