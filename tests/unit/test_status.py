"""What status says of a study follows from its journal and the time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siftune import history, status

STATUS = Path(__file__).parents[2] / "entrypoints" / "status.py"

Written = Callable[..., Any]


def said(study: Any, *, later: float = 0.0) -> list[str]:
    return list(status.lines(history.load(study.directory), now=study.now + later))


def test_a_running_study_says_what_runs_where_and_how_long_it_is_silent(written: Written) -> None:
    study = written(metric="accuracy", mode="max")
    study.trial(0.5, 0.9)
    study.trial(0.2, state="pruned")
    running = study.start()
    study.epoch(running, 1, 0.7, gpu="1")
    assert said(study, later=12) == [
        "study: 1 completed, 1 pruned, 1 running of 4 trials; running, last event 12 s ago",
        "  best accuracy 0.9 in trial 0001, epoch 2",
        f"  trial {running} at epoch 1 of 3, accuracy 0.7, on node1 GPU 1, last heard of 12 s ago",
    ]


def test_busy_slots_are_those_of_the_summary(written: Written) -> None:
    study = written()
    (study.directory / "summary.json").write_text('{"busy_fraction": 0.876, "slots": 8}')
    assert "  8 slots busy 88 % of the time" in said(study)


def test_a_study_is_silent_when_three_epochs_would_have_passed(written: Written) -> None:
    study = written()
    study.epoch(study.start(), 1, 1.0, seconds=600.0)
    assert "; running, last event 25 min ago" in said(study, later=1500)[0]
    assert "; silent, last event 40 min ago" in said(study, later=2400)[0]
    assert said(study, later=2400)[0].endswith("go on with --resume study")


def test_a_study_that_is_done_is_not_silent(written: Written) -> None:
    study = written(trials=1)
    study.trial(1.0)
    assert (
        said(study, later=1e6)[0]
        == "study: 1 completed of 1 trials; done, last event 11.6 days ago"
    )


def test_nothing_has_begun(written: Written) -> None:
    assert said(written()) == ["study: 0 begun of 4 trials; no trial has begun"]


def test_each_study_is_a_paragraph_and_one_that_cannot_be_read_hides_no_other(
    written: Written,
) -> None:
    for name in ("a", "b"):
        study = written(name)
        study.trial(1.0)
    broken = study.directory.parent / "c"
    broken.mkdir()
    (broken / "study.yaml").write_text("name: [")
    command = [sys.executable, STATUS, "--results", str(broken.parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert [text.partition(":")[0] for text in result.stdout.split("\n\n")] == ["a", "b"]
    assert result.returncode == 2
    assert "c/study.yaml is not YAML" in result.stderr


def test_gpus_that_were_looked_at_are_told_apart_from_slots(written: Written) -> None:
    study = written()
    summary = {"busy_fraction": 0.97, "slots": 8, "gpu_utilisation": 0.712}
    (study.directory / "summary.json").write_text(json.dumps(summary))
    assert "  8 slots busy 97 % of the time, the GPUs themselves 71 %" in said(study)
