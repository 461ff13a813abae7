"""Scripts of real packages run as they are: they get their values, and their metrics are found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).with_name("scripts")

# Script, space, flags of `tune`, and the epochs that each trial has.
CASES: dict[str, tuple[str, dict[str, Any], list[str], int]] = {
    "click": (
        "click_flags.py",
        {"lr": "loguniform(1e-5, 1)", "amp": "choice([true, false])"},
        ["--trainable-arg", "args=imagenet"],
        3,
    ),
    "typer": ("typer_flags.py", {"lr": "uniform(0, 1)", "layers": "randint(1, 5)"}, [], 1),
    "fire": ("fire_flags.py", {"lr": "uniform(0, 1)", "amp": "choice([true, false])"}, [], 1),
    "hydra": (
        "hydra_app.py",
        {"optim": {"lr": "loguniform(1e-5, 1)"}, "model.depth": "randint(1, 5)"},
        [],
        1,
    ),
    "trainer": (
        "trainer.py",
        {"learning_rate": "loguniform(1e-5, 1e-2)", "hidden_size": "choice([16, 32])"},
        [
            "--trainable-arg",
            "args=--output_dir {trial_dir}/output --eval_strategy epoch --num_train_epochs 2 "
            "--report_to none --use_cpu True --disable_tqdm True",
            "--metric",
            "eval_loss",
            "--metric-pattern",
            r"'eval_loss': '?([0-9.e+-]+)",
        ],
        2,
    ),
    "lightning": (
        "lightning_csv.py",
        {"lr": "loguniform(1e-4, 1e-1)", "max_epochs": 3},
        ["--metric", "val_loss", "--metric-file", "logs/metrics.csv"],
        3,
    ),
    "lightning_cli": (
        "lightning_cli.py",
        {
            "model": {"lr": "loguniform(1e-4, 1e-1)", "frozen": "choice([true, false])"},
            "data.batch_size": "choice([16, 32])",
        },
        [
            "--trainable-arg",
            "args=fit --trainer.max_epochs 3 --trainer.accelerator cpu "
            "--trainer.enable_progress_bar false "
            "--trainer.logger CSVLogger --trainer.logger.save_dir logs",
            "--metric",
            "val_loss",
            "--metric-file",
            "logs/lightning_logs/version_*/metrics.csv",
        ],
        3,
    ),
    "mnist": (
        "mnist.py",
        {"lr": "loguniform(1e-2, 1)", "gamma": "uniform(0.5, 1)", "save_model": True, "epochs": 3},
        [
            "--metric",
            "test_loss",
            "--metric-pattern",
            r"Average loss: (?P<test_loss>[0-9.]+), Accuracy: (?P<correct>[0-9]+)",
        ],
        3,
    ),
    "cross_validation": (
        "cross_validation.py",
        {"C": "loguniform(1e-2, 1e2)", "gamma": "loguniform(1e-4, 1)"},
        ["--metric", "accuracy", "--metric-pattern", r"Accuracy: ([0-9.]+)"],
        1,
    ),
    "xgboost": (
        "boosting.py",
        {"learning_rate": "loguniform(1e-2, 1)", "library": "xgboost"},
        ["--metric", "logloss", "--metric-pattern", r"valid-logloss:([0-9.]+)"],
        4,
    ),
    "lightgbm": (
        "boosting.py",
        {"learning_rate": "loguniform(1e-2, 1)", "library": "lightgbm"},
        ["--metric", "logloss", "--metric-pattern", r"binary_logloss: ([0-9.]+)"],
        4,
    ),
    "children": ("children.py", {"lr": "uniform(0, 1)"}, [], 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_runs_as_it_is(name: str, tmp_path: Path) -> None:
    script, space, flags, epochs = CASES[name]
    shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, str(ROOT / "entrypoints/tune.py"), "--trainable", script]
    command += ["--space", "space.yaml", "--searcher", "random", "--scheduler", "none"]
    command += ["--trials", "2", "--name", "s", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    study = tmp_path / "results" / "s"
    assert done.returncode == 0, output
    events = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    assert [e["state"] for e in events if e["event"] == "end"] == ["completed"] * 2, output
    for trial in ("0001", "0002"):
        found = [e for e in events if e["event"] == "epoch" and e["trial"] == trial]
        assert len(found) == epochs
        config = next(e["config"] for e in events if e["trial"] == trial)
        for key in ("amp", "layers", "depth"):  # what the script says that it got
            name_ = next((n for n in config if n.endswith(key)), None)
            if name_ and key in found[0]["metrics"]:
                assert found[0]["metrics"][key] == config[name_]
    if name == "hydra":
        assert (study / "trials/0001/weights").is_file()
    if name == "mnist":
        assert (study / "trials/0001/mnist_cnn.pt").is_file()
        assert found[0]["metrics"]["correct"] <= found[-1]["metrics"]["correct"]
    if name == "lightning_cli":
        logs = study / "trials/0002/logs/lightning_logs/version_0"
        assert f"lr: {config['model/lr']}\n" in (logs / "hparams.yaml").read_text()
        assert (
            f"frozen: {str(config['model/frozen']).lower()}" in (logs / "hparams.yaml").read_text()
        )
    if name == "click":
        assert found[0]["metrics"]["data"] == "imagenet"
