"""Runs the command `export` of siftune: src/siftune/cli/export.py."""

import sys

from siftune.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
