"""The end of a study: its report, its last lines, and the exit status of the driver."""

import os
import sys
from pathlib import Path

from siftune.driver.progress import Progress

FINISHED, FAILED, RESUMABLE = 0, 1, 75  # exit statuses


def write_report(directory: Path) -> None:
    """Writes report.html. The study is over and safe, so an error is only told."""
    try:
        from siftune.report import page

        page.write(directory)
    except Exception as error:
        print(f"report.html is not written: {type(error).__name__}: {error}", file=sys.stderr)


def say_stopped(reason: str, study: str) -> None:
    """Says why a study cannot continue now."""
    sys.stdout.flush()
    print(f"the study stops: {reason}", file=sys.stderr)
    print(f"see to that, then --resume {study}", file=sys.stderr, flush=True)


def conclude(progress: Progress, directory: Path) -> int:
    """Prints the results, and returns the exit status."""
    states = progress.by_state()
    counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    print(f"study {progress.study.name}: {counted or 'no trial begun'}")
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
    print(f"everything is in {os.path.relpath(directory)}")
    if not progress.done:
        print(f"there is work left: go on with --resume {directory.name}")
        return RESUMABLE
    if not states["completed"] and not states["pruned"]:
        print("no trial succeeded: trials.jsonl has each one's error", file=sys.stderr)
        return FAILED
    return FINISHED
