"""Runs the command `logs` of siftune: src/siftune/cli/logs.py."""

import sys

from siftune.cli.logs import main

if __name__ == "__main__":
    sys.exit(main())
