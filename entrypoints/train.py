"""Runs the command `train` of siftune: src/siftune/cli/train.py."""

import sys

from siftune.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
