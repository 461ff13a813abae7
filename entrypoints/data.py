"""Runs the command `data` of siftune: src/siftune/cli/data.py."""

import sys

from siftune.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
