"""Ray Tune's own Tuner with the four searchers of the Turpan page."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import HyperBandForBOHB
from ray.tune.search.hebo import HEBOSearch
from ray.tune.search.optuna import OptunaSearch

from siftune import BayesOptSearch, TuneBOHB
from siftune.backend.connect import connect

SPACE = {"x": tune.uniform(0, 1), "kind": tune.choice(["a", "b"]), "fixed": 7}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Any:
    with connect():  # starts Ray again if it does not start in time
        yield


def trainable() -> Callable[[dict[str, Any]], None]:
    """Returns a function that is pickled whole, because workers cannot import this file."""

    def train(config: dict[str, Any]) -> None:
        assert config["fixed"] == 7
        for epoch in range(3):
            loss = (config["x"] - 0.3) ** 2 + (config["kind"] == "b") + 1 / (epoch + 1)
            tune.report({"loss": loss})

    return train


def tuner(search: Any, directory: Path, *, trials: int = 6, **options: Any) -> tune.Tuner:
    return tune.Tuner(
        trainable(),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            search_alg=search,
            max_concurrent_trials=2,
            **options,
        ),
        run_config=tune.RunConfig(storage_path=str(directory), name="study", verbose=0),
    )


@pytest.mark.parametrize("search", [TuneBOHB, OptunaSearch, HEBOSearch, BayesOptSearch])
def test_a_tuner_runs_with_each_searcher_of_the_page(search: Any, tmp_path: Path) -> None:
    results = tuner(search(), tmp_path).fit()
    assert (len(results), results.num_errors) == (6, 0)
    assert len({result.config["x"] for result in results}) == 6


def test_bohb_works_with_its_scheduler(tmp_path: Path) -> None:
    scheduler = HyperBandForBOHB(time_attr="training_iteration", max_t=3)
    results = tuner(TuneBOHB(), tmp_path, trials=8, scheduler=scheduler).fit()
    assert (len(results), results.num_errors) == (8, 0)


def test_a_searcher_learns_and_is_restored(tmp_path: Path) -> None:
    def told(search: TuneBOHB | BayesOptSearch, trials: range) -> list[dict[str, Any]]:
        configs = []
        for number in trials:
            config = search.suggest(f"t{number}")
            configs.append(config)
            score = (config["x"] - 0.3) ** 2
            search.on_trial_result(f"t{number}", {"loss": score + 1, "training_iteration": 1})
            final = {"loss": score, "training_iteration": 2}
            search.on_trial_complete(f"t{number}", result=final)
        return configs

    for kind in (TuneBOHB, BayesOptSearch):
        whole = told(kind(SPACE, metric="loss", mode="min"), range(24))
        first = kind(SPACE, metric="loss", mode="min")
        told(first, range(20))
        first.save(str(tmp_path / "state"))
        second = kind(SPACE, metric="loss", mode="min")
        second.restore(str(tmp_path / "state"))
        assert told(second, range(20, 24)) == whole[20:]
    # A Gaussian process finds this minimum with certainty, and it is the last of the two.
    assert min(abs(config["x"] - 0.3) for config in whole[-8:]) < 0.1


def test_a_program_with_settings_of_a_new_cluster_joins(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ray\nray.init('local', num_cpus=7, include_dashboard=False, "
        "_system_config={'enable_metrics_collection': False}, log_to_driver=False)\n"
        "print('CPUs', ray.cluster_resources()['CPU'])\n"
    )
    startup = Path(__file__).parents[2] / "src/siftune/backend/startup"
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(startup)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "CPUs 2.0" in done.stdout, done.stderr
    dropped = "without address, num_cpus, include_dashboard, _system_config"
    assert f"siftune: ray.init joins the job's Ray, {dropped}\n" in done.stderr


def test_a_failed_trial_and_a_space_that_is_used_up() -> None:
    search = TuneBOHB({"k": tune.choice(["a", "b"])}, metric="loss", mode="max")
    search.suggest("0")
    search.on_trial_complete("0", error=True)
    search.on_trial_complete("nobody", error=True)
    assert search.suggest("1")["k"] in ("a", "b")
    with pytest.raises(RuntimeError, match="give param_space"):
        TuneBOHB(metric="loss", mode="min").suggest("0")
