"""`make submit` renders the expected text, compared as a whole, and explains each refusal."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "slurm" / "tune.sbatch").read_text()


def submit(**variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `make submit` with DRY_RUN=1, these variables and no others."""
    given = [f"{name}={value}" for name, value in ({"DRY_RUN": "1"} | variables).items()]
    environment = {"PATH": os.environ["PATH"], "USER": "someone"}
    return subprocess.run(
        ["make", "--no-print-directory", "submit", *given],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(nodes: int, gpus: int, site: str, partition: str, minutes: int, **more: str) -> str:
    """Returns the expected text. Each of a Turpan node's 2 GPUs gets 40 cores and 230,000 MiB."""
    name = more.get("name", "siftune")
    warning = f"--signal=B:USR1@{min(120, 15 * minutes)} --requeue --no-kill"
    return (
        f"sbatch --job-name={name} --partition={partition} --nodes={nodes} --ntasks-per-node=1 "
        f"--cpus-per-task={40 * gpus} --mem={230000 * gpus}M --gres=gpu:{gpus} --time={minutes} "
        f"{warning} --output=slurm-%j.out --open-mode=append --export=NONE "
        f"{ROOT}/slurm/tune.sbatch {ROOT} {site} {more.get('image', 'tune.sif')} "
        f"{more.get('overlay', '-')} {more.get('restarts', 20)} - "
        f"{more.get('flags', '')}\n\n{SCRIPT}"
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GPUS": "8"}, rendered(4, 2, "turpan", "small", 240)),
        ({"GPUS": "2"}, rendered(1, 2, "turpan", "small", 240)),
        ({"GPUS": "1"}, rendered(1, 1, "turpan", "shared", 240)),
        ({"GPUS": "14"}, rendered(7, 2, "turpan", "big", 120)),
        ({"GPUS": "8", "TIME": "0:40:00"}, rendered(4, 2, "turpan", "small", 40)),
        ({"GPUS": "8", "TIME": "10:00:00"}, rendered(4, 2, "turpan", "full", 600)),
        ({"GPUS": "8", "PARTITION": "big"}, rendered(4, 2, "turpan", "big", 120)),
        (
            {"GPUS": "8", "NAME": "mine", "IMAGE": "other.sif"},
            rendered(
                4, 2, "turpan", "small", 240, name="mine", image="other.sif", flags="--name mine "
            ),
        ),
        (
            {"GPUS": "2", "RESUME": "mine", "RESTARTS": "3"},
            rendered(
                *(1, 2, "turpan", "small", 240), name="mine", restarts="3", flags="--resume mine "
            ),
        ),
        (
            {"GPUS": "8", "ARGS": "--searcher hebo --set 'lr=loguniform(1e-5, 1e-2)'"},
            rendered(
                *(4, 2, "turpan", "small", 240),
                flags="--searcher hebo --set lr=loguniform\\(1e-5\\,\\ 1e-2\\) ",
            ),
        ),
    ],
)
def test_the_whole_text_is_as_expected(variables: dict[str, str], expected: str) -> None:
    done = submit(SITE="turpan", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GPUS": "7"}, ["whole nodes of 2", "GPUS=6 or GPUS=8"]),
        ({"GPUS": "100"}, ["the maximum is GPUS=30"]),
        ({"GPUS": "100", "SITE": "virtual"}, ["the maximum is GPUS=8"]),
        ({"GPUS": "8", "PARTITION": "shared"}, ["more than shared has", "the maximum is GPUS=1"]),
        ({"GPUS": "many"}, ["whole number", "'many'"]),
        ({"GPUS": "0"}, ["at least 1", "'0'"]),
        ({"GPUS": ""}, ["GPUS must be"]),
        ({"GPUS": "8", "SITE": "moon"}, ["SITE must be one of", "turpan"]),
        ({"GPUS": "8", "SITE": "../etc"}, ["SITE must be one of"]),
        (
            {"GPUS": "8", "TIME": "21:00:00"},
            ["TIME=21:00:00", "1200 minutes of the partition full"],
        ),
        ({"GPUS": "8", "TIME": "5:00:00", "PARTITION": "small"}, ["TIME=5:00:00", "240 minutes"]),
        ({"GPUS": "8", "TIME": "soon"}, ["TIME must be", "'soon'"]),
        ({"GPUS": "8", "PARTITION": "huge"}, ["PARTITION must be one of", "'huge'"]),
        ({"GPUS": "8", "NAME": "a b"}, ["NAME must be", "'a b'"]),
        ({"GPUS": "8", "IMAGE": "no.sif", "DRY_RUN": ""}, ["no image no.sif", "make image"]),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    variables: dict[str, str], words: list[str]
) -> None:
    done = submit(**({"SITE": "turpan"} | variables))
    assert done.returncode != 0
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_a_program_takes_the_place_of_a_study() -> None:
    done = submit(SITE="turpan", GPUS="8", RUN="python my.py --x 'a b'")
    assert " tune.sif - 0 - run python my.py --x a\\ b \n" in done.stdout, done.stderr
    refused = submit(SITE="turpan", GPUS="8", RUN="python my.py", ARGS="--trials 3")
    assert "is no study of siftune: leave out ARGS" in refused.stderr


def test_arguments_are_words_and_nothing_is_evaluated(tmp_path: Path) -> None:
    done = submit(SITE="turpan", GPUS="2", ARGS=f"--name '$$(touch {tmp_path}/made)' ; `id`")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made").exists()
    assert "uid=" not in done.stdout


@pytest.mark.parametrize("how", ["--trainable FILE:train", "--trainable=FILE", "--config STUDY"])
def test_a_list_of_packages_beside_the_trainable_is_an_overlay(tmp_path: Path, how: str) -> None:
    (tmp_path / "requirements.txt").write_text("einops\n")
    (tmp_path / "study.yaml").write_text(f"name: s\ntrainable: {tmp_path}/my_train.py:train\n")
    flags = how.replace("FILE", f"{tmp_path}/my_train.py")
    flags = flags.replace("STUDY", f"{tmp_path}/study.yaml")
    done = submit(SITE="turpan", GPUS="2", ARGS=flags)
    assert f" tune.sif {tmp_path}/requirements-LOCK.sqfs 20 - " in done.stdout, done.stderr
    (tmp_path / "requirements.txt").unlink()
    assert " tune.sif - 20 - " in submit(SITE="turpan", GPUS="2", ARGS=flags).stdout
