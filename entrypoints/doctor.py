"""Says what this machine can do and which flavour of the image fits: a line for each check."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="doctor",
        description=__doc__,
        epilog="Exit status: 0 nothing fails; 1 a check failed; warnings do not count.",
        allow_abbrev=False,
    )
    p.add_argument("--quick", action="store_true", help="without torch, which takes seconds")
    p.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="[results]")
    p.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SIFTUNE_DATA", "data")),
        metavar="DIR",
        help="data sets; [$SIFTUNE_DATA, else data]",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune.cli import doctor

    place, failed = doctor.Place(arguments.results, arguments.data), False
    for name, finding in doctor.findings(place, quick=arguments.quick):
        print(finding.line(name), flush=True)
        failed |= finding.level == "fail"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
