"""`train --check` says what would not survive a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[2] / "entrypoints" / "train.py"
GOOD = """
import os, random, tempfile
from pathlib import Path
from ray import tune
SPACE = {"x": 0.5, "epochs": 4}
def train(config):
    done, value = 0, 1.0
    if checkpoint := tune.get_checkpoint():
        done, value = eval(Path(checkpoint.path, "state").read_text())
    for epoch in range(done + 1, 5):
        value *= config["x"]
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state").write_text(repr((epoch, value)))
            tune.report({"loss": value}, checkpoint=tune.Checkpoint(directory))
"""
BAD = """
import os, random
from pathlib import Path
from ray import tune
SPACE = {"x": 0.5, "epochs": 4}
LAUNCH = os.environ["PWD"]
def train(config):
    random.seed(42)
    device, loader = "cuda:1", dict(num_workers=4096)
    for epoch in range(4):
        Path(LAUNCH, "best.pt").write_text("weights")
        tune.report({"loss": 1 / (epoch + 1)})
"""


CLASS = """
from ray import tune
SPACE = {"x": 0.5, "epochs": 4}
class train(tune.Trainable):
    def setup(self, config): self.value = 1.0
    def step(self):
        self.value *= self.config["x"]
        return {"loss": self.value}
    def save_checkpoint(self, directory): return {"value": self.value}
    def load_checkpoint(self, saved): self.value = saved["value"]
"""


def check(tmp_path: Path, text: str, *flags: str) -> tuple[int, dict[str, str]]:
    (tmp_path / "mine.py").write_text(text)
    command = [sys.executable, str(TRAIN), "--check", "--trainable", "mine.py:train", *flags]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PWD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line]
    return done.returncode, {name: found for name, found in lines}


@pytest.mark.parametrize("text", [GOOD, CLASS])
def test_a_trainable_that_survives(tmp_path: Path, text: str) -> None:
    status, found = check(tmp_path, text)
    assert status == 0
    assert (
        found["ok checkpoint"]
        == "killed after epoch 1, it continues with epoch 2 and the same loss"
    )
    assert "ok files" in found
    assert not [name for name in found if name.startswith(("warn", "fail"))]
    assert not (tmp_path / "results").exists()


def test_what_would_not_survive(tmp_path: Path) -> None:
    status, found = check(tmp_path, BAD)
    assert status == 0
    assert "no checkpoint" in found["warn checkpoint"]
    assert "best.pt" in found["warn files"]
    assert '"cuda:1"' in found["warn gpu"]
    assert "random.seed(42)" in found["warn seed"]
    assert "4096 DataLoader workers" in found["warn workers"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace('"loss"', '"mse"'), "the first report has mse and not loss"),
        (GOOD.replace("    done, value = 0, 1.0", "    raise ValueError('no data')"), "no data"),
    ],
)
def test_what_does_not_train_fails(tmp_path: Path, text: str, words: str) -> None:
    status, found = check(tmp_path, text)
    assert status == 1
    assert words in found["fail metric"]
