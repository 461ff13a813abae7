"""The end of a study: its report, its last messages, and the exit code of the driver."""

import os
import shlex
import sys
from pathlib import Path

from siftune.driver.progress import Progress
from siftune.machine import slurm
from siftune.machine.packages import in_container
from siftune.trial import checkpoints

FINISHED, FAILED, RESUMABLE = 0, 1, 75  # exit codes


def end_trials(progress: Progress, directory: Path) -> None:
    """Ends the trials under way, whose processes have ended, because the study stopped early."""
    for name in progress.unfinished():
        progress.stop(name)
        checkpoints.remove_others(directory, name, progress.kept(name))


def write_report(directory: Path) -> None:
    """Writes report.html. An error is only printed, because the results are already saved."""
    try:
        from siftune.report import page

        page.write(directory)
    except Exception as error:
        print(f"could not write report.html: {type(error).__name__}: {error}", file=sys.stderr)


def say_stopped(reason: str, command: str) -> None:
    """Prints why the study cannot continue now, and the command that resumes it."""
    sys.stdout.flush()
    print(f"stopping the study: {reason}", file=sys.stderr)
    print(f"fix this, then resume with\n  {command}", file=sys.stderr, flush=True)


def resume_command(directory: Path, data: Path, *, more: str = "") -> str:
    """Returns the command that resumes a study, to be pasted.

    `data`: the directory of data sets. `more`: flags that change the study.
    """
    flags = _directories(directory, data) + (f" {more}" if more else "")
    if submit := slurm.submit_command():
        return f"{submit} RESUME={directory.name}" + (f' ARGS="{flags.strip()}"' if flags else "")
    if in_container():
        image = _shown(os.environ.get("APPTAINER_CONTAINER", "tune.sif"))
        command = f"apptainer run {'--nv ' if Path('/dev/nvidiactl').exists() else ''}{image}"
    else:
        command = _shown(sys.argv[0])
        if Path(sys.argv[0]).name == "siftune":
            command += " tune"
        else:
            command = f"{_shown(sys.executable)} {command}"
    return f"{command} --resume {directory.name}{flags}"


def _directories(directory: Path, data: Path) -> str:
    """Returns the flags of directories that are not the default ones."""
    flags = ""
    if directory.parent != Path("results").absolute():
        flags += f" --results {_shown(directory.parent)}"
    if data.absolute() != Path(os.environ.get("SIFTUNE_DATA", "data")).absolute():
        flags += f" --data {_shown(data)}"
    return flags


def _shown(path: Path | str) -> str:
    """Returns a path for the user: relative if it lies below the working directory."""
    path = Path(path).absolute()
    return shlex.quote(
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    )


def conclude(progress: Progress, directory: Path, data: Path) -> int:
    """Prints the results and returns the exit code. `data`: the directory of data sets."""
    states = progress.by_state()
    counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    print(f"study {progress.study.name}: {counted or 'no trial started'}")
    if progress.stopping.reason:
        print(f"the study has stopped early: {progress.stopping.reason}")
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
    shown = _shown(directory)
    print(f"results are in {shown}; the report is {shown}/report.html")
    if not progress.done:
        again = resume_command(directory, data)
        print(f"the study is not finished. Resume it with\n  {again}")
        return RESUMABLE
    if states["completed"] or states["pruned"]:
        more = progress.stopping.advice or f"--trials {2 * progress.study.trials}"
        print(f"to train more trials:\n  {resume_command(directory, data, more=more)}")
    else:
        print("no trial succeeded: see the errors in trials.jsonl", file=sys.stderr)
        return FAILED
    return FINISHED
