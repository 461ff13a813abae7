"""Writes report.html, one page about a study, into its directory. Needs no Ray."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="report", description=__doc__, allow_abbrev=False)
    p.add_argument("study", nargs="?", metavar="STUDY|DIR", help="its name or directory; [newest]")
    p.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="[results]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune import report
    from siftune.errors import UsageError
    from siftune.record import history

    try:
        print(report.write(history.find(arguments.results, arguments.study)[-1]))
    except UsageError as error:
        for mistake in error.mistakes:
            print(f"report: {mistake}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
