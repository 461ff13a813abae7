"""All tests, in runs of pytest: those of the virtual cluster, which wait a lot, and beside them the
light ones; then studies on this machine's Ray. With words, one run of pytest with those.

    make test [ARGS="tests/unit -k journal"]
"""

import subprocess
import sys
from collections.abc import Iterable
from threading import Thread

CLUSTER = ["tests/cluster", "tests/container"]
RAY = ["tests/ray"]
LIGHT = ["tests", *(f"--ignore={directory}" for directory in CLUSTER + RAY)]


def main(words: list[str]) -> int:
    if words:
        return _pytest(words).wait()
    return max(_side_by_side(CLUSTER, LIGHT), _side_by_side(RAY))


def _side_by_side(*runs: list[str]) -> int:
    """The worst exit status. The first run goes before the others: it has deadlines of seconds."""
    started = [
        _pytest(run, nice=10 * (i > 0), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i, run in enumerate(runs)
    ]
    # Whole lines, so that they do not write into each other's.
    printers = [Thread(target=_print, args=(run.stdout,)) for run in started if run.stdout]
    for printer in printers:
        printer.start()
    for printer in printers:
        printer.join()
    return max(run.wait() for run in started)


def _pytest(words: list[str], *, nice: int = 0, **streams: int) -> subprocess.Popen[str]:
    command = ["nice", "-n", str(nice), sys.executable, "-m", "pytest", *words]
    return subprocess.Popen(command, text=True, errors="replace", **streams)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
