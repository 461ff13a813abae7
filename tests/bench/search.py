"""How much of the slots' time goes by waiting for a proposal: siftune's slow searchers, and beside
them Ray Tune's own HEBOSearch, in one Ray."""

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
    """The part of the time of 8 slots, from 0 to 1, in which they waited.

    Epochs take 2 s, and trials have 1 to 10 of them.
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
    """Ray Tune with its HEBOSearch, its own processes reused."""
    from ray import tune
    from ray.tune.search.hebo import HEBOSearch

    namespace: dict[str, Any] = {}
    exec(TRAINABLE, namespace)
    # Ray Tune knows no conditions: all parameters are always there.
    space = {name: getattr(value, "domain", value) for name, value in namespace["SPACE"].items()}

    class Timed(HEBOSearch):
        running = 0
        waited_s = 0.0
        asked: float | None = None  # since when there is no answer: it waits for its whole batch

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
    done = tune.run(  # Tuner would ask a copy of the searcher
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
