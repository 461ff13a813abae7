"""Runs the benchmark of the search's quality: `make bench ARGS=quality`."""

from tests.bench.quality.measure import main

if __name__ == "__main__":
    main()
