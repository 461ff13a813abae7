"""The status of a study depends on its journal, its driver and the time."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siftune.record import history
from siftune.report import status

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
    study.driver()
    assert said(study, later=12) == [
        "study: 1 completed, 1 pruned, 1 running of 4 trials; running, last event 12 s ago",
        "  best accuracy 0.9 in trial 0001, epoch 2",
        f"  trial {running} at epoch 1 of 3, accuracy 0.7, on node1 GPU 1, last heard of 12 s ago",
    ]


def test_busy_slots_are_those_of_the_summary(written: Written) -> None:
    study = written()
    (study.directory / "summary.json").write_text('{"busy_fraction": 0.876, "slots": 8}')
    assert "  8 slots busy 88 % of the time" in said(study)


def test_the_state_is_the_drivers_and_not_the_age_of_the_last_event(written: Written) -> None:
    """An epoch may take hours, and a driver may die in the first second."""
    study = written()
    study.epoch(study.start(), 1, 1.0)
    study.driver()
    line = "study: 1 running of 4 trials; running, last event 2.78 h ago"
    assert said(study, later=10_000)[0] == line
    study.driver(began=1)  # that pid now belongs to another process
    assert re.fullmatch(
        r"study: 1 unfinished of 4 trials; dead for \d s \(resume with --resume study\), "
        "last event 0 s ago",
        said(study)[0],
    )


def test_a_study_is_saved_or_finished_once_its_driver_has_ended(written: Written) -> None:
    study = written(trials=1)
    trial = study.start()
    study.driver(ended=1.0, finished=False)
    resume = "saved (resume with --resume study), last event 0 s ago"
    assert said(study)[0] == f"study: 1 unfinished of 1 trials; {resume}"
    study.epoch(trial, 1, 1.0)
    study.event("end", trial, state="completed")
    study.driver(ended=1.0, finished=True)
    finished = "study: 1 completed of 1 trials; finished, last event 11.6 days ago"
    assert said(study, later=1e6)[0] == finished


def test_nothing_has_begun(written: Written) -> None:
    study = written()
    study.driver()
    assert said(study) == ["study: 0 begun of 4 trials; running, no trial has begun"]


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
    assert "c/study.yaml is not valid YAML" in result.stderr


def test_gpus_that_were_looked_at_are_told_apart_from_slots(written: Written) -> None:
    study = written()
    summary = {"busy_fraction": 0.97, "slots": 8, "gpu_utilisation": 0.712}
    (study.directory / "summary.json").write_text(json.dumps(summary))
    assert "  8 slots busy 97 % of the time, GPU utilisation 71 %" in said(study)
