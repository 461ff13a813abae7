"""What a trial costs beyond its training: siftune against plain Ray Tune, in one Ray."""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

TRAINABLE = """
from ray import tune
SPACE = {"x": tune.uniform(0, 1)}
def train(config):
    tune.report({"loss": config["x"]})
"""
SLOTS = 2


def measure(trials: int = 64) -> dict[str, float]:
    """Seconds per trial of each, from the first proposal to the last end; and their ratio.

    Both run the same function, which reports once, two at a time, on the same connected Ray.
    """
    from siftune import cluster

    with (
        tempfile.TemporaryDirectory() as scratch,
        cluster.connect(),
    ):
        ours = _siftune(trials, Path(scratch))
        theirs = _ray_tune(trials, Path(scratch))
    return {"siftune_s": ours, "ray_tune_s": theirs, "ratio": theirs / ours}


def _siftune(trials: int, scratch: Path) -> float:
    from siftune.launch import launch
    from siftune.study import read

    file = scratch / "trivial.py"
    file.write_text(TRAINABLE)
    layer = {"name": "study", "trainable": f"{file}:train", "trials": trials}
    layer |= {"searcher": "random", "scheduler": "none"}
    study = read([layer], {})
    with contextlib.redirect_stdout(io.StringIO()):
        launch(study, data=scratch, results=scratch)
    summary = json.loads((scratch / "study" / "summary.json").read_text())
    assert summary["trials"]["completed"] == trials
    return (summary["wall_s"] - summary["trial_s"] / SLOTS) / trials


def _ray_tune(trials: int, scratch: Path) -> float:
    """Ray Tune with its defaults: a new actor for each trial."""
    from ray import tune

    def train(config: dict[str, float]) -> None:
        tune.report({"loss": config["x"]})

    began = time.perf_counter()
    tuner = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=SLOTS),
        run_config=tune.RunConfig(storage_path=str(scratch), name="plain", verbose=0),
    )
    results = tuner.fit()
    wall_s = time.perf_counter() - began
    assert len(results) == trials
    assert not results.errors
    inside_s = sum(r.metrics["time_total_s"] for r in results if r.metrics)
    return (wall_s - inside_s / SLOTS) / trials


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=64)
    for name, value in measure(parser.parse_args().trials).items():
        print(f"{name}: {value:.4g}")
