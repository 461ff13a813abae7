"""Real studies on real MNIST, as a user of the cluster submits them, and jobs that go wrong."""

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

# Small networks, two epochs: what is tested is the cluster.
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
    """A complete study directory: each trial once, ended, and never more at once than slots."""
    found = events(study)
    assert Counter(e["trial"] for e in found if e["event"] == "start") == {
        f"{n:04d}": 1 for n in range(1, trials + 1)
    }
    ended = [e["trial"] for e in found if e["event"] == "end"]
    assert sorted(ended) == sorted(set(ended))
    assert len(ended) == trials
    summary = json.loads((study / "summary.json").read_text())
    assert summary["slots"] == slots
    best = json.loads((study / "best.json").read_text())
    assert (study / best["checkpoint"]).exists()
    assert (study / "study.yaml").is_file()
    now = most = 0
    for event in found:  # begun and not ended: those that hold a slot
        now += {"start": 1, "end": -1}.get(event["event"], 0)
        most = max(most, now)
    assert most <= slots
    return found


def test_two_gpus_are_one_node(submit: Callable[..., Job], data: str) -> None:
    job = submit(GPUS=2, NAME="two", ARGS=f"{SMALL} --trials 4 --data {data}")
    said = job.wait()
    assert job.status() == 0, said
    found = check_study(job.study("two"), trials=4, slots=2)
    assert len({e["node"] for e in found if e["event"] == "epoch"}) == 1
    job.await_nothing_left()


def test_eight_gpus_are_four_nodes_and_one_study(submit: Callable[..., Job], data: str) -> None:
    # Not over before the last node has joined: whoever is free takes the next trial.
    flags = f"{SMALL} --trainable-arg images=12000 --trials 8 --scheduler none --data {data}"
    job = submit(GPUS=8, NAME="eight", ARGS=flags)
    said = job.wait()
    assert job.status() == 0, said
    found = check_study(job.study("eight"), trials=8, slots=8)
    epochs = [e for e in found if e["event"] == "epoch"]
    assert {e["node"] for e in epochs} == set(job.cluster.nodes)
    assert {e["gpu"] for e in epochs} <= {"0", "1"}  # one GPU each
    assert said.count(" start ") == 8  # the same eight trials once, not once per node
    job.await_nothing_left()


def test_a_trial_on_two_gpus_is_one_of_two_processes(submit: Callable[..., Job], data: str) -> None:
    flags = f"{SMALL} --trials 2 --scheduler none --gpus-per-trial 2 --data {data}"
    job = submit(GPUS=2, NAME="s", ARGS=flags)
    said = job.wait()
    assert job.status() == 0, said
    found = check_study(job.study("s"), trials=2, slots=1)
    assert {e["gpu"] for e in found if e["event"] == "epoch"} == {"0,1"}
    job.await_nothing_left()


def test_a_trial_wider_than_a_node_spans_nodes(submit: Callable[..., Job]) -> None:
    """And what goes wrong in one of its processes goes wrong in the trial."""
    write = f"cat > wide.py <<'END'\n{WIDE}\nEND"
    flags = "--trainable wide.py:train --searcher grid --scheduler none --gpus-per-trial 4"
    job = submit(prepare=write, GPUS=4, NAME="s", ARGS=flags)
    said = job.wait()
    assert job.status() == 0, said
    found = check_study(job.study("s"), trials=3, slots=1)
    epochs = [e for e in found if e["event"] == "epoch"]
    assert {frozenset(e["node"].split(",")) for e in epochs} == {frozenset(("node1", "node2"))}
    assert {e["gpu"] for e in epochs} == {"0,1,0,1"}
    assert {e["metrics"]["apart"] for e in epochs} == {0.0}
    (again,) = (e for e in found if e["event"] == "restart")
    assert (again["cause"], again["epoch"]) == ("crash", 1)
    (failed,) = (e for e in found if e.get("state") == "failed")
    assert failed["error"].endswith("ValueError: the last one is at fault")
    job.await_nothing_left()


def test_a_t5_in_parts_on_two_gpus_pauses_and_goes_on(submit: Callable[..., Job]) -> None:
    sizes = "hidden_size=32 num_heads=2 num_layers=1 d_ff=32 batch_size=16 epochs=4 warmup=0.1"
    flags = "--trainable t5 --trainable-arg windows=200 --trainable-arg length=64 --trials 4 "
    flags += "--gpus-per-trial 2 --scheduler hyperband --scheduler-arg eta=2 "
    flags += " ".join(f"--set {one}" for one in sizes.split())
    job = submit(GPUS=2, NAME="s", ARGS=flags)
    said = job.wait()
    assert job.status() == 0, said
    assert "needs about" in said
    found = events(job.study("s"))
    assert {e["state"] for e in found if e["event"] == "end"} == {"completed", "pruned"}
    epochs = [(e["trial"], e["epoch"]) for e in found if e["event"] == "epoch"]
    for trial in {trial for trial, _ in epochs}:
        mine = [epoch for other, epoch in epochs if other == trial]
        assert mine == list(range(1, len(mine) + 1))
    assert epochs != sorted(epochs)  # a trial went on after others
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
    said = job.wait()
    assert job.status() == 0, said
    check_study(job.study("s"), trials=2, slots=2)


def test_two_accounts_on_one_node_do_not_notice_each_other(
    cluster: Cluster, submit: Callable[..., Job], data: str
) -> None:
    others = "nodename=node[2-4]"
    cluster.check("root", "scontrol", "update", others, "state=drain", "reason=test")
    try:
        flags = {"GPUS": 1, "PARTITION": "shared", "NAME": "s"}
        # Long enough that the two studies overlap however unevenly the jobs start.
        longer = SMALL.replace("images=1200", "images=10000")
        flags["ARGS"] = f"{longer} --trials 6 --scheduler none --data {data}"
        jobs = [submit("hpc1", **flags), submit("hpc2", **flags)]
        poll(lambda: all(job.queued("R") for job in jobs), 30, "both jobs running")
        for job in jobs:
            said = job.wait()
            assert job.status() == 0, said
            assert "node1: 1 nodes" in said
        spans = []
        for job in jobs:
            found = check_study(job.study("s"), trials=6, slots=1)
            spans.append((found[0]["time"], found[-1]["time"]))
        assert max(begin for begin, _ in spans) < min(end for _, end in spans), "not at once"
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
        said = job.wait()
        assert "node1: Ray did not start on this node: trying again" in said
        assert job.status() == 0, said
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
    said = job.wait(deadline_s=45)
    assert job.status() != 0
    assert [word for word in words if word not in said] == [], said
    job.await_nothing_left()


def test_another_architecture_is_in_the_log_in_seconds(
    submit: Callable[..., Job], small_image: str
) -> None:
    # Its header says so: whether its programs would start depends on what the kernel emulates.
    here, there, number = "x86_64", "aarch64", 4
    if os.uname().machine != here:
        here, there, number = there, here, 2
    make = f"apptainer sif dump 3 {small_image} > root && apptainer sif new other.sif && "
    make += "apptainer sif add other.sif root --datatype 4 --parttype 2 --partfs 1 "
    make += f"--partarch {number} --groupid 1"
    job = submit(prepare=make, GPUS=4, IMAGE="other.sif")
    said = job.wait(deadline_s=45)
    assert job.status() != 0
    assert f"it is for {there} and this node is {here}: make image ARCH={here}" in said
    job.await_nothing_left()


def test_a_full_disk_is_in_the_log_in_seconds(cluster: Cluster, submit: Callable[..., Job]) -> None:
    fill = "head -c 900M /dev/zero > /tmp/full; df -m /tmp | tail -1"
    cluster.check("root", "bash", "-c", fill, place="node1")
    try:
        job = submit(GPUS=2)
        said = job.wait(deadline_s=45)
        assert job.status() != 0
        assert "MiB are free in /tmp, 512 are needed" in said
    finally:
        cluster.check("root", "rm", "/tmp/full", place="node1")


@pytest.mark.parametrize("how", ["make cancel", "scancel"])
def test_a_cancelled_job_leaves_nothing(
    cluster: Cluster, submit: Callable[..., Job], data: str, how: str
) -> None:
    job = submit(GPUS=4, NAME="s", ARGS=f"--preset quick --set epochs=50 --data {data}")
    poll(lambda: "epoch 1" in job.log(), 120, "a first epoch")
    said = cluster.check("hpc1", "make", "-C", job.directory, "status", "SITE=virtual")
    assert "RUNNING" in said
    assert "s: 0 completed" in said
    assert re.search(r"[1-4] of 4 GPUs in use", said)
    if how == "scancel":
        cluster.check("hpc1", "scancel", job.number)
    else:
        cluster.check("hpc1", "make", "-C", job.directory, "cancel", f"JOB={job.number}")
    job.wait(deadline_s=45)
    job.await_nothing_left()
