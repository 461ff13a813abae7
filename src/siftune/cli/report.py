"""Writes report.html, one page about a study, to its directory. Does not need Ray."""

import argparse
import sys
from collections.abc import Sequence

from siftune.cli import flags
from siftune.errors import UsageError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="report", description=__doc__, allow_abbrev=False)
    flags.add_study(p, "newest")
    flags.add_results(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.record import history
    from siftune.report import page

    try:
        print(page.write(history.find(arguments.results, arguments.study)[-1]))
    except UsageError as error:
        return flags.say_mistakes("report", error.mistakes)
    except OSError as error:
        print(f"report: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
