"""Prints the state of studies, on any machine that can read their directories."""

import argparse
from collections.abc import Sequence

from siftune.cli import flags
from siftune.errors import UsageError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="status", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "study", nargs="?", metavar="STUDY|DIR", help="name or directory of the study; [all]"
    )
    flags.add_results(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.record import history
    from siftune.report import status

    mistakes: list[str] = []
    try:
        for i, directory in enumerate(history.find(arguments.results, arguments.study)):
            try:
                paragraph = list(status.lines(history.load(directory)))
            except UsageError as error:  # the other studies are still shown
                mistakes += [f"{directory}: {mistake}" for mistake in error.mistakes]
            else:
                print("\n" * (i > 0) + "\n".join(paragraph))
    except UsageError as error:
        mistakes += error.mistakes
    return flags.say_mistakes("status", mistakes) if mistakes else 0
