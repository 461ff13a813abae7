"""Runs the command `doctor` of siftune: src/siftune/cli/doctor.py."""

import sys

from siftune.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main())
