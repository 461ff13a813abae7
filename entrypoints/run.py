"""Runs the command `run` of siftune: src/siftune/cli/run.py."""

import sys

from siftune.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
