"""Runs the command `tune` of siftune: src/siftune/cli/tune.py."""

import sys

from siftune.cli.tune import main

if __name__ == "__main__":
    sys.exit(main())
