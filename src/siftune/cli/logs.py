"""Prints what a trial has printed: the end of its log, or all of it as it grows."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siftune.cli import flags
from siftune.errors import UsageError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="logs", description=__doc__, allow_abbrev=False)
    p.add_argument("study", metavar="STUDY|DIR", help="its name or directory")
    p.add_argument("trial", metavar="TRIAL", help="its number, such as 7 or 0007")
    p.add_argument("--rank", type=int, default=0, metavar="N", help="of several processes; [0]")
    p.add_argument("--lines", type=int, metavar="N", help="the last lines only; [all]")
    p.add_argument("--follow", action="store_true", help="continue until the trial has ended")
    flags.add_results(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.record import history, logs

    try:
        directory = history.find(arguments.results, arguments.study)[-1]
        path = _log(directory, arguments.trial, arguments.rank)
    except UsageError as error:
        return flags.say_mistakes("logs", error.mistakes)
    if arguments.lines is not None:
        print("\n".join(logs.tail(directory, path.parent.name, arguments.lines)))
        return 0

    def over() -> bool:
        return not arguments.follow or history.has_ended(directory, path.parent.name)

    try:
        for text in logs.follow(path, over):
            print(text, end="", flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.stderr.close()
    return 0


def _log(directory: Path, trial: str, rank: int) -> Path:
    """Returns the path of a trial's log. Raises UsageError if the study has no such trial."""
    from siftune.study import layout

    name = trial.zfill(4) if trial.isdecimal() else trial
    path = layout.log(directory, name, rank)
    if not path.is_file():
        known = sorted(p.parent.name for p in directory.glob("trials/*/log.txt"))
        listed = f"{known[0]} to {known[-1]}" if known else "none"
        raise UsageError(f"{directory} has no log of trial {name}; it has: {listed}")
    return path
