"""Runs the tests.

    make check [ARGS="-k journal"]    the light ones: those that need neither Ray nor the cluster
    make test                         all of them
    make test ARGS="tests/unit -x"    one run of pytest with these words

All of them take several runs of pytest. The tests of the virtual cluster mostly wait, so the light
ones and whole studies on this machine's Ray run beside them. The studies that a test must interrupt
at a certain moment follow alone.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PYTEST = [sys.executable, "-m", "pytest"]
CLUSTER = ["tests/cluster", "tests/container"]
WHOLE = [f"tests/ray/test_{name}.py" for name in ("clones", "own", "packing", "pairs", "scale")]
LIGHT = ["tests", *(f"--ignore={directory}" for directory in (*CLUSTER, "tests/ray"))]
# A file at a time: what its tests share is made once.
SPREAD = ["--numprocesses", "auto", "--dist", "loadfile"]
MOMENTS = ["tests/ray", *(f"--ignore={file}" for file in WHOLE)]


def main(words: list[str]) -> int:
    if words[:1] == ["check"]:
        return subprocess.call([*PYTEST, *LIGHT, *SPREAD, *words[1:]])
    if words:
        return subprocess.call([*PYTEST, *words])
    # The cluster's tests have priority over those beside them: they have deadlines of seconds.
    with ThreadPoolExecutor() as beside:
        light = beside.submit(lambda: max(_pytest(LIGHT, nice=10), _pytest(WHOLE, nice=10)))
        worst = max(_pytest(CLUSTER), light.result())
    return max(worst, _pytest(MOMENTS))


def _pytest(words: list[str], nice: int = 0) -> int:
    """Returns the exit status. Prints whole lines, so that two runs do not mix theirs."""
    command = ["nice", "-n", str(nice), *PYTEST, *words]
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, errors="replace", **streams) as run:
        assert run.stdout
        for line in run.stdout:
            print(line, end="", flush=True)
    return abs(run.returncode)  # negative after a signal, and then not the worst of several


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
