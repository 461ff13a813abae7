"""Runs the command `status` of siftune: src/siftune/cli/status.py."""

import sys

from siftune.cli.status import main

if __name__ == "__main__":
    sys.exit(main())
