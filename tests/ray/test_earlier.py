"""Studies of earlier versions continue.

earlier/ holds two studies of a version whose workers trained trials in their own process. One was
saved at its time limit, the other was killed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TUNE = HERE.parents[1] / "entrypoints" / "tune.py"


def events(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["saved", "killed"])
def test_a_study_of_an_earlier_version_goes_on(name: str, tmp_path: Path) -> None:
    shutil.copy(HERE / "earlier" / "walk.py", tmp_path)
    study = tmp_path / "results" / name
    shutil.copytree(HERE / "earlier" / name, study)
    before = events(study)
    command = [sys.executable, TUNE, "--resume", name, "--time-limit", "10m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = events(study)
    assert after[: len(before)] == before
    ends = [event["trial"] for event in after if event["event"] == "end"]
    assert sorted(ends) == [f"{number:04d}" for number in range(1, 9)]
    # Epochs continue from the checkpoint that the earlier version wrote.
    epochs = [event for event in after if event["event"] == "epoch"]
    assert all(event["metrics"]["steps"] == event["epoch"] for event in epochs)
    trained = [(event["trial"], event["epoch"]) for event in epochs]
    assert len(set(trained)) == len(trained)
    assert not any(event.get("state") == "failed" for event in after)
