"""Runs the tests.

    make check [ARGS="-k journal"]    the light tests, which need neither Ray nor the cluster
    make test                         all tests
    make test ARGS="tests/unit -x"    one run of pytest with these arguments

All tests together take several runs of pytest. The tests on the virtual cluster mostly wait, so the
light tests and whole studies on this machine's Ray run at the same time. The studies that a test
must interrupt at a certain moment run last, on their own.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PYTEST = [sys.executable, "-m", "pytest"]
CLUSTER = ["tests/cluster", "tests/container"]
_WHOLE = ("clones", "own", "packages", "packing", "pairs", "scale", "tuner")
WHOLE = [f"tests/ray/test_{name}.py" for name in _WHOLE]
LIGHT = ["tests", *(f"--ignore={directory}" for directory in (*CLUSTER, "tests/ray"))]
# Distributes whole files, so that the fixtures shared by a file's tests are created once.
SPREAD = ["--numprocesses", "auto", "--dist", "loadfile"]
MOMENTS = ["tests/ray", *(f"--ignore={file}" for file in WHOLE)]


def main(words: list[str]) -> int:
    if words[:1] == ["check"]:
        return subprocess.call([*PYTEST, *LIGHT, *SPREAD, *words[1:]])
    if words[:1] == ["cases"]:
        return _cases(Path(words[1]))
    if words:
        return subprocess.call([*PYTEST, *words])
    # The cluster's tests have deadlines of seconds, so the tests beside them get a lower priority.
    with ThreadPoolExecutor() as beside:
        light = beside.submit(lambda: max(_pytest(LIGHT, nice=10), _pytest(WHOLE, nice=10)))
        worst = max(_pytest(CLUSTER), light.result())
    return max(worst, _pytest(MOMENTS))


def _cases(directory: Path) -> int:
    """Runs each case of a directory: `NAME/run.sh PROJECT`. Returns 1 if one fails."""
    root, failed = Path(__file__).parents[1], 0
    for case in sorted(directory.glob("*/run.sh")):
        command = ["bash", str(case.absolute()), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        first = next(iter((done.stdout or done.stderr).splitlines()), "")
        word = "ok" if done.returncode == 0 else "FAILED"
        print(f"{word:7}{case.parent.name}: {first}", flush=True)
        failed |= done.returncode != 0
    return int(failed)


def _pytest(words: list[str], nice: int = 0) -> int:
    """Runs pytest and returns its exit status. Prints whole lines, so that two runs can overlap."""
    command = ["nice", "-n", str(nice), *PYTEST, *words]
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, errors="replace", **streams) as run:
        assert run.stdout
        for line in run.stdout:
            print(line, end="", flush=True)
    return abs(run.returncode)  # negative after a signal, which max() would ignore


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
