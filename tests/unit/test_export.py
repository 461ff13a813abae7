"""Studies written for other programs are read with those programs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from siftune.cli import export

Written = Callable[..., Any]

SPACE = {
    "lr": "loguniform(1e-4, 1)",
    "depth": "randint(1, 5)",
    "model.width": f"lograndint(8, {2**40})",
    "drop": "quniform(0.1, 0.5, 0.1)",
    "noise": "randn(0, 1)",
    "act": "choice(['relu', 'gelu'])",
    "size": "choice([8, 16, 32])",
    "betas": "choice([(0.9, 0.99), (0.8, 0.9)])",
    "width2": "choice([8, None, True]) if depth > 1",
    "epochs": 3,
}


@pytest.fixture
def study(written: Written) -> Path:
    study = written(space=SPACE, metric="accuracy")
    config = {"model.width": 2**35, "drop": 0.3, "noise": -1.5, "size": 16, "betas": [0.8, 0.9]}
    study.trial(0.3, 0.5, 0.4, act="gelu", **config)
    study.trial(0.1, state="pruned", depth=3, **config)
    study.trial(0.2, state="failed", lr=1e-3, **config)
    study.trial(0.6, state=None, **config)
    study.driver()
    return study.directory


def to(form: str, study: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[Path]:
    assert export.main([str(study), "--to", form, *flags]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def test_optuna_reads_the_study(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = to("optuna", study, capsys)
    (path,) = to("optuna", study, capsys)  # again, while the study runs
    loaded = optuna.load_study(study_name=study.name, storage=f"sqlite:///{path}")
    assert loaded.direction is optuna.study.StudyDirection.MAXIMIZE
    assert loaded.metric_names == ["accuracy"]
    first, pruned, failed, running = loaded.trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in loaded.trials] == states
    assert loaded.best_trial.number == 0
    assert loaded.best_value == 0.5
    assert first.intermediate_values == {1: 0.3, 2: 0.5, 3: 0.4}
    assert (pruned.intermediate_values, running.intermediate_values) == ({1: 0.1}, {1: 0.6})
    assert "width2" not in first.params  # it has no effect
    assert "width2" in pruned.params
    assert first.params["betas"] == "[0.8, 0.9]"
    assert first.params["act"] == "gelu"
    assert first.user_attrs["trial"] == "0001"
    assert first.user_attrs["epochs"] == 3
    assert (failed.value, failed.intermediate_values) == (None, {1: 0.2})
    assert first.datetime_start < first.datetime_complete
    known = first.distributions
    assert known["lr"] == FloatDistribution(1e-4, 1, log=True)
    assert known["drop"] == FloatDistribution(0.1, 0.5, step=0.1)
    assert known["depth"] == IntDistribution(1, 4)
    assert known["model.width"] == IntDistribution(8, 2**40 - 1, log=True)
    assert known["size"] == CategoricalDistribution([8, 16, 32])


def test_pandas_reads_the_tables(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = to("csv", study, capsys, "--into", str(study / "tables"))
    assert [path.parent.name for path in paths] == ["tables", "tables"]
    trials, epochs = (pd.read_csv(path, dtype={"trial": str}) for path in paths)
    assert trials.state.tolist() == ["completed", "pruned", "failed", "running"]
    assert trials.accuracy.tolist() == [0.5, 0.1, 0.2, 0.6]
    assert trials.best_epoch.tolist() == [2, 1, 1, 1]
    assert trials["config/lr"].tolist() == [0.1, 0.1, 1e-3, 0.1]
    assert trials["config/width2"].isna().tolist() == [True, False, True, True]
    assert epochs.trial.tolist() == ["0001"] * 3 + ["0002", "0003", "0004"]
    assert epochs.accuracy.tolist() == [0.3, 0.5, 0.4, 0.1, 0.2, 0.6]


def accumulated(directory: Path) -> Any:
    return EventAccumulator(str(directory)).Reload()


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    events = accumulated(directory).Scalars(tag)
    return [(event.step, pytest.approx(event.value)) for event in events]


def hparams(directory: Path) -> dict[str, Any]:
    """Returns the hyper-parameters as the plugin of TensorBoard's tab HPARAMS reads them."""
    content = accumulated(directory).summary_metadata
    tag = metadata.SESSION_START_INFO_TAG
    start = metadata.parse_session_start_info_plugin_data(content[tag].plugin_data.content)
    return {key: getattr(v, v.WhichOneof("kind")) for key, v in start.hparams.items()}


def test_tensorboard_reads_the_runs(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = to("tensorboard", study, capsys)
    (path,) = to("tensorboard", study, capsys)  # again, while the study runs
    assert sorted(p.name for p in path.iterdir()) == ["0001", "0002", "0003", "0004"]
    assert scalars(path / "0001", "accuracy") == [(1, 0.3), (2, 0.5), (3, 0.4)]
    assert scalars(path / "0001", "best/accuracy") == [(2, 0.5)]
    assert scalars(path / "0004", "accuracy") == [(1, 0.6)]
    assert metadata.SESSION_START_INFO_TAG not in accumulated(path / "0004").summary_metadata
    shown = hparams(path / "0001")
    assert (shown["lr"], shown["act"], shown["betas"]) == (0.1, "gelu", "[0.8, 0.9]")
    assert "width2" not in shown  # it has no effect
    assert accumulated(path / "0001").Scalars("accuracy")[0].wall_time > 1_000_000


@pytest.mark.parametrize("form", export.FORMATS)
def test_a_study_is_followed_until_it_ends(
    written: Written, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(export, "_EVERY_S", 0.05)
    study = written(metric="accuracy")
    study.trial(0.3, 0.5)
    running = study.start()
    study.epoch(running, 1, 0.4)
    study.driver()
    command = [str(study.directory), "--to", form, "--follow"]
    following = threading.Thread(target=export.main, args=[command])
    following.start()
    study.epoch(running, 2, 0.6)
    study.event("end", running, state="completed")
    study.trial(0.7)
    assert following.is_alive()
    study.driver(ended=1.0)
    following.join(timeout=30)
    assert not following.is_alive()
    directory = study.directory
    if form == "csv":
        epochs = pd.read_csv(directory / "epochs.csv")
        assert epochs.accuracy.tolist() == [0.3, 0.5, 0.4, 0.6, 0.7]
    elif form == "optuna":
        storage = f"sqlite:///{directory / 'optuna.db'}"
        loaded = optuna.load_study(study_name=directory.name, storage=storage)
        assert [trial.value for trial in loaded.trials] == [0.5, 0.6, 0.7]
        assert loaded.trials[1].intermediate_values == {1: 0.4, 2: 0.6}
    else:
        assert scalars(directory / "tensorboard/0002", "accuracy") == [(1, 0.4), (2, 0.6)]
        assert scalars(directory / "tensorboard/0003", "best/accuracy") == [(1, 0.7)]


def test_a_metric_may_have_the_name_of_a_column(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    study = written()
    trial = study.start()
    study.epoch(trial, 1, 0.5, metrics={"loss": 0.5, "state": 7, "epoch": 9})
    trials, epochs = map(pd.read_csv, to("csv", study.directory, capsys))
    assert trials["metric/state"].tolist() == [7]
    assert epochs["metric/epoch"].tolist() == [9]


def test_a_study_without_trials(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    directory = written().directory
    (path,) = to("optuna", directory, capsys)
    storage = f"sqlite:///{path}"
    assert optuna.load_study(study_name=directory.name, storage=storage).trials == []
    assert len(to("csv", directory, capsys)) == 2


def test_mistakes_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["nothing", "--to", "csv"]) == 2
    (study / "file").touch()
    assert export.main([str(study), "--to", "csv", "--into", str(study / "file/x")]) == 1
    assert "export: cannot write" in capsys.readouterr().err
