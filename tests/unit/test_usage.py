"""All mistakes of a user are reported in one message before anything starts, with exit status 2."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
TUNE = ROOT / "entrypoints" / "tune.py"


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the entrypoint with flags that must be refused, and returns its message."""
    spec = importlib.util.spec_from_file_location("tune_entrypoint", TUNE)
    assert spec is not None
    assert spec.loader is not None
    entrypoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entrypoint)
    monkeypatch.chdir(tmp_path)
    running = ray.is_initialized()

    def refused(*flags: str) -> str:
        status = entrypoint.main(flags)
        message = capsys.readouterr().err
        assert status == 2, message
        assert ray.is_initialized() == running
        assert not list(tmp_path.glob("results/*/trials.jsonl"))
        return message

    return refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--searcher", "foo"], ["unknown searcher 'foo'", "hebo", "bayesopt"]),
        (["--scheduler", "foo"], ["unknown scheduler 'foo'", "asha", "pbt"]),
        (["--preset", "foo"], ["unknown preset 'foo'", "mnist, quick"]),
        (["--trainable", "foo"], ["unknown trainable 'foo'", "mnist", "FILE.py:FUNC"]),
        (["--trainable", "no.py:f"], ["no.py does not exist"]),
        (["--trainable", "no.py"], ["no.py does not exist"]),
        (["--set", "lr=uniform(0, 2**3)"], ["write the value of 2 ** 3: only numbers"]),
        (["--set", "lr=choice([small, 1])"], ["is small text? Write 'small', with quotes"]),
        (["--set", "foo=1"], ["unknown parameter 'foo'", "conv3_channels"]),
        (["--set", "lr"], ["--set must be NAME=VALUE", "'lr'"]),
        (["--set", "lr=uniform(3, 1)"], ["'lr'", "low must not be above high", "3"]),
        (["--set", "lr=loguniform(0, 1)"], ["'lr'", "log scale must begin above 0"]),
        (["--set", "lr=choice([])"], ["'lr'", "at least one option"]),
        (["--set", "lr=normal(0, 1)"], ["unknown domain 'normal'", "loguniform"]),
        (["--trials", "0"], ["--trials must be a whole number of at least 1, got 0"]),
        (["--trials", "many"], ["--trials", "'many'"]),
        (["--concurrent", "0"], ["--concurrent", "got 0"]),
        (["--seed", "-1"], ["--seed", "got -1"]),
        (["--mode", "best"], ["--mode must be min or max, got 'best'"]),
        (["--gpus-per-trial", "64"], ["--gpus-per-trial must be at most", "got 64"]),
        (["--gpus-per-trial", "1.5"], ["--gpus-per-trial", "got 1.5"]),
        (["--cpus-per-trial", "4096"], ["--cpus-per-trial must be at most", "got 4096"]),
        (["--time-limit", "soon"], ["--time-limit must be a duration", "'soon'"]),
        (["--name", "../up"], ["--name must be", "'../up'"]),
        (["--searcher", "optuna", "--searcher-arg", "foo=1"], ["no option 'foo'", "sampler='tpe'"]),
        (["--searcher", "optuna", "--searcher-arg", "sampler=foo"], ["'foo'", "nsga2"]),
        (["--scheduler-arg", "foo=1"], ["scheduler 'asha' has no option 'foo'", "eta=3"]),
        (["--scheduler-arg", "eta=1"], ["eta must be", "got 1"]),
        (["--trainable-arg", "foo=1"], ["trainable 'mnist' has no option 'foo'", "images"]),
        (["--searcher", "grid"], ["'lr' is continuous", "--set 'lr=choice(["]),
        (["--searcher", "bohb", "--scheduler", "asha"], ["cannot work", "--scheduler bohb"]),
        (["--searcher", "hebo", "--scheduler", "bohb"], ["cannot work", "--scheduler hyperband"]),
        (["--searcher", "hebo", "--scheduler", "pbt"], ["cannot work", "--searcher random"]),
        (["--space", "space.txt"], ["--space must be FILE.py:NAME or FILE.yaml"]),
        (["--resume", "nothing"], ["no study to resume"]),
        (["--config", "missing.yaml"], ["cannot read missing.yaml"]),
    ],
)
def test_a_mistake_is_refused_with_what_to_do(
    tune: Callable[..., str], flags: list[str], words: list[str]
) -> None:
    message = tune(*flags)
    assert [word for word in words if word not in message] == [], message


def test_all_mistakes_come_in_one_message(tune: Callable[..., str]) -> None:
    message = tune(
        *("--searcher", "foo", "--scheduler", "bar", "--trials", "0", "--set", "zz=1"),
        *("--gpus-per-trial", "64", "--mode", "best", "--time-limit", "soon"),
    )
    for word in ("'foo'", "'bar'", "--trials", "'zz'", "--mode", "--time-limit"):
        assert word in message


def test_yaml_with_a_typo_names_file_and_line(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("trainable: mnist\nspace: {lr: [1, 2\n")
    message = tune("--config", "study.yaml")
    assert "study.yaml is not valid YAML" in message
    assert "line" in message
    (tmp_path / "study.yaml").write_text("trainable: mnist\nsercher: hebo\n")
    message = tune("--config", "study.yaml")
    assert "unknown entry 'sercher'" in message
    assert "searcher" in message


def test_a_study_that_exists_is_not_overwritten(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "results" / "mine").mkdir(parents=True)
    message = tune("--name", "mine")
    assert "is not overwritten" in message
    assert "--resume mine" in message


def test_results_that_cannot_be_written_are_refused(
    tune: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to" in tune("--results", "file/results")
    # In /proc, not even root can create files.
    assert "cannot write to" in tune("--results", "/proc/results")


def test_a_file_that_fails_on_import_is_named(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    message = tune("--trainable", "mine.py:train")
    assert "mine.py fails when imported" in message
    assert "nothing_of_that_name" in message


def test_a_function_that_is_not_there_is_named(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("SPACE = {'x': 'uniform(0, 1)'}\ndef fit(config): ...\n")
    message = tune("--trainable", "mine.py:train")
    assert "no function 'train'; it has: fit" in message


def test_a_trainable_without_a_space_is_refused(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(config): ...\n")
    assert "--space" in tune("--trainable", "mine.py:train")


def test_resuming_cannot_make_it_another_study(tune: Callable[..., str], tmp_path: Path) -> None:
    directory = tmp_path / "results" / "mine"
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text("name: mine\ntrainable: mnist\ntrials: 2\n")
    message = tune("--resume", "mine", "--searcher", "hebo", "--set", "lr=1")
    assert "cannot change searcher" in message
    assert "leave out --set" in message


@pytest.mark.parametrize(
    ("entrypoint", "limit_s"), [("tune", 0.5), ("report", 0.3), ("status", 0.3), ("doctor", 0.3)]
)
def test_help_answers_at_once(entrypoint: str, limit_s: float) -> None:
    def cpu_s() -> float:
        before = os.times()
        command = [sys.executable, TUNE.with_name(f"{entrypoint}.py"), "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])  # user and system time of the children

    # Measures CPU time, not wall time, and takes the best of five: other processes do not count.
    assert min(cpu_s() for _ in range(5)) < limit_s


def test_the_flags_list_what_the_catalogues_hold() -> None:
    from siftune.schedulers import SCHEDULERS
    from siftune.searchers import SEARCHERS
    from siftune.study.presets import PRESETS
    from siftune.trainables import TRAINABLES

    shown = subprocess.run(
        [sys.executable, TUNE, "--help"], check=True, capture_output=True, text=True
    ).stdout
    for names in (TRAINABLES, ("auto", *SEARCHERS), SCHEDULERS, PRESETS):
        assert "|".join(names) in shown
