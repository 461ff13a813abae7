"""Hostile values for each variable of make: none is evaluated or used as a path elsewhere."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VALUES = (
    *("../x", "a/b", "$(touch made)", "`touch made`", "; touch made", "'; touch made; '"),
    *("a\ntouch made", "-rf", "--option", "x" * 300, "é\u202e", "%n%j", '"', "a[$(touch made)]"),
    *("\x1b[31m", "~", "*", "a b", "docker://a@sha256:0\n%post\ntouch made"),
)
SUBMIT = {"DRY_RUN": "1", "SITE": "turpan", "GPUS": "2"}
# Script, its other variables, and the variables to test; those in brackets may be any text.
SCRIPTS = (
    ("slurm/submit.sh", SUBMIT, "GPUS SITE TIME NAME PARTITION ACCOUNT RESTARTS RESUME GROW"),
    ("slurm/submit.sh", SUBMIT, "(IMAGE) (ARGS) (DRY_RUN) (RUN) CPUS_PER_TRIAL"),
    ("slurm/submit.sh", {"DRY_RUN": "1", "SITE": "turpan"}, "NODES"),
    ("slurm/newsite.sh", {}, "NAME"),
    ("slurm/status.sh", {}, "STUDY SITE (RESULTS)"),
    ("slurm/cancel.sh", {}, "JOB"),
    ("containers/build.sh", {"APPTAINER": "false"}, "BASE FLAVOUR ARCH CA_BUNDLE"),
    ("containers/build.sh", {"APPTAINER": "/none", "BASE": "/none"}, "OUT CACHE"),
    ("containers/sign.sh", {}, "IMAGE KEY"),
    ("containers/sbom.sh", {}, "IMAGE"),
)


@pytest.mark.parametrize(
    ("script", "given", "variable"),
    [(script, given, name) for script, given, names in SCRIPTS for name in names.split()],
)
def test_a_hostile_value_is_refused_or_stays_one_word(
    tmp_path: Path, script: str, given: dict[str, str], variable: str
) -> None:
    name = variable.strip("()")

    def run(value: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": os.environ["PATH"], "USER": "someone", "HOME": str(tmp_path)}
        return subprocess.run(
            [str(ROOT / script), *(["verify"] if "sign" in script else [])],
            env=path | given | {name: value},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    with ThreadPoolExecutor(4) as pool:
        for value, done in zip(VALUES, pool.map(run, VALUES), strict=True):
            assert list(tmp_path.iterdir()) == [], value
            if variable == name:
                assert done.returncode in (1, 2), (value, done.stdout)
                assert done.stderr.strip(), value
            assert "unbound variable" not in done.stderr
            assert "syntax error" not in done.stderr


def test_arguments_are_the_words_that_were_quoted(tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text("show:\n\t@$(WORDS) && printf '%s|' \"$$@\"\n")
    make = ["make", "--no-print-directory", "-f", "Makefile", "-f", str(show), "show"]
    for text, words in (
        (
            "--set 'lr=loguniform(1e-5, 1e-2)' --trials 3",
            "--set|lr=loguniform(1e-5, 1e-2)|--trials|3|",
        ),
        ("; touch made", ";|touch|made|"),
        ("$$(id) `id` '$$HOME'", "$(id)|`id`|$HOME|"),
    ):
        done = subprocess.run(
            [*make, f"ARGS={text}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == words
    odd = subprocess.run(
        [*make, "ARGS=it's"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert odd.returncode == 2
    assert "unmatched single quote" in odd.stderr
