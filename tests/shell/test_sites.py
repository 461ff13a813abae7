"""Site files: the job that follows from each, their mistakes, and what a node finds out itself."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.shell.test_submit import ROOT, SCRIPT, submit

STAND_INS = ROOT / "tests" / "stand_ins"
SITES = ROOT / "slurm" / "sites"


def job(site: str, words: str, flags: str = "") -> str:
    """Returns the expected text of a job. `words`: what differs between sites, `|` for the rest."""
    head, requests, after = words.split("|")
    return (
        f"sbatch --job-name=siftune {head} --ntasks-per-node=1 {requests} "
        "--signal=B:USR1@120 --requeue --no-kill --output=slurm-%j.out --open-mode=append "
        f"{after}{ROOT}/slurm/tune.sbatch {ROOT} {site} tune.sif - 20 - {flags}\n\n{SCRIPT}"
    )


@pytest.mark.parametrize(
    ("site", "resources", "words", "flags"),
    [
        (
            "turpan",
            {"GPUS": "8"},
            "--partition=small --nodes=4|--cpus-per-task=80 --mem=460000M --gres=gpu:2 "
            "--time=240|--export=NONE ",
            "",
        ),
        ("vista", {"GPUS": "8"}, "--partition=gh --nodes=8|--cpus-per-task=72 --time=2880|", ""),
        (
            "vista",
            {"NODES": "2", "CPUS_PER_TRIAL": "4"},
            "--partition=gg --nodes=2|--cpus-per-task=144 --time=2880|",
            "--cpus-per-trial 4 --gpus-per-trial 0 ",
        ),
        (
            "jeanzay",
            {"GPUS": "8", "ACCOUNT": "abc@v100"},
            "--partition=gpu_p13 --account=abc@v100 --nodes=2|--cpus-per-task=40 --gres=gpu:4 "
            "--time=1200|--export=NONE --hint=nomultithread --qos=qos_gpu-t3 ",
            "",
        ),
        (
            "lumi",
            {"GPUS": "16"},
            "--partition=small-g --nodes=2|--cpus-per-task=56 --mem=480000M --gpus-per-node=8 "
            "--time=4320|--export=NONE ",
            "",
        ),
        (
            "mahti",
            {"GPUS": "1"},
            "--partition=gpusmall --nodes=1|--cpus-per-task=32 --mem=122500M --gres=gpu:a100:1 "
            "--time=2160|--export=NONE ",
            "",
        ),
        (
            "isambard",
            {"GPUS": "8"},
            "--partition=workq --nodes=2|--cpus-per-task=288 --mem=440000M --gpus-per-node=4 "
            "--time=1440|--export=NONE ",
            "",
        ),
        (
            "leonardo",
            {"GPUS": "4"},
            "--partition=boost_usr_prod --nodes=1|--cpus-per-task=32 --mem=480000M --gres=gpu:4 "
            "--time=1440|--export=NONE ",
            "",
        ),
        (
            "generic",
            {"NODES": "3"},
            "--nodes=3|--cpus-per-task=32 --mem=120000M --time=1440|--export=NONE ",
            "--gpus-per-trial 0 ",
        ),
    ],
)
def test_the_whole_job_of_each_site(
    site: str, resources: dict[str, str], words: str, flags: str
) -> None:
    done = submit(SITE=site, **resources)
    assert done.returncode == 0, done.stderr
    assert done.stdout == job(site, words, flags)


def test_each_site_says_whether_it_was_run_there() -> None:
    sites = {path.stem for path in SITES.glob("*.env")} - {"generic", "virtual"}
    assert sites == {"turpan", "vista", "jeanzay", "lumi", "mahti", "isambard", "leonardo"}
    for name in sites:
        assert "from its public documentation; never run there" in (
            (SITES / f"{name}.env").read_text().replace("From", "from")
        )


def load(text: str, tmp_path: Path, script: str = "") -> subprocess.CompletedProcess[str]:
    """Loads a site file with this text, and then runs lines of Bash."""
    (tmp_path / "slurm/sites").mkdir(parents=True, exist_ok=True)
    (tmp_path / "slurm/sites/mine.env").write_text(text)
    source = f"set -euo pipefail\nsource {ROOT}/slurm/lib.sh\nsource {ROOT}/slurm/gpus.sh\n"
    return subprocess.run(
        ["bash", "-c", f"{source}load_site {tmp_path} mine\n{script}"],
        cwd=tmp_path,
        env={"PATH": f"{STAND_INS}:{os.environ['PATH']}", "USER": "someone"},
        capture_output=True,
        text=True,
        check=False,
    )


GOOD = 'PARTITIONS="small:4:240"\nGPUS_PER_NODE=2\nCPUS_PER_NODE=40\nMEM_PER_NODE_MIB=4000\n'


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (GOOD, ["small:4:240:8:40:4000"]),
        # As sinfo prints it: -o "%P %D %l", "%G", "%c" and "%m".
        (
            'PARTITIONS="PARTITION NODES TIMELIMIT\nshared* 4 1-00:00:00\nbig 12 infinite\n'
            'cpu 3 4:00:00"\nGPUS_PER_NODE="gpu:a100:2(S:0-1)"\nCPUS_PER_NODE=80+\n'
            "MEM_PER_NODE_MIB=515000+\n",
            ["shared:4:1440:8:80:515000", "big:12:525600:24:80:515000", "cpu:3:240:6:80:515000"],
        ),
        (
            'PARTITIONS="gpu:4:240 cpu:9:60:0:64:2000"\nGPUS_PER_NODE=gpu:2\n'
            "CPUS_PER_NODE=40\nMEM_PER_NODE_MIB=4000\n",
            ["gpu:4:240:8:40:4000", "cpu:9:60:0:64:2000"],
        ),
    ],
)
def test_values_may_be_pasted_from_sinfo(text: str, lines: list[str], tmp_path: Path) -> None:
    done = load(text, tmp_path, 'printf "%s\\n" "${PARTITION_LINES[@]}"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == lines


def test_all_mistakes_of_a_file_are_named_with_the_line_to_write(tmp_path: Path) -> None:
    text = (
        'PARTITIONS="a:b:c"\nGPUS_PER_NODE=many\nCPU_PER_NODE=80\nMEM_PER_NODE_MIB=lots\n'
        "GPU_REQUEST=gres\nBINDS=scratch\nGPU_FLAG=-nv\nCONTAINER=docker\nNODE_TMP=tmp\n"
        'SBATCH_OPTIONS="--qos=\'x"\n'
    )
    done = load(text, tmp_path)
    assert done.returncode == 2
    mistakes = done.stderr.splitlines()
    assert all(line.startswith("slurm/sites/mine.env: ") for line in mistakes)
    for words in (
        "unknown variable CPU_PER_NODE; the variables are: PARTITIONS GPUS_PER_NODE",
        "got 'many': write GPUS_PER_NODE=4 with the value that sinfo -o \"%G\" shows",
        "CPUS_PER_NODE must be the cores of a node, got ''",
        "got 'lots': write MEM_PER_NODE_MIB=120000",
        "got 'gres': write GPU_REQUEST=--gres=gpu:%g",
        "got 'scratch': write BINDS=/scratch,/work",
        "got '-nv': write GPU_FLAG=--nv",
        "got 'docker': write CONTAINER=apptainer",
        "got 'tmp': write NODE_TMP=/tmp",
        "SBATCH_OPTIONS has a quote without its end",
        "PARTITIONS has 'a:b:c'",
    ):
        assert [line for line in mistakes if words in line], (words, mistakes)
    assert len(mistakes) == 11
    assert "it is not Bash" in load('PARTITIONS="', tmp_path).stderr
    assert "PARTITIONS is empty" in load(GOOD.replace("small:4:240", ""), tmp_path).stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NODES": "16"}, "NODES=16 is more than any partition has: the maximum is NODES=15"),
        ({"NODES": "0"}, "NODES must be a whole number of at least 1, got '0'"),
        ({"NODES": "1", "GPUS": "1"}, "leave it out, or leave out GPUS=1"),
        ({"NODES": "2", "PARTITION": "shared"}, "more than shared has: the maximum is NODES=1"),
        ({"GPUS": "", "NODES": ""}, "NODES=1 is one without GPUs"),
        ({"GPUS": "1", "TIME": "1-0"}, "TIME=1-0 must be between 1 and the 1200 minutes"),
        ({"GPUS": "1", "TIME": "4h"}, "TIME must be minutes, MM:SS, HH:MM:SS, D-HH"),
    ],
)
def test_what_a_site_does_not_have_is_refused(variables: dict[str, str], words: str) -> None:
    done = submit(SITE="turpan", **variables)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:01", 91), ("1:30:00", 90), ("0-3", 180), ("0-1:30", 90), ("0-0:59:30", 60)],
)
def test_time_has_the_forms_of_slurm(time: str, minutes: int) -> None:
    done = submit(SITE="turpan", GPUS="1", TIME=time)
    assert f" --time={minutes} " in done.stdout, done.stderr


def test_images_may_have_to_lie_below_a_directory(tmp_path: Path) -> None:
    text = GOOD + f"IMAGES_BELOW={tmp_path}/images\n"
    (SITES / "belowtest.env").write_text(text)
    try:
        refused = submit(SITE="belowtest", GPUS="1")
        assert f"runs images only below {tmp_path}/images: copy tune.sif there" in refused.stderr
        allowed = submit(SITE="belowtest", GPUS="1", IMAGE=f"{tmp_path}/images/tune.sif")
        assert allowed.returncode == 0, allowed.stderr
    finally:
        (SITES / "belowtest.env").unlink()


# ── On a node ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("site", "given", "expected"),
    [
        ("", "CUDA_VISIBLE_DEVICES=0,1,2", 3),
        ("", "CUDA_VISIBLE_DEVICES=MIG-aa,MIG-bb", 2),
        ("", "", 0),  # a job without GPUs
        ("GPU_REQUEST=''\n", "", 2),  # what nvidia-smi lists
        ("GPU_REQUEST=''\n", "CUDA_VISIBLE_DEVICES=0", 1),
        ("GPU_REQUEST=''\n", "PATH=/usr/bin:/bin DEVICES=$PWD", 3),  # device files
        ("GPU_FLAG=--rocm\n", "ROCR_VISIBLE_DEVICES=4,5", 2),
    ],
)
def test_gpus_are_counted(site: str, given: str, expected: int, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    done = load(GOOD + site, tmp_path, f"export {given or 'X=1'}\nrename_rocr\ngpus_here")
    assert done.stdout.split() == [str(expected)], done.stderr


def test_amd_gpus_are_named_as_ray_accepts_them(tmp_path: Path) -> None:
    show = 'echo "${HIP_VISIBLE_DEVICES-none} ${ROCR_VISIBLE_DEVICES-none}"'
    script = f"export ROCR_VISIBLE_DEVICES=2,3 CUDA_VISIBLE_DEVICES=2,3\nrename_rocr\n{show}"
    assert load(GOOD + "GPU_FLAG=--rocm\n", tmp_path, script).stdout == "2,3 none\n"
    assert load(GOOD, tmp_path, script).stdout == "none 2,3\n"


def test_set_up_lines_run_where_modules_are_known(tmp_path: Path) -> None:
    setup = "NODE_SETUP='module() { echo loaded \"$2\"; }; module load apptainer'\n"
    done = load(GOOD + setup, tmp_path, 'set_up "$NODE_SETUP"\necho $-')
    assert done.stdout.splitlines()[0] == "loaded apptainer", done.stderr
    assert {"e", "u"} <= set(done.stdout.splitlines()[1])
    failed = load(GOOD + "NODE_SETUP='module load nosuch'\n", tmp_path, 'set_up "$NODE_SETUP"')
    assert failed.returncode == 0
    assert "these set-up lines of the site's file failed: module load nosuch" in failed.stderr


def test_the_containers_command_is_the_sites(tmp_path: Path) -> None:
    script = 'in_image x.sif /job\nprintf "%s\\n" "${IN_IMAGE[@]:0:3}"'
    script = f"SLURM_JOB_ID=1\n{script}"
    done = load(GOOD + "CONTAINER=singularity\n", tmp_path, script)
    assert done.stdout.split() == ["singularity", "--silent", "exec"], done.stderr
