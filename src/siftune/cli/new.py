"""Writes a small working trainable, my_train.py, as a starting point."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siftune.cli import flags
from siftune.errors import UsageError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="new", description=__doc__, allow_abbrev=False)
    p.add_argument("kind", nargs="?", default="function", metavar="function|generator|script")
    p.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="[current directory]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.trainables import examples

    try:
        for path in examples.write(arguments.kind, arguments.to):
            print(path)
    except UsageError as error:
        return flags.say_mistakes("new", error.mistakes)
    except OSError as error:
        print(f"new: {error}", file=sys.stderr)
        return 2
    print("its first lines say how to train one config, and how to run a study")
    return 0
