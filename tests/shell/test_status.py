"""`make status` and entrypoints/status.py agree on a study: it runs only if its driver is alive."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siftune.record import history, lease
from siftune.report import page as report_page
from tests.unit.conftest import Written

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"host": "node7", "boot": "other", "pid": 1}
GONE = {"began": 1}  # that pid now belongs to another process
RESUME = "(resume with --resume study)"
HOUR = 3600.0
SUBMIT = "make submit GPUS=2 SITE=turpan RESUME=study"
IN_JOB = {"job": "12", "slurm_job": "14", "resume": SUBMIT}


@pytest.fixture
def study(tmp_path: Path) -> Written:
    """Writes a study of two trials, one of them running, as its driver left it."""
    written = Written(tmp_path / "results" / "study", trials=2)
    written.trial(0.5)
    written.trial(0.7, state=None)
    summary = {"trials": {"completed": 1, "pruned": 0, "failed": 0, "running": 1}}
    summary |= {"slots": 2, "gpus": 2, "gpus_busy": 1, "busy_fraction": 0.9}
    summary |= dict.fromkeys(("wall_s", "suggest_s", "suggest_wait_s"), 60.0)
    (written.directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return written


def shell(study: Written, **environment: str) -> str:
    done = subprocess.run(
        [ROOT / "slurm" / "status.sh"],
        cwd=study.directory.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.partition("\n")[2]


def python(study: Written) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "entrypoints" / "status.py"],
        cwd=study.directory.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def page(study: Written) -> str:
    """Returns the text of the report."""
    text = report_page.write(study.directory).read_text().partition("</style>")[2]
    return html.unescape(re.sub("<[^>]*>", " ", text))


def cancel(study: Written) -> None:
    """Does what slurm/tune.sbatch does when its job is cancelled."""
    (study.directory / ".driver.cancelled").write_text("n\n")


# Patterns that find the state of the study in each of the three texts.
PLACES = (
    r"failed, \d \w+; ([^;\n]+); ",
    r"trials; (.+), last event",
    r"State at that time: (.+?)\. Last event",
)
Change = Callable[[Written], Any]
CASES: dict[str, tuple[Change, str]] = {
    "here": (lambda s: s.driver(silent_s=HOUR), "running"),
    "here, killed": (lambda s: s.driver(**GONE), f"dead for 0 s {RESUME}"),
    "elsewhere": (lambda s: s.driver(silent_s=5, **ELSEWHERE), "running"),
    "elsewhere, killed": (
        lambda s: s.driver(silent_s=600, **ELSEWHERE),
        f"dead for 10 min {RESUME}",
    ),
    "elsewhere, long ago": (
        lambda s: s.driver(silent_s=9 * HOUR, **ELSEWHERE),
        f"dead for 9 h {RESUME}",
    ),
    "in another container": (
        lambda s: s.driver(silent_s=600, pids="pid:[1]"),
        f"dead for 10 min {RESUME}",
    ),
    "a clock that is ahead": (
        lambda s: s.driver(silent_s=-HOUR, **ELSEWHERE),
        f"dead for 0 s {RESUME}",
    ),
    "saved": (lambda s: s.driver(ended=1.5, finished=False), f"saved {RESUME}"),
    "saved in a job": (
        lambda s: s.driver(ended=1.5, finished=False, **IN_JOB),
        f"saved (resume with {SUBMIT})",
    ),
    "cancelled": (
        lambda s: (s.driver(ended=1.5, finished=False), cancel(s)),
        f"cancelled {RESUME}",
    ),
    "cancelled, and killed before it was saved": (
        lambda s: (s.driver(**GONE), cancel(s)),
        f"cancelled {RESUME}",
    ),
    "saved by an earlier version": (lambda s: s.driver(ended=1.5), f"saved {RESUME}"),
    "finished": (
        lambda s: (s.event("end", "0002", state="failed"), s.driver(ended=1.5, finished=True)),
        "finished",
    ),
    "finished by an earlier version": (
        lambda s: (s.event("end", "0002", state="failed"), s.driver(ended=1.5)),
        "finished",
    ),
    "finished with fewer trials, as no config was left": (
        lambda s: s.driver(ended=1.5, finished=True),
        "finished",
    ),
    "killed after the last trial": (
        lambda s: (s.event("end", "0002", state="pruned"), s.driver(**GONE)),
        "finished",
    ),
    "by a version without driver.json": (lambda s: None, f"dead for 0 s {RESUME}"),
    "by a version without driver.json, finished": (
        lambda s: s.event("end", "0002", state="pruned"),
        "finished",
    ),
    "an invalid driver.json": (
        lambda s: (s.directory / "driver.json").write_text("{"),
        f"dead for 0 s {RESUME}",
    ),
}


@pytest.mark.parametrize(("change", "state"), CASES.values(), ids=CASES)
def test_both_commands_and_the_page_say_whether_a_study_is_running(
    study: Written, change: Change, state: str
) -> None:
    before = {path.name for path in study.directory.iterdir()}
    change(study)
    texts = [shell(study), python(study), page(study)]
    matches = [re.search(pattern, text) for pattern, text in zip(PLACES, texts, strict=True)]
    states = [re.sub(r"for \d+ s", "for 0 s", match[1]) for match in matches if match]
    assert states == [state] * 3
    assert ["running" in text for text in texts] == [state == "running"] * 3
    added = {path.name for path in study.directory.iterdir()} - before
    assert added <= {"driver.json", ".driver.cancelled", "report.html"}


def squeue(directory: Path, *rows: str) -> str:
    """Makes a squeue that lists jobs, each as its number and state, and returns a PATH with it."""
    lines = ["JOBID STATE|     JOBID NAME", *(f"{row}|     {row} siftune" for row in rows)]
    command = directory / "bin" / "squeue"
    command.parent.mkdir(exist_ok=True)
    command.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"


def test_a_study_is_running_only_while_its_job_is(study: Written, tmp_path: Path) -> None:
    study.driver(silent_s=5, **ELSEWHERE, **IN_JOB)
    text = shell(study, PATH=squeue(tmp_path, "13 RUNNING", "14 RUNNING"))
    assert "     14 RUNNING siftune\n" in text
    assert "|" not in text
    assert "; running; " in text
    text = shell(study, PATH=squeue(tmp_path, "13 RUNNING"))
    assert re.search(r"; dead for \d+ s \(resume with (.*)\); ", text)[1] == SUBMIT  # type: ignore[index]


@pytest.mark.parametrize("end", [{"ended": 1.5, "finished": False}, {}])
def test_a_study_whose_job_waits_in_the_queue_is_resumed_by_it(
    study: Written, tmp_path: Path, end: dict[str, Any]
) -> None:
    study.driver(silent_s=5, **ELSEWHERE, **IN_JOB, **end)
    text = shell(study, PATH=squeue(tmp_path, "14 PENDING"))
    assert "; saved (job 14 is in the queue and resumes it); " in text


def test_numbers_are_rounded_as_in_the_log(study: Written) -> None:
    best = {"trial": "0001", "epoch": 1, "metrics": {"loss": 0.12345678901234}}
    (study.directory / "best.json").write_text(json.dumps(best, indent=2) + "\n")
    summary = study.directory / "summary.json"
    summary.write_text(summary.read_text().replace("0.9", "0.8976"))
    assert "slots busy 90 % of the time" in shell(study)
    assert "  best loss 0.123457 in trial 0001, epoch 1\n" in shell(study)


def test_gpus_are_taken_by_a_running_study_alone(study: Written) -> None:
    study.driver()
    assert "0 failed, 1 running; running; 1 of 2 GPUs in use, slots busy 90 %" in shell(study)
    study.driver(**GONE)
    assert re.search(r"0 failed, 1 unfinished; dead .*\); slots busy 90 %", shell(study))


def test_paused_trials_are_not_called_running(study: Written) -> None:
    study.event("pause", "0002")
    text = (study.directory / "summary.json").read_text()
    (study.directory / "summary.json").write_text(
        text.replace('"running": 1', '"running": 0, "paused": 1')
    )
    study.driver()
    assert "0 failed, 0 running, 1 paused; running; " in shell(study)
    assert "1 completed, 1 paused of 2 trials" in python(study)


def test_a_study_without_a_trial_says_so(tmp_path: Path) -> None:
    study = Written(tmp_path / "results" / "study")
    study.driver()
    assert shell(study) == "study: running, no trial has begun\n"
    assert python(study) == "study: 0 begun of 4 trials; running, no trial has begun\n"


@pytest.mark.parametrize("seconds", [0, 89, 90, 3000, 3569, 3570, 9999, 259199, 259200, 10**7])
def test_both_write_durations_alike(seconds: int) -> None:
    script = (ROOT / "slurm" / "status.sh").read_text().partition("# duration")[2]
    function = script.partition("\n")[2].partition("\n}\n")[0]
    command = f"{function}\n}}\nduration {seconds}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == history.duration(seconds)


def test_both_wait_as_long_as_the_next_driver_does() -> None:
    script = (ROOT / "slurm" / "status.sh").read_text()
    assert f"readonly SILENCE_S={lease._SILENCE_S:.0f} " in script


def test_where_the_directory_cannot_be_written_this_machines_clock_is_taken_and_said(
    study: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = tmp_path / "bin" / "mktemp"
    refuses.parent.mkdir()
    refuses.write_text("#!/bin/sh\nexit 1\n")
    refuses.chmod(0o755)

    def refuse(**words: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(lease.tempfile, "NamedTemporaryFile", refuse)
    for silent_s, state in (
        (600, f"dead for 10 min, by this machine's clock {RESUME}"),
        (5, "running, by this machine's clock"),
    ):
        study.driver(silent_s=silent_s, **ELSEWHERE)
        assert history.load(study.directory).life() == state
        assert f"; {state}; " in shell(study, PATH=f"{refuses.parent}:{os.environ['PATH']}")
    study.driver()  # on this machine, so no clock is needed
    assert history.load(study.directory).life() == "running"
