"""Files that a kill or a power cut left incomplete are restored from the journal."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siftune.cli import one_config
from siftune.driver import ending
from siftune.driver.checks import directory_mistakes
from siftune.driver.launch import launch
from siftune.errors import UsageError
from siftune.record import lease
from siftune.study.reading import read_resumed, read_saved

BEST = {"trial": "0002", "epoch": 1, "metrics": {"loss": 0.25}}


@pytest.fixture
def done(written: Callable[..., Any], tmp_path: Path) -> Path:
    """Returns the directory of a complete study of two trials; the second's first epoch is best."""
    (tmp_path / "mine.py").write_text("def train(config): ...\n")
    study = written("s", trainable=f"{tmp_path}/mine.py:train", trials=2, scheduler="none")
    study.trial(1.0, 0.5)
    study.trial(0.25, 0.75)
    return study.directory


def resume(directory: Path) -> int:
    return launch(
        read_resumed(directory, {}), data=directory, results=directory.parent, resume=True
    )


@pytest.mark.parametrize(
    "before",
    [
        None,
        {"trial": "0001", "epoch": 2, "metrics": {"loss": 0.5}},
        {"trial": "0003", "epoch": 1, "metrics": {"loss": 0.125}},  # line lost in a power cut
    ],
    ids=["missing", "behind", "ahead"],
)
def test_bestjson_follows_the_journal(done: Path, before: dict[str, Any] | None) -> None:
    if before:
        (done / "best.json").write_text(json.dumps(before))
    assert resume(done) == 0
    best = json.loads((done / "best.json").read_text())
    assert {name: best[name] for name in BEST} == BEST


@pytest.mark.parametrize(
    "before", [None, {"wall_s": 2.0, "slot_s": 4.0}], ids=["missing", "behind"]
)
def test_summaryjson_follows_the_journal(done: Path, before: dict[str, float] | None) -> None:
    if before:
        (done / "summary.json").write_text(json.dumps(before))
    assert resume(done) == 0
    summary = json.loads((done / "summary.json").read_text())
    assert summary["trials"] == {
        "completed": 2,
        "pruned": 0,
        "failed": 0,
        "running": 0,
        "paused": 0,
    }
    assert summary["trial_s"] == 4.0
    assert (done / "report.html").is_file()


def test_what_was_seen_of_the_gpus_is_carried_over(done: Path) -> None:
    assert resume(done) == 0
    summary = json.loads((done / "summary.json").read_text())
    assert (summary["gpu_utilisation"], summary["gpu_nodes"]) == (None, {})
    seen = {
        "node1": {"samples": 300, "utilisation": 0.9},
        "node2": {"samples": 100, "utilisation": 0.1},
    }
    (done / "summary.json").write_text(json.dumps({"gpu_nodes": seen}))
    for _ in range(2):
        assert resume(done) == 0
        summary = json.loads((done / "summary.json").read_text())
        assert (summary["gpu_utilisation"], summary["gpu_nodes"]) == (0.7, seen)


def test_a_best_is_not_written_before_its_line_is_on_the_disk(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siftune.record.journal import Journal

    calls: list[str] = []
    sync, write = Journal.sync, Journal.write

    def record(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(self: Journal, *arguments: Any) -> None:
            calls.append(arguments[0] if arguments else name)
            function(self, *arguments)

        return call

    monkeypatch.setattr(Journal, "sync", record("sync", sync))
    monkeypatch.setattr(Journal, "write", record("write", write))
    resume(done)
    assert calls[calls.index("best.json") - 1] == "sync"


def test_a_study_without_work_left_is_finished_for_status_and_in_its_page(done: Path) -> None:
    assert resume(done) == 0
    assert lease.read(done)["finished"] is True
    assert "State at that time: finished." in (done / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["driver.json"], False),
        ([".driver.nobody.1", ".driver.nobody.1.json"], False),  # killed during its start
        (["driver.json", ".driver.0123456789abcdef"], False),  # another, about to be refused
        ([], True),
        (["driver.json", "study.yaml"], True),
        (["notes.txt"], True),
    ],
)
def test_a_directory_is_taken_by_a_study_and_not_by_drivers_alone(
    tmp_path: Path, names: list[str], taken: bool
) -> None:
    (tmp_path / "s").mkdir()
    for name in names:
        (tmp_path / "s" / name).touch()
    assert bool(directory_mistakes(tmp_path / "s")) == taken


def test_weights_that_were_not_saved_are_not_called_none(done: Path) -> None:
    (done / "best.json").write_text(json.dumps(BEST | {"checkpoint": None}))
    with pytest.raises(UsageError, match="names no weights") as caught:
        one_config.evaluate(done / "best.json", data=done)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "expected"),
    [("bin/siftune", "bin/siftune tune"), ("entrypoints/tune.py", "PYTHON entrypoints/tune.py")],
)
def test_the_command_that_resumes_is_the_one_that_was_used(
    program: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [program])
    monkeypatch.delenv("SIFTUNE_DATA", raising=False)
    command = expected.replace("PYTHON", sys.executable) + " --resume s"
    results, data = tmp_path / "results", tmp_path / "data"
    assert ending.resume_command(results / "s", data) == command
    assert ending.resume_command(tmp_path / "r/s", data) == f"{command} --results r"
    assert (
        ending.resume_command(results / "s", tmp_path / "my sets") == f"{command} --data 'my sets'"
    )
    elsewhere = tmp_path.parent / "sets"
    assert ending.resume_command(results / "s", elsewhere) == f"{command} --data {elsewhere}"
    monkeypatch.setenv("SIFTUNE_SUBMIT", "make submit GPUS=2 SITE=mine")
    submit = "make submit GPUS=2 SITE=mine RESUME=s"
    assert ending.resume_command(results / "s", data) == submit
    assert ending.resume_command(results / "s", elsewhere) == f'{submit} ARGS="--data {elsewhere}"'
    more = ending.resume_command(results / "s", data, more="--trials 8")
    assert more == f'{submit} ARGS="--trials 8"'


def test_the_start_line_names_the_seed(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(done) == 0
    seed = read_saved(done).seed
    assert f"random + none, seed {seed}, " in capsys.readouterr().out
