"""Studies whose trials are trained as one program are those of trials that train alone."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from siftune import cluster
from siftune.trainables.loop import STATE_FILE

ROOT = Path(__file__).parents[2]
SPACE = {
    "lr": "choice([3e-4, 1e-3, 3e-3])",  # the larger, the more rounding grows
    "batch_size": 64,
    "optimizer": "sgd",  # rounding grows less with it than with Adam
    "weight_decay": 0.01,
    "conv1_channels": 4,
    "conv2_channels": 4,
    "conv3_channels": 0,
    "kernel1": 3,
    "kernel2": 3,
    "activation": "relu",
    "dropout": "choice([0.0, 0.4])",
    "fc_dim": 32,
    "scheduler": "cosine",
    "epochs": 3,
    "num_classes": 10,
}
LAYER: dict[str, Any] = {
    "trainable": "mnist",
    "space": SPACE,
    "metric": "val_loss",
    "searcher": "grid",
    "scheduler": "none",
}


def fused(**layer: Any) -> dict[str, Any]:
    return LAYER | {"trainable_options": {"images": 2000, "fused": True}} | layer


def servers() -> list[int]:
    """The processes that train trials of this Ray together."""
    found = []
    directory = cluster.node_directory()
    assert directory
    for address in (directory / "lanes").glob("????????"):
        with socket.socket(socket.AF_UNIX) as asked, suppress(OSError):
            asked.connect(str(address))
            found.append(
                struct.unpack("3i", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            )
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_no_server() -> None:
    wait_until(lambda: not servers())


def results(result: Any) -> dict[str, list[tuple[int, float, float]]]:
    """Epoch, loss and validation loss of each config's trial."""
    configs = {e["trial"]: str(e["config"]) for e in result.of("start")}
    found: dict[str, list[tuple[int, float, float]]] = {}
    for event in result.of("epoch"):
        values = event["metrics"]["loss"], event["metrics"]["val_loss"]
        found.setdefault(configs[event["trial"]], []).append((event["epoch"], *values))
    return found


def assert_as_alone(result: Any, study: Callable[..., Any]) -> None:
    alone = study(**LAYER, trainable_options={"images": 2000}, name="alone")
    expected = results(alone)
    assert results(result).keys() == expected.keys()
    for config, epochs in results(result).items():
        for found, other in zip(epochs, expected[config], strict=True):
            assert found == pytest.approx(other, abs=1e-2)  # float32's rounding, grown


def test_a_fused_study_is_the_study_of_trials_that_train_alone(
    study: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = study(**fused())
    assert "those of the trials that share a device are trained as one program" in (
        capsys.readouterr().out
    )
    assert result.status == 0
    assert result.summary["trials"]["completed"] == 6
    assert result.summary["restarts"] == 0
    directory = cluster.node_directory()
    assert directory
    assert (directory / "lanes").stat().st_mode & 0o777 == 0o700
    # Trials without a GPU share one process that trains.
    assert len(list((directory / "lanes").glob("????????"))) == 1
    wait_for_no_server()
    state = torch.load(result.directory / result.best["checkpoint"], weights_only=True)
    assert Path(result.best["checkpoint"]).name == STATE_FILE
    assert state["epoch"] == result.best["epoch"]
    assert_as_alone(result, study)


def test_a_fused_study_goes_on_when_its_server_is_killed(
    study: Callable[..., Any], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        journal = tmp_path / "study" / "trials.jsonl"
        while not journal.exists() or '"epoch":2' not in journal.read_text().replace(" ", ""):
            time.sleep(0.02)
        killed.extend(servers())
        for process in killed:
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = study(**fused())
    killer.join(timeout=10)
    assert len(killed) == 1
    assert result.status == 0
    assert result.summary["trials"]["completed"] == 6
    restarts = result.of("restart")
    assert {e["cause"] for e in restarts} == {"crash"}
    assert 1 <= len(restarts) <= 2
    assert "the process that trains this device's trials together has ended" in restarts[0]["error"]
    assert_as_alone(result, study)
    wait_for_no_server()


@pytest.mark.parametrize(("scheduler", "acts"), [("hyperband", "pruned"), ("pbt", "donor")])
def test_fused_trials_are_paused_stopped_and_cloned(
    study: Callable[..., Any], scheduler: str, acts: str
) -> None:
    space = SPACE | {"lr": "loguniform(1e-3, 1e-2)", "dropout": "uniform(0, 0.5)"}
    result = study(**fused(space=space, searcher="random", scheduler=scheduler, trials=6))
    assert result.status == 0
    states = result.summary["trials"]
    assert states["completed"] + states["pruned"] == 6
    assert acts in str(result.events)
    wait_for_no_server()


def test_one_that_diverges_fails_alone(study: Callable[..., Any]) -> None:
    result = study(**fused(space=SPACE | {"lr": "choice([1e-3, 1e30, 3e-3])", "dropout": 0.0}))
    assert result.status == 0
    assert result.summary["trials"] == {"completed": 2, "pruned": 0, "failed": 1, "running": 0}
    (failed,) = (e for e in result.of("end") if e["state"] == "failed")
    assert "FloatingPointError: loss is " in failed["error"]


def test_nothing_is_left_of_a_killed_driver(tmp_path: Path, mnist_directory: Path) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE | {"epochs": 1000}))
    command = "entrypoints/tune.py --trainable mnist --space space.yaml --name s --trials 2"
    command += " --scheduler none --trainable-arg fused=true --trainable-arg images=2000"
    driver = subprocess.Popen(
        [sys.executable, ROOT / command.split()[0], *command.split()[1:]],
        cwd=tmp_path,
        env=os.environ | {"SIFTUNE_DATA": str(mnist_directory)},
        stdout=subprocess.DEVNULL,
    )
    journal = tmp_path / "results/s/trials.jsonl"
    wait_until(lambda: journal.exists() and '"epoch"' in journal.read_text())
    files = [fd.resolve() for fd in Path(f"/proc/{driver.pid}/fd").iterdir()]
    (directory,) = (file.parent for file in files if file.name == "alive")
    assert running(f"lane_server {directory}")
    driver.kill()
    driver.wait()
    wait_until(lambda: not running(str(directory)))


def running(text: str) -> bool:
    """Whether there is a process with the text in its command line."""
    return subprocess.run(["pgrep", "-f", text], capture_output=True).returncode == 0
