"""After every kind of end, nothing of a job stays on any node, and its log has no noise."""

import re
from collections.abc import Callable

import pytest

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, submitted
from tests.cluster.test_faults import await_epoch, begin, begin_on_two_nodes, nodes

NOISE = (" Killed", "Terminated  ", "Bus error", "SIGBUS", "(raylet)", "symbolize", "core_worker")

ALL = "bash|srun|starter|python|ray|gcs"  # but no FUSE servers, and no processes of trials
KILLS = {  # on the job's first or second node
    "the driver": (0, "pkill -KILL -u hpc1 -f entrypoints/tune.py"),
    "ray on the head node": (0, "pkill -KILL -u hpc1 raylet"),
    "the script of another node": (1, "pkill -KILL -o -u hpc1 -f slurm/node.sh"),
    "the batch script": (0, "pkill -KILL -u hpc1 -f slurm_script"),
}


def assert_quiet(log: str) -> None:
    """Asserts that the log has no stack trace, and no report of bash about a killed process."""
    log = re.sub(r"(?m)^srun: .*$", "", log)  # Slurm's own, which name the node
    assert [word for word in NOISE if word in log] == [], log
    assert not re.search(r": line \d+:", log), log


@pytest.mark.parametrize("kill", KILLS)
def test_nothing_stays_of_a_job_that_was_killed_in_part(
    submit: Callable[..., Job], cluster: Cluster, kill: str
) -> None:
    cluster.await_idle()
    job, names = begin_on_two_nodes(submit, trials=4)
    number, command = KILLS[kill]
    cluster.run("root", "bash", "-c", command, place=names[number])
    try:
        poll(lambda: not job.queued("R"), 120, "the end of the job", job.log)
    finally:
        cluster.run("hpc1", "scancel", job.number)  # it may be requeued
    assert_quiet(job.wait(60))
    job.await_nothing_left()


def test_a_job_removes_what_a_dead_one_left_and_nothing_else(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    """Every process of the first job but one container's is killed, at once and on both nodes."""
    cluster.await_idle()
    job, names = begin_on_two_nodes(submit, trials=30)
    for node in reversed(names):
        cluster.run("root", "pkill", "-KILL", "-u", "hpc1", ALL, place=node)
    poll(lambda: not job.queued("R"), 60, "the end of the job", job.log)
    cluster.run("hpc1", "scancel", job.number)
    job.wait(60)
    others = "mkdir -p /tmp/sift-mine /tmp/sift-999999; touch /tmp/sift-mine/file"
    cluster.check("hpc1", "bash", "-c", others, place=names[1])
    elsewhere = f"{job.directory}/.siftune/1"  # a job of another cluster with the same files
    make = f"mkdir {elsewhere} && echo other > {elsewhere}/cluster"
    cluster.check("hpc1", "bash", "-c", make)
    poll(lambda: "squashfuse_ll" in job.left(), 5, "something to be left", job.left)
    assert f"/tmp/sift-{job.number}" in job.left()
    assert f"{job.number}\n" in job.left()  # in .siftune
    cluster.await_idle()
    words = ("SITE=virtual", "GPUS=8", "ARGS=--trials 0")  # on all nodes
    number = submitted(cluster.check("hpc1", "make", "-C", job.directory, "submit", *words))
    log = Job(cluster, "hpc1", job.directory, number).wait(90)
    cluster.check("hpc1", "rm", "-r", elsewhere)
    assert "node1 node2 node3 node4" in log
    poll(lambda: job.left() == "", 15, "the clean-up", lambda: job.left() + log)
    kept = ("ls", "-d", "/tmp/sift-mine/file", "/tmp/sift-999999")
    cluster.check("hpc1", *kept, place=names[1])
    cluster.check("hpc1", "rm", "-r", "/tmp/sift-mine", "/tmp/sift-999999", place=names[1])


@pytest.mark.parametrize("how", ["make cancel", "scancel"])
def test_a_job_that_grows_another_one_leaves_nothing(
    submit: Callable[..., Job], cluster: Cluster, how: str
) -> None:
    cluster.await_idle()
    job = begin(submit, trials=40, minutes=10, gpus=2)
    await_epoch(job)
    grow = ("make", "-C", job.directory, "grow", f"JOB={job.number}", "GPUS=2", "SITE=virtual")
    added = Job(cluster, "hpc1", job.directory, submitted(cluster.check("hpc1", *grow)))
    poll(lambda: len(nodes(job.study("s"))) == 2, 90, "epochs on the added node", added.log)
    make = ("make", "-C", job.directory, "cancel", f"JOB={added.number}")
    cluster.check("hpc1", *(make if how == "make cancel" else ("scancel", added.number)))
    added.wait(60)
    left = "ls -d /tmp/sift-* 2>/dev/null; ps -U hpc1 -o pid,comm --no-headers"
    look = ("root", "bash", "-c", left)
    node = re.findall(rf"job {added.number} adds (\S+)", job.log())[0]
    poll(lambda: not cluster.run(*look, place=node).stdout, 15, f"the clean-up of {node}")
    ends = f"job {added.number} ends: {node} left"
    poll(lambda: ends in job.log(), 10, ends, job.log)
    cluster.check("hpc1", "make", "-C", job.directory, "cancel", f"JOB={job.number}")
    assert_quiet(job.wait(30) + added.log())
    job.await_nothing_left()


def test_a_refusal_has_one_message(submit: Callable[..., Job]) -> None:
    job = submit(prepare="truncate -s 1M empty.sif", GPUS=4, IMAGE="empty.sif")
    log = job.wait(45)
    assert log.count("FATAL") == 1, log
    assert log.count("the image does not start here") == 1, log
    bind = "sed -i s#^BINDS=.*#BINDS=/nosuch# slurm/sites/virtual.env"
    log = submit(prepare=bind, GPUS=4).wait(45)
    assert "BINDS names /nosuch" in log
    assert "FATAL" not in log, log
