"""Runs a program that uses Ray itself on the Ray of a Slurm job. `make submit RUN=…` calls it."""

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="run", description=__doc__, allow_abbrev=False)
    p.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    command = parser().parse_args(argv).command
    if not command:
        print("run: give a command, such as: python my_program.py", file=sys.stderr)
        return 2
    from siftune.backend import program
    from siftune.backend.connect import ClusterError

    try:
        program.run(command)
    except ClusterError as error:
        print(f"run: {error}", file=sys.stderr)
    return 1
