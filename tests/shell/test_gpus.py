"""GPU sampling and MPS on the nodes of a job, with stand-ins for NVIDIA's programs."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from siftune.machine.gpus import Usage, watched
from siftune.record.lease import Lease

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests" / "stand_ins"


def node(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of Bash with the functions of gpus.sh defined."""
    head = f"set -euo pipefail\nsource {ROOT}/slurm/lib.sh\nsource {ROOT}/slurm/gpus.sh\n"
    path = f"{STAND_INS}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", head + script],
        cwd=directory,
        env={"PATH": path, "USER": "someone"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def left(directory: Path) -> list[str]:
    """Returns the command lines of processes whose working directory is `directory`."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == directory:
                commands.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return commands


SAMPLING = """
mkdir gpus
begin_sampling "$PWD/gpus/node1"
for _ in {1..100}; do [[ -e gpus/node1 ]] && break; sleep 0.1; done
sleep 1.5
end_sampling
"""


def test_a_node_adds_up_how_busy_its_gpus_are_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = node(SAMPLING, tmp_path, CUDA_VISIBLE_DEVICES="0,1", BUSY="75", STAND_IN_LOG=str(log))
    assert done.returncode == 0, done.stderr
    with watched(tmp_path, gpus=True) as usage:
        (seen,) = usage().values()
    assert seen.samples >= 10
    assert seen.utilisation == 0.75
    assert "--id=0,1 --query-gpu=utilization.gpu" in log.read_text()
    assert [path.name for path in (tmp_path / "gpus").iterdir()] == ["node1"]
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"CUDA_VISIBLE_DEVICES": "MIG-7b5a", "BUSY": "[N/A]"},
        {"CUDA_VISIBLE_DEVICES": "MIG-7b5a", "BUSY": "No devices were found"},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "0", "PATH": os.environ["PATH"]},  # without nvidia-smi
    ],
    ids=["mig", "refused", "no-gpu", "no-program"],
)
def test_where_there_is_nothing_to_see_there_is_no_figure_and_no_error(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = SAMPLING.replace("{1..100}", "1")
    done = node(script, tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    with watched(tmp_path, gpus=True) as usage:
        assert usage() == {}
    assert left(tmp_path) == []


def test_without_a_job_the_driver_looks_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{STAND_INS}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2,GPU-3")
    monkeypatch.setenv("BUSY", "40")
    monkeypatch.chdir(tmp_path)
    with watched(None, gpus=True) as usage:
        deadline = time.monotonic() + 60
        while not any(seen.samples >= 9 for seen in usage().values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (seen,) = usage().values()
    assert seen.utilisation == 0.4
    assert not any("nvidia-smi" in command for command in left(tmp_path))
    with watched(None, gpus=False) as usage:
        assert usage() == {}
    monkeypatch.setenv("PATH", os.devnull)
    with watched(None, gpus=True) as usage:
        assert usage() == {}


def test_samples_are_weights() -> None:
    assert (Usage(100, 9000) + Usage(300, 3000)).utilisation == 0.3


MPS = """
SLURM_JOB_ID=7 tmp=$PWD/sift-7
mkdir -p "$tmp"
trap 'end_mps; rm -rf "$tmp"' EXIT
trap 'exit 0' TERM
begin_mps "$tmp/mps"
echo "$CUDA_VISIBLE_DEVICES ${CUDA_MPS_PIPE_DIRECTORY:-none} ${CUDA_MPS_LOG_DIRECTORY:-none}"
if [[ -d $tmp/mps ]]; then stat -c %a "$tmp/mps"; cat "$tmp/mps/control.log" 2>/dev/null || true; fi
"""
UUIDS = "GPU-00000002-1111-2222-3333-444444444444,GPU-00000003-1111-2222-3333-444444444444"


@pytest.mark.parametrize("end", ["", "kill $$", "export MPS_DEAF=1"])
def test_mps_is_the_jobs_own_and_ends_with_it_however_it_ends(tmp_path: Path, end: str) -> None:
    script = f"{end if 'MPS' in end else ''}\n{MPS}\n{end if 'kill' in end else ''}"
    done = node(script, tmp_path, MPS="1", CUDA_VISIBLE_DEVICES="2,3")
    assert done.returncode == 0, done.stderr
    where, mode, given = done.stdout.splitlines()
    # Daemon and clients get GPUs by UUID: the same index could mean different GPUs for each.
    assert where == f"{UUIDS} {tmp_path}/sift-7/mps {tmp_path}/sift-7/mps"
    assert (mode, given) == ("700", UUIDS)
    assert left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ""),
        ({"MPS": ""}, ""),
        ({"MPS": "1", "PATH": os.environ["PATH"]}, "nvidia-cuda-mps-control was not found"),
        ({"MPS": "1", "MPS_REFUSES": "1"}, "Cannot create the control pipe; the job continues"),
    ],
    ids=["unset", "off", "absent", "refused"],
)
def test_without_mps_the_job_goes_on(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    done = node(MPS, tmp_path, CUDA_VISIBLE_DEVICES="2,3", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2,3 none none"
    assert words in done.stderr
    assert bool(words) == bool(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_gpus_that_have_names_keep_them(tmp_path: Path) -> None:
    done = node(MPS, tmp_path, MPS="1", CUDA_VISIBLE_DEVICES="MIG-7b5a")
    assert done.stdout.splitlines()[2] == "MIG-7b5a"


@pytest.mark.parametrize(
    ("real", "words"),
    [(None, "busy 97 % of the time\n"), (0.71, "busy 97 % of the time, GPU utilisation 71 %\n")],
)
def test_make_status_has_both_figures(tmp_path: Path, real: float | None, words: str) -> None:
    study = tmp_path / "results" / "s"
    study.mkdir(parents=True)
    (study / "study.yaml").touch()
    summary = {"gpus": 2, "gpus_busy": 2, "busy_fraction": 0.97, "gpu_utilisation": real}
    (study / "summary.json").write_text(json.dumps(summary, indent=2))
    driver = Lease(study, job=None)
    done = subprocess.run(
        [ROOT / "slurm" / "status.sh"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    driver.end()
    assert f"2 of 2 GPUs in use, slots {words}" in done.stdout
