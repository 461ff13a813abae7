"""All tests, in runs of pytest: those of the virtual cluster, which wait a lot, and beside them the
light ones and whole studies on this machine's Ray; then studies of which a moment is met. With
words, one run of pytest with those.

    make test [ARGS="tests/unit -k journal"]
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PYTEST = [sys.executable, "-m", "pytest"]
CLUSTER = ["tests/cluster", "tests/container"]
WHOLE = [f"tests/ray/test_{name}.py" for name in ("clones", "own", "packing", "pairs", "scale")]
LIGHT = ["tests", *(f"--ignore={directory}" for directory in (*CLUSTER, "tests/ray"))]
MOMENTS = ["tests/ray", *(f"--ignore={file}" for file in WHOLE)]


def main(words: list[str]) -> int:
    if words:
        return subprocess.call([*PYTEST, *words])
    # The cluster goes before what is beside it: it has deadlines of seconds.
    with ThreadPoolExecutor() as beside:
        light = beside.submit(lambda: max(_pytest(LIGHT, nice=10), _pytest(WHOLE, nice=10)))
        worst = max(_pytest(CLUSTER), light.result())
    return max(worst, _pytest(MOMENTS))


def _pytest(words: list[str], nice: int = 0) -> int:
    """The exit status. Whole lines are printed, so that two do not write into each other's."""
    command = ["nice", "-n", str(nice), *PYTEST, *words]
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, errors="replace", **streams) as run:
        assert run.stdout
        for line in run.stdout:
            print(line, end="", flush=True)
    return abs(run.returncode)  # below 0, and not the worst of several, where it was killed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
