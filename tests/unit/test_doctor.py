"""The findings of doctor match the state of the machine, and each check prints one line."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siftune.backend import environment
from siftune.cli import doctor
from siftune.cli.doctor import Place, finding
from siftune.cli.doctor import gpus as doctor_gpus
from siftune.machine import gpus as gpu_facts
from siftune.machine import resources, slurm

ROOT = Path(__file__).parents[2]

# Contents of /proc/driver/nvidia/version on real machines, and the driver versions.
DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04) \n": "535.129.03",
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  384.81  Wed Aug 17 22:24:07 PDT 2016\n"
    "GCC version:  gcc version 4.8.5 20150623 (Red Hat 4.8.5-4) (GCC)\n": "384.81",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.42.06  Release Build  "
    "(abuild@host)  Thu Jul 11 12:00:00 UTC 2024\n"
    "GCC version:  gcc version 7.5.0 (SUSE Linux) \n": "555.42.06",
    "NVRM version: NVIDIA UNIX aarch64 Kernel Module  470.57.02  Tue Jul 13 16:06:24 UTC 2021\n"
    "GCC version:  gcc version 9.3.0 (Ubuntu 9.3.0-17ubuntu1~20.04) \n": "470.57.02",
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.126.09  Release Build  "
    "(dvs-builder@U22-I3-AF04-07-5)  Wed Jan  7 22:35:57 UTC 2026\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04.1)\n": "580.126.09",
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.142  Release Build  "
    "(dvs-builder@U22-I3-H10-02-1)  Tue Mar  3 19:08:06 UTC 2026\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04.1) \n": "580.142",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.60.11  Release Build  "
    "(archlinux-builder@localhost)  \nGCC version:  gcc version 12.2.0 (GCC) \n": "525.60.11",
}


@pytest.mark.parametrize(("text", "version"), DRIVERS.items())
def test_the_driver_is_read_from_every_kind_of_kernel_module(text: str, version: str) -> None:
    assert gpu_facts.parse_driver_version(text) == version


@pytest.mark.parametrize("text", ["", "GCC version:  gcc version 12.2.0 (GCC) \n"])
def test_a_text_without_a_driver_is_none(text: str) -> None:
    assert gpu_facts.parse_driver_version(text) is None


def test_flavours_are_those_that_images_are_built_from() -> None:
    built = {}
    for path in (ROOT / "containers" / "flavours").glob("*.args"):
        arguments = dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE))
        oldest = arguments["DRIVER_MIN"]
        architectures = tuple(arguments["ARCHITECTURES"].split())
        built[path.stem] = (None if oldest == "base" else int(oldest), architectures)
    assert built == doctor_gpus.FLAVOURS


@pytest.mark.parametrize(
    ("own", "machine", "version", "level", "words"),
    [
        (None, "x86_64", "580.95.05", "ok", "FLAVOUR=cu13"),
        (None, "x86_64", "570.86.15", "ok", "FLAVOUR=cu12"),
        (None, "x86_64", "470.57.02", "ok", "BASE=SITE.sif"),
        (None, "aarch64", "580.126.09", "ok", "FLAVOUR=cu13"),
        (None, "aarch64", "550.54.15", "ok", "BASE=SITE.sif"),
        (None, "aarch64", None, "ok", "cu13 fits aarch64, no NVIDIA driver"),
        (None, "ppc64le", "580.95.05", "fail", "no flavour fits ppc64le"),
        ("cu13", "x86_64", "580.65.06", "ok", "the image is cu13, which fits"),
        ("cu13", "x86_64", None, "ok", "the image is cu13, which fits"),
        ("cu13", "x86_64", "535.129.03", "fail", "FLAVOUR=cu12"),
        ("cu13", "aarch64", "535.129.03", "fail", "BASE=SITE.sif"),
        ("cu12", "x86_64", "535.129.03", "ok", "the image is cu12, which fits"),
        ("cu12", "x86_64", "470.57.02", "fail", "BASE=SITE.sif"),
        ("site", "aarch64", "470.57.02", "ok", "the image is site, which fits"),
        ("mine", "x86_64", "580.65.06", "warn", "known: cu13, cu12, site"),
    ],
)
def test_the_flavour_follows_from_machine_and_driver(
    own: str | None, machine: str, version: str | None, level: str, words: str
) -> None:
    finding = doctor_gpus.judge_flavour(own, machine, version)
    assert finding.level == level
    assert words in finding.line("flavour")


@pytest.mark.parametrize(
    ("driver", "devices", "library", "container", "level", "words"),
    [
        (False, 0, False, True, "ok", "trials run on the CPU"),
        (True, 0, False, True, "warn", "ask Slurm for one"),
        (True, 2, False, True, "fail", "--nv"),
        (True, 2, False, False, "fail", "libcuda.so.1"),
        (True, 2, True, True, "ok", "2 device files"),
    ],
)
def test_gpus_follow_from_driver_device_files_and_library(
    driver: bool, devices: int, library: bool, container: bool, level: str, words: str
) -> None:
    finding = doctor_gpus.judge_gpus(
        driver=driver, devices=devices, library=library, container=container
    )
    assert finding.level == level
    assert words in finding.line("gpus")


def on_path(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a stand-in for nvidia-smi on PATH, because this machine may have no GPU."""
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "level", "words"),
    [
        ("echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)'", "ok", "1 GPUs, none divided"),
        (
            "echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)'\n"
            "echo '  MIG 3g.40gb     Device  0: (UUID: MIG-1)'\n"
            "echo '  MIG 3g.40gb     Device  1: (UUID: MIG-2)'",
            "warn",
            "2 MIG instances on 1 GPUs",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "fail",
            "version mismatch; use another node",
        ),
    ],
)
def test_divided_gpus_and_a_broken_driver_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, level: str, words: str
) -> None:
    on_path(tmp_path, monkeypatch, script)
    finding = doctor_gpus.mig(Place(tmp_path, tmp_path))
    assert finding.level == level
    assert words in finding.line("mig")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sleep 60", "no answer in 1 s"),
        ("kill -SEGV $$", "signal 11"),
        ("echo no >&2; exit 3", "no"),
    ],
)
def test_what_hangs_or_crashes_is_a_line_and_not_the_end(script: str, words: str) -> None:
    began = time.perf_counter()
    status, output = finding.run_command(["sh", "-c", script], deadline_s=1)
    assert (status != 0, output) == (True, words)
    assert time.perf_counter() - began < 50


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
10.1.2.3@tcp:/scratch /scratch lustre rw,flock 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
tmpfs /home/with\\040space tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/scratch/me/results", "lustre"),
        ("/scratchy", "ext4"),
        ("/home/me", "nfs4"),
        ("/home/with space/x", "tmpfs"),
        ("/", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert doctor.file_system(Path(path), MOUNTS) == kind


def test_results_are_really_written_and_nothing_stays(tmp_path: Path) -> None:
    finding = doctor.results(Place(tmp_path / "not" / "there", tmp_path))
    assert finding.level == "ok"
    assert "appending, renaming and locking work" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_fail() -> None:
    finding = doctor.results(Place(Path("/proc/results"), Path()))
    assert (finding.level, finding.advice) == ("fail", "name another directory with --results")


def test_a_data_set_is_verified(tmp_path: Path, mnist_directory: Path) -> None:
    assert doctor.data_set(Place(tmp_path, mnist_directory)).level == "ok"
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"other")
    line = doctor.data_set(Place(tmp_path, tmp_path)).line("data set")
    assert line.startswith("warn data set: ")
    assert "train-images-idx3-ubyte is missing" in line
    assert "train-labels-idx1-ubyte is corrupt" in line
    assert line.endswith(f"data --data {tmp_path}")


def test_the_job_is_that_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.describe_job() is None
    for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = slurm.describe_job()
    assert job is not None
    assert job[0].startswith("job 7 on 2 nodes; ")
    assert job[1] == 4


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "entrypoints" / "doctor.py", *flags],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_every_check_is_a_line_and_warnings_do_not_fail(
    tmp_path: Path, mnist_directory: Path
) -> None:
    flags = ("--results", str(tmp_path), "--data", str(mnist_directory))
    done = run(*flags, PYTHONPATH=f"{ROOT / 'src'}", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(re.match(r"(ok|warn) [a-z ]+: \S", line) for line in lines), done.stdout
    names = [line.partition(":")[0].partition(" ")[2] for line in lines]
    assert names[-1] == "torch"
    assert len(names) == len(set(names)) == 14


def test_a_check_that_fails_is_the_exit_status() -> None:
    done = run("--quick", "--results", "/proc/results")
    assert done.returncode == 1
    assert "\nfail results: " in done.stdout
    assert "\nok torch" not in done.stdout


def disks(monkeypatch: pytest.MonkeyPatch, **free_gib: float) -> None:
    """Simulates disks of 100 GiB: maps the last part of a directory's path to its free GiB."""

    def usage(path: Path) -> Any:
        free = free_gib[Path(path).name] * 2**30
        return SimpleNamespace(free=free, used=100 * 2**30 - free, total=100 * 2**30)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)


@pytest.mark.parametrize(
    ("ray", "trials", "container", "line"),
    [
        (50, 60, False, "ok {}: Ray's files: /RAY has 50.0 GiB free, 50% used; checkpoints being"),
        (0.5, 60, False, "fail {}: /RAY has 0.5 GiB free, 100% used; Ray needs 1 GiB there: make "),
        (0.5, 60, True, "fail {}: /RAY has 0.5 GiB free, 100% used; Ray needs 1 GiB there: use "),
        (4, 60, False, "warn {}: /RAY has 4.0 GiB free, 96% used; Ray refuses to store objects on"),
        (50, 0.5, False, "warn {}: /TRIALS has 0.5 GiB free, 100% used; trials save their check"),
    ],
)
def test_room_is_needed_where_ray_writes_and_that_is_not_tmpdir(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray: float,
    trials: float,
    container: bool,
    line: str,
) -> None:
    monkeypatch.setattr(resources, "LOCAL_TMP", tmp_path / "ray")
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "trials"))
    monkeypatch.setattr(doctor, "in_container", lambda: container)
    disks(monkeypatch, ray=ray, trials=trials)
    shown = doctor.temporary_directory(Place(tmp_path, tmp_path)).line("x")
    line = line.replace("/RAY", f"{tmp_path}/ray").replace("/TRIALS", f"{tmp_path}/trials")
    assert shown.startswith(line.format("x"))
    if "Ray " in line and "ok" not in line:
        assert "TMPDIR" not in shown
        assert (f"--bind DIRECTORY:{tmp_path}/ray" in shown) == container


def test_a_study_on_this_machine_writes_where_doctor_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "LOCAL_TMP", tmp_path)
    monkeypatch.setenv("TMPDIR", "/dev/null")
    with environment.prepared():
        assert environment.private_directory().parent == tmp_path


def test_sockets_are_tried_where_ray_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(doctor.tempfile, "tempdir", str(long))  # TMPDIR is not used by Ray
    assert doctor.sockets(Place(tmp_path, tmp_path)).line("x") == (
        "ok x: Ray can create its sockets in /tmp"
    )
    monkeypatch.setattr(resources, "LOCAL_TMP", long)
    finding = doctor.sockets(Place(tmp_path, tmp_path))
    assert (finding.level, "too long" in finding.found) == ("fail", True)
    assert list(long.iterdir()) == []


@pytest.mark.parametrize(
    ("hard", "words"),
    [
        (8192, "Ray needs more: ulimit -n 8192"),
        (resource.RLIM_INFINITY, "Ray needs more: ulimit -n unlimited"),
        (2048, "Ray needs 4096: ask the administrators to raise the hard limit from 2048"),
    ],
)
def test_a_limit_is_raised_as_far_as_it_can_be(
    monkeypatch: pytest.MonkeyPatch, hard: int, words: str
) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (1024, hard))
    assert doctor.open_files(Place(Path(), Path())).advice == words
    assert doctor.processes(Place(Path(), Path())).advice == words.replace("-n", "-u")


def test_few_open_files_are_warned_of() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        line = doctor.open_files(Place(Path(), Path())).line("open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert line == f"warn open files: at most 1024 at once; Ray needs more: ulimit -n {hard}"


def test_mps_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, tmp_path)
    assert doctor_gpus.mps(place).found.startswith("nvidia-cuda-mps-control is not installed")
    monkeypatch.setenv("PATH", f"{ROOT}/tests/stand_ins:{os.environ['PATH']}")
    for name in ("PIPE", "LOG"):
        monkeypatch.setenv(f"CUDA_MPS_{name}_DIRECTORY", str(tmp_path))
    assert doctor_gpus.mps(place).level == "warn"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
    try:
        assert doctor_gpus.mps(place).line("mps") == f"ok mps: MPS is running in {tmp_path}"
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=True)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY")
    assert "trials that share a GPU take turns" in doctor_gpus.mps(place).found
