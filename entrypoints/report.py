"""Runs the command `report` of siftune: src/siftune/cli/report.py."""

import sys

from siftune.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
