"""Fetches and verifies MNIST. Run this on a machine with network access, not on a compute node."""

import argparse
import sys
from collections.abc import Sequence

from siftune.cli import flags


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="data", description=__doc__, allow_abbrev=False)
    flags.add_data(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.trainables.datasets import DataError
    from siftune.trainables.datasets.mnist import ensure_mnist

    try:
        print(f"MNIST is in {ensure_mnist(arguments.data)}")
    except DataError as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    return 0
