"""Says how studies are doing, from what they wrote: on any machine that sees their directory."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="status", description=__doc__, allow_abbrev=False)
    p.add_argument("study", nargs="?", metavar="STUDY|DIR", help="its name or directory; [all]")
    p.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="[results]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune.cli import status
    from siftune.errors import UsageError
    from siftune.record import history

    mistakes = []
    try:
        for i, directory in enumerate(history.find(arguments.results, arguments.study)):
            try:
                paragraph = list(status.lines(history.load(directory)))
            except UsageError as error:  # the other studies are still to be shown
                mistakes += [f"{directory}: {mistake}" for mistake in error.mistakes]
            else:
                print("\n" * (i > 0) + "\n".join(paragraph))
    except UsageError as error:
        mistakes += error.mistakes
    for mistake in mistakes:
        print(f"status: {mistake}", file=sys.stderr)
    return 2 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
