"""Fetches the data sets, verified, so that a machine without a network can be given them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="data", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SIFTUNE_DATA", "data")),
        metavar="DIR",
        help="where they are to be; [$SIFTUNE_DATA, else data]",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune.trainables.datasets.mnist import DataError, ensure_mnist

    try:
        print(f"MNIST is in {ensure_mnist(arguments.data)}")
    except DataError as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
