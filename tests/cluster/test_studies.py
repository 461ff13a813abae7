"""Real studies on real MNIST, submitted as a user does, and jobs that fail."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siftune.searchers import SEARCHERS
from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, events

# Small networks and two epochs, because these tests are about the cluster.
SMALL = (
    "--preset quick --trainable-arg images=1200 --set epochs=2 --set conv1_channels=4 "
    "--set conv2_channels=4 --set conv3_channels=0"
)
WIDE = Path(__file__).with_name("wide.py").read_text()
DISCRETE = (
    " --set lr=choice([1e-3,1e-2]) --set weight_decay=0 --set dropout=0 --set gamma=0.5"
    " --set kernel1=3 --set kernel2=3 --set fc_dim=64 --set batch_size=64 --set activation=relu"
    " --set scheduler=none --set optimizer=adam --set step_size=10"
)


def check_study(study: Path, *, trials: int, slots: int) -> list[dict[str, Any]]:
    """Asserts that each trial ran once and ended, with never more at once than slots.

    Returns the events of the journal.
    """
    journal = events(study)
    assert Counter(e["trial"] for e in journal if e["event"] == "start") == {
        f"{n:04d}": 1 for n in range(1, trials + 1)
    }
    ended = [e["trial"] for e in journal if e["event"] == "end"]
    assert sorted(ended) == sorted(set(ended))
    assert len(ended) == trials
    summary = json.loads((study / "summary.json").read_text())
    assert summary["slots"] == slots
    best = json.loads((study / "best.json").read_text())
    assert (study / best["checkpoint"]).exists()
    assert (study / "study.yaml").is_file()
    now = most = 0
    for event in journal:  # trials that have started and not ended occupy a slot
        now += {"start": 1, "end": -1}.get(event["event"], 0)
        most = max(most, now)
    assert most <= slots
    return journal


def test_two_gpus_are_one_node(submit: Callable[..., Job], data: str) -> None:
    job = submit(GPUS=2, NAME="two", ARGS=f"{SMALL} --trials 4 --data {data}")
    log = job.wait()
    assert job.status() == 0, log
    journal = check_study(job.study("two"), trials=4, slots=2)
    assert len({e["node"] for e in journal if e["event"] == "epoch"}) == 1
    job.await_nothing_left()


def test_eight_gpus_are_four_nodes_and_one_study(submit: Callable[..., Job], data: str) -> None:
    # Free slots take the next trial, so the study must not end before the last node has joined.
    flags = f"{SMALL} --trainable-arg images=12000 --trials 8 --scheduler none --data {data}"
    job = submit(GPUS=8, NAME="eight", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    journal = check_study(job.study("eight"), trials=8, slots=8)
    epochs = [e for e in journal if e["event"] == "epoch"]
    assert {e["node"] for e in epochs} == set(job.cluster.nodes)
    assert {e["gpu"] for e in epochs} <= {"0", "1"}  # one GPU each
    assert log.count(" start ") == 8  # the same eight trials once, not once per node
    job.await_nothing_left()


def test_a_trial_on_two_gpus_is_one_of_two_processes(submit: Callable[..., Job], data: str) -> None:
    flags = f"{SMALL} --trials 2 --scheduler none --gpus-per-trial 2 --data {data}"
    job = submit(GPUS=2, NAME="s", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    journal = check_study(job.study("s"), trials=2, slots=1)
    assert {e["gpu"] for e in journal if e["event"] == "epoch"} == {"0,1"}
    job.await_nothing_left()


def test_a_trial_wider_than_a_node_spans_nodes(submit: Callable[..., Job]) -> None:
    """An error in one of its processes is an error of the trial."""
    write = f"cat > wide.py <<'END'\n{WIDE}\nEND"
    flags = "--trainable wide.py:train --searcher grid --scheduler none --gpus-per-trial 4"
    job = submit(prepare=write, GPUS=4, NAME="s", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    journal = check_study(job.study("s"), trials=3, slots=1)
    epochs = [e for e in journal if e["event"] == "epoch"]
    assert {len(set(e["node"].split(","))) for e in epochs} == {2}
    assert {e["gpu"] for e in epochs} == {"0,1,0,1"}
    assert {e["metrics"]["apart"] for e in epochs} == {0.0}
    (again,) = (e for e in journal if e["event"] == "restart")
    assert (again["cause"], again["epoch"]) == ("crash", 1)
    (failed,) = (e for e in journal if e.get("state") == "failed")
    assert failed["error"].endswith("ValueError: an error in the last process")
    job.await_nothing_left()


def test_a_t5_in_parts_on_two_gpus_pauses_and_goes_on(submit: Callable[..., Job]) -> None:
    sizes = "hidden_size=32 num_heads=2 num_layers=1 d_ff=32 batch_size=16 epochs=4 warmup=0.1"
    flags = "--trainable t5 --trainable-arg windows=200 --trainable-arg length=64 --trials 4 "
    flags += "--gpus-per-trial 2 --scheduler hyperband --scheduler-arg eta=2 "
    flags += " ".join(f"--set {size}" for size in sizes.split())
    job = submit(GPUS=2, NAME="s", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    assert "needs about" in log
    journal = events(job.study("s"))
    assert {e["state"] for e in journal if e["event"] == "end"} == {"completed", "pruned"}
    epochs = [(e["trial"], e["epoch"]) for e in journal if e["event"] == "epoch"]
    for trial in {trial for trial, _ in epochs}:
        mine = [epoch for other, epoch in epochs if other == trial]
        assert mine == list(range(1, len(mine) + 1))
    assert epochs != sorted(epochs)  # a trial continued after others
    best = json.loads((job.study("s") / "best.json").read_text())
    weights = job.study("s") / best["checkpoint"]
    assert len(list(weights.glob("*.safetensors"))) == 2
    job.await_nothing_left()


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_each_searcher_runs_in_the_image(
    submit: Callable[..., Job], data: str, searcher: str
) -> None:
    flags = f"{SMALL} --searcher {searcher} --trials 2 --data {data}"
    flags += DISCRETE if searcher == "grid" else ""
    job = submit(GPUS=2, NAME="s", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    check_study(job.study("s"), trials=2, slots=2)


def test_two_accounts_on_one_node_do_not_notice_each_other(
    cluster: Cluster, submit: Callable[..., Job], data: str
) -> None:
    others = "nodename=node[2-4]"
    cluster.check("root", "scontrol", "update", others, "state=drain", "reason=test")
    try:
        flags = {"GPUS": 1, "PARTITION": "shared", "NAME": "s"}
        # Long enough for the two studies to overlap, even if one job starts later.
        longer = SMALL.replace("images=1200", "images=10000")
        flags["ARGS"] = f"{longer} --trials 6 --scheduler none --data {data}"
        jobs = [submit("hpc1", **flags), submit("hpc2", **flags)]
        poll(lambda: all(job.queued("R") for job in jobs), 30, "both jobs to run")
        for job in jobs:
            log = job.wait()
            assert job.status() == 0, log
            assert "node1: 1 nodes" in log
        spans = []
        for job in jobs:
            journal = check_study(job.study("s"), trials=6, slots=1)
            spans.append((journal[0]["time"], journal[-1]["time"]))
        assert max(begin for begin, _ in spans) < min(end for _, end in spans), "no overlap"
    finally:
        cluster.check("root", "scontrol", "update", others, "state=resume")


TAKE = """
import socket, sys, time
taken = [socket.socket() for _ in sys.argv[1:]]
for one, port in zip(taken, sys.argv[1:]):
    one.bind(("0.0.0.0", int(port)))  # and no listen: in no list of the ports in use
print("taken", flush=True)
time.sleep(600)
"""


def test_ports_that_another_account_has_taken_are_left_to_it(
    cluster: Cluster, submit: Callable[..., Job], checkout: str, data: str
) -> None:
    config = cluster.check("hpc1", "scontrol", "show", "config")
    number = re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", config)
    assert number, config
    look = f"source {checkout}/slurm/lib.sh; free_ports 207 {number[1]}"
    first = int(cluster.check("hpc1", "bash", "-c", look))
    cluster.await_idle()
    take = ["python", "-c", TAKE, str(first + 1), str(first + 206)]
    squatter = cluster.start(
        "hpc2", "apptainer", "--silent", "exec", f"{checkout}/tune.sif", *take, place="node1"
    )
    try:
        assert squatter.stdout
        assert squatter.stdout.readline().strip() == "taken"
        flags = f"{SMALL} --trials 1 --scheduler none --data {data}"
        job = submit(GPUS=1, PARTITION="shared", NAME="s", ARGS=flags)
        log = job.wait()
        assert "node1: Ray did not start on this node: trying again" in log
        assert job.status() == 0, log
    finally:
        squatter.kill()


@pytest.mark.parametrize(
    ("prepare", "variables", "words"),
    [
        (
            "truncate -s 1M empty.sif",
            {"IMAGE": "empty.sif"},
            ["the image does not start here", "image format not recognized"],
        ),
        (
            "sed -i s#^BINDS=.*#BINDS=/nosuch# slurm/sites/virtual.env",
            {},
            ["BINDS names /nosuch", "correct the site's file"],
        ),
        (
            "sed -i s#^NODE_TMP=.*#NODE_TMP=/tmp/a-directory-whose-name-is-far-too-long# "
            "slurm/sites/virtual.env",
            {},
            ["longer than 43 characters"],
        ),
        (
            "sed -i s#^INTERFACE=.*#INTERFACE=ib7# slurm/sites/virtual.env",
            {},
            ["no IPv4 address on the interface 'ib7'"],
        ),
        ("true", {"ARGS": "--searcher foo"}, ["unknown searcher 'foo'", "hebo"]),
    ],
)
def test_what_cannot_work_is_in_the_log_in_seconds(
    submit: Callable[..., Job], prepare: str, variables: dict[str, str], words: list[str]
) -> None:
    job = submit(prepare=prepare, **({"GPUS": 4} | variables))
    log = job.wait(deadline_s=45)
    assert job.status() != 0
    assert [word for word in words if word not in log] == [], log
    job.await_nothing_left()


def test_another_architecture_is_in_the_log_in_seconds(
    submit: Callable[..., Job], small_image: str
) -> None:
    # The header determines this; whether programs would start depends on the kernel's emulation.
    native, foreign, number = "x86_64", "aarch64", 4
    if os.uname().machine != native:
        native, foreign, number = foreign, native, 2
    make = f"apptainer sif dump 3 {small_image} > root && apptainer sif new other.sif && "
    make += "apptainer sif add other.sif root --datatype 4 --parttype 2 --partfs 1 "
    make += f"--partarch {number} --groupid 1"
    job = submit(prepare=make, GPUS=4, IMAGE="other.sif")
    log = job.wait(deadline_s=45)
    assert job.status() != 0
    assert f"is for {foreign}, but this node is {native}" in log
    assert f"build it with make image ARCH={native}" in log
    job.await_nothing_left()


def test_a_full_disk_is_in_the_log_in_seconds(cluster: Cluster, submit: Callable[..., Job]) -> None:
    fill = "head -c 900M /dev/zero > /tmp/full; df -m /tmp | tail -1"
    cluster.check("root", "bash", "-c", fill, place="node1")
    try:
        job = submit(GPUS=2)
        log = job.wait(deadline_s=45)
        assert job.status() != 0
        assert "MiB are free in /tmp, 512 are needed" in log
    finally:
        cluster.check("root", "rm", "/tmp/full", place="node1")


@pytest.mark.parametrize("how", ["make cancel", "scancel"])
def test_a_cancelled_job_leaves_nothing(
    cluster: Cluster, submit: Callable[..., Job], data: str, how: str
) -> None:
    job = submit(GPUS=4, NAME="s", ARGS=f"--preset quick --set epochs=50 --data {data}")
    poll(lambda: "epoch 1" in job.log(), 120, "a first epoch")
    output = cluster.check("hpc1", "make", "-C", job.directory, "status", "SITE=virtual")
    assert "RUNNING" in output
    assert "s: 0 completed" in output
    assert re.search(r"[1-4] of 4 GPUs in use", output)
    if how == "scancel":
        cluster.check("hpc1", "scancel", job.number)
    else:
        cluster.check("hpc1", "make", "-C", job.directory, "cancel", f"JOB={job.number}")
    job.wait(deadline_s=45)
    job.await_nothing_left()
