"""The end of a study: its report, its last messages, and the exit code of the driver."""

import os
import shlex
import sys
from pathlib import Path

from siftune.driver.progress import Progress
from siftune.machine.packages import in_container

FINISHED, FAILED, RESUMABLE = 0, 1, 75  # exit codes


def write_report(directory: Path) -> None:
    """Writes report.html. An error is only printed, because the results are already saved."""
    try:
        from siftune.report import page

        page.write(directory)
    except Exception as error:
        print(f"could not write report.html: {type(error).__name__}: {error}", file=sys.stderr)


def say_stopped(reason: str, directory: Path) -> None:
    """Prints why the study cannot continue now, and how to resume it."""
    sys.stdout.flush()
    print(f"stopping the study: {reason}", file=sys.stderr)
    command = resume_command(directory)
    print(f"fix this, then resume with\n  {command}", file=sys.stderr, flush=True)


def resume_command(directory: Path) -> str:
    """Returns the command that resumes a study, to be pasted."""
    if in_container():
        image = os.path.relpath(os.environ.get("APPTAINER_CONTAINER", "tune.sif"))
        command = f"apptainer run {'--nv ' if Path('/dev/nvidiactl').exists() else ''}{image}"
    else:
        command = os.path.relpath(sys.argv[0])
        if Path(command).name == "siftune":
            command += " tune"
        else:
            command = f"{os.path.relpath(sys.executable)} {command}"
    parent = os.path.relpath(directory.parent)
    results = "" if parent == "results" else f" --results {shlex.quote(parent)}"
    return f"{command} --resume {directory.name}{results}"


def conclude(progress: Progress, directory: Path) -> int:
    """Prints the results and returns the exit code."""
    states = progress.by_state()
    counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    print(f"study {progress.study.name}: {counted or 'no trial started'}")
    for trial in progress.trials.values():
        if trial.error:
            print(f"  trial {trial.trial} failed: {trial.error.splitlines()[-1]}")
    if best := progress.best:
        print(
            f"best {progress.study.metric} {best.metrics[progress.study.metric]:.6g}: "
            f"trial {best.trial}, epoch {best.epoch}"
        )
        active = progress.study.space.active(best.config)
        for name, value in best.config.items():
            print(f"  {name}: {value}{'' if name in active else ' (has no effect here)'}")
    shown = os.path.relpath(directory)
    print(f"results are in {shown}; the report is {shown}/report.html")
    if not progress.done:
        print(f"the study is not finished. Resume it with\n  {resume_command(directory)}")
        return RESUMABLE
    if states["completed"] or states["pruned"]:
        more = 2 * progress.study.trials
        print(f"to train more trials:\n  {resume_command(directory)} --trials {more}")
    else:
        print("no trial succeeded: see the errors in trials.jsonl", file=sys.stderr)
        return FAILED
    return FINISHED
