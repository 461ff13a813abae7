"""The user's packages, from requirements.txt to a job, and the mistakes that are refused."""

import re
from collections.abc import Callable

from tests.cluster.conftest import Cluster
from tests.cluster.jobs import Job, events

TRAIN = """
import einops, numpy
from ray import tune

SPACE = {"lr": tune.uniform(0, 1), "epochs": 2}

def train(config):
    for epoch in range(config["epochs"]):
        sum = einops.reduce(numpy.full((2, 2), config["lr"]), "a b ->", "sum")
        tune.report({"loss": float(sum), "einops": float(einops.__version__.count("."))})
"""
PREPARE = f"cat > my_train.py <<'END'\n{TRAIN}\nEND\necho einops > requirements.txt"
FLAGS = "--trainable my_train.py:train --scheduler none"


def test_a_list_beside_the_file_becomes_an_overlay(
    cluster: Cluster, submit: Callable[..., Job]
) -> None:
    job = submit(prepare=PREPARE, GPUS=4, NAME="s", ARGS=f"{FLAGS} --trials 4")
    output = job.wait()
    assert job.status() == 0, output
    journal = events(job.study("s"))
    assert [e["state"] for e in journal if e["event"] == "end"] == ["completed"] * 4
    directory = job.study("s").parent.parent
    (overlay,) = directory.glob("requirements-*.sqfs")
    made = overlay.stat().st_mtime_ns
    lock = (directory / "requirements.lock").read_text()
    assert set(re.findall(r"^([\w-]+)==", lock, re.M)) == {"einops"}  # the image has the others
    assert "--hash=sha256:" in lock

    def run(*words: str) -> tuple[int, str]:
        line = " ".join(("cd", job.directory, "&&", *words))
        done = cluster.run("hpc1", "bash", "-c", line)
        return done.returncode, done.stdout + done.stderr

    # The overlay is built once per lock file and also used to resume. If it is missing, the message
    # says how to build it.
    copy = f"cp -r {job.directory}/{{my_train.py,requirements.*,*.sqfs,results}} ."
    again = submit(prepare=copy, GPUS=2, RESUME="s", ARGS="--trials 6")
    output = again.wait()
    assert again.status() == 0, output
    assert len([e for e in events(again.study("s")) if e["event"] == "end"]) == 6
    (same,) = again.study("s").parent.parent.glob("*.sqfs")
    assert same.name == overlay.name
    assert run("make", "-s", "overlay") == (0, f"{job.directory}/{overlay.name}\n")
    assert overlay.stat().st_mtime_ns == made
    container = f"--overlay {overlay.name}"
    flags = "train --trainable my_train.py:train --set lr=0.5"
    assert run("apptainer", "run", container, "tune.sif", flags)[0] == 0
    status, output = run("apptainer", "run", "tune.sif", flags)
    assert status == 2
    assert "No module named 'einops': make overlay REQUIREMENTS=" in output

    # A list that would change the image's packages is refused, and the old overlay is kept.
    status, output = run("echo 'numpy<2' >> requirements.txt;", "make", "-s", "overlay")
    assert status != 0
    assert "requirements.txt conflicts with the packages in tune.sif" in output
    assert "numpy<2" in output
    assert (directory / "requirements.lock").read_text() == lock
