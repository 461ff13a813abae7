"""Each kind of user trainable works, from the example to a study."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from siftune.trainables.examples import KINDS

ENTRYPOINTS = Path(__file__).parents[2] / "entrypoints"


def command(name: str, *words: str, here: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ENTRYPOINTS / f"{name}.py"), *words]
    return subprocess.run(line, cwd=here, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_trains_alone_and_in_a_study(kind: str, tmp_path: Path) -> None:
    written = command("new", kind, here=tmp_path)
    assert written.returncode == 0, written.stderr
    assert "my_train.py" in written.stdout
    assert 20 <= len((tmp_path / "my_train.py").read_text().splitlines()) <= 50
    what = ["--trainable", "my_train.py:train"]
    if kind == "script":
        what = ["--trainable", "my_train.py", "--space", "my_space.yaml"]

    alone = command("train", *what, "--set", "lr=0.01", "--set", "epochs=3", here=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.count("loss=") == 3

    study = command(
        "tune", *what, "--trials", "6", "--concurrent", "1", "--name", "s", here=tmp_path
    )
    assert study.returncode == 0, study.stdout + study.stderr
    lines = (tmp_path / "results" / "s" / "trials.jsonl").read_text().splitlines()
    states = [event["state"] for event in map(json.loads, lines) if event["event"] == "end"]
    assert len(states) == 6
    assert {"completed", "pruned"} == set(states)  # after a pruned trial the next one starts
    assert not [event for event in map(json.loads, lines) if event["event"] == "restart"]


def test_an_example_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_train.py").write_text("mine")
    refused = command("new", here=tmp_path)
    assert refused.returncode == 2
    assert "my_train.py: rename or remove it first" in refused.stderr
    assert (tmp_path / "my_train.py").read_text() == "mine"
    unknown = command("new", "template", here=tmp_path)
    assert unknown.returncode == 2
    assert "known: function, generator, script" in unknown.stderr


def test_a_study_without_torch_or_images(tmp_path: Path) -> None:
    study = ["--trainable", "sklearn", "--trials", "4", "--set", "epochs=5", "--name", "s"]
    done = command("tune", *study, here=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = command("train", "--from", "results/s/best.json", here=tmp_path)
    assert tested.returncode == 0, tested.stderr
    figures = dict(line.split(": ") for line in tested.stdout.splitlines())
    best = json.loads((tmp_path / "results" / "s" / "best.json").read_text())
    assert "best val_accuracy 0." in done.stdout
    assert float(figures["val_accuracy"]) == pytest.approx(best["metrics"]["val_accuracy"], 1e-5)
    assert float(figures["test_accuracy"]) > 0.8


def test_the_snippet_of_the_readme_trains_alone_and_in_a_study(tmp_path: Path) -> None:
    readme = (ENTRYPOINTS.parent / "README.md").read_text()
    (tmp_path / "my_train.py").write_text(readme.partition("```python\n")[2].partition("```")[0])
    pattern = r"^ +\S+/python entrypoints/(train|tune)\.py (--trainable.*?)(?: +#.*)?$"
    lines = re.findall(pattern, readme, re.MULTILINE)
    assert [name for name, _ in lines] == ["train", "tune"]
    for name, words in lines:
        done = command(name, *words.replace("--trials 50", "--trials 3").split(), here=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    pasted = done.stdout.splitlines()[-1].split()  # the next command, whole
    assert pasted[-2:] == ["--trials", "6"]
    again = subprocess.run(pasted, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
