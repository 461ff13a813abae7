"""All tests, in two runs of pytest side by side: those of the virtual cluster, which wait a lot,
and the others. With words, one run of pytest with those.

    make test [ARGS="tests/unit -k journal"]
"""

import subprocess
import sys
from collections.abc import Iterable
from threading import Thread

CLUSTER = ["tests/cluster", "tests/container"]
OTHERS = ["tests", *(f"--ignore={directory}" for directory in CLUSTER)]


def main(words: list[str]) -> int:
    runs = [words] if words else [CLUSTER, OTHERS]
    started = [_pytest(run, together=len(runs) > 1) for run in runs]
    # Whole lines, so that the two do not write into each other's.
    printers = [Thread(target=_print, args=(run.stdout,)) for run in started if run.stdout]
    for printer in printers:
        printer.start()
    for printer in printers:
        printer.join()
    return max(run.wait() for run in started)


def _pytest(words: list[str], *, together: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", *words]
    if not together:
        return subprocess.Popen(command, text=True)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
