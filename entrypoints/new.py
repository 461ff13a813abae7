"""Runs the command `new` of siftune: src/siftune/cli/new.py."""

import sys

from siftune.cli.new import main

if __name__ == "__main__":
    sys.exit(main())
