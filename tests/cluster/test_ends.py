"""How a job ends: what it saves, what it says, and that nothing of it stays on any node."""

import json
import re
import time
from collections.abc import Callable

import pytest

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job
from tests.cluster.test_faults import assert_nothing_was_trained_twice, await_epoch, begin, nodes

NOISE = (" Killed", "Terminated  ", "Bus error", "SIGBUS", "raylet", "symbolize", "core_worker")


def assert_quiet(log: str) -> None:
    """Asserts that the log has no stack trace, and no report of bash about a killed process."""
    assert [word for word in NOISE if word in log] == [], log
    assert not re.search(r": line \d+:", log), log


def resume_line(*, gpus: int = 4) -> str:
    return f'make submit GPUS={gpus} SITE=virtual ARGS="--resume s"'


def await_both_nodes(job: Job) -> None:
    await_epoch(job)
    both = {"node1", "node2"}
    poll(lambda: nodes(job.study("s")) == both, 120, "epochs on both nodes", job.log)


def signal_driver(cluster: Cluster, signal: str) -> None:
    words = ("pkill", f"-{signal}", "-u", "hpc1", "-f", "python .*entrypoints/tune.py")
    cluster.check("root", *words, place="node1")


def state(job: Job) -> str:
    words = ("squeue", "--noheader", f"--jobs={job.number}", "--format=%T")
    return job.cluster.run(job.account, *words).stdout.strip()


@pytest.mark.parametrize("requeue", [True, False])
def test_a_job_whose_head_node_loses_power_is_started_again(
    submit: Callable[..., Job], cluster: Cluster, requeue: bool
) -> None:
    """The head node stays off: Slurm keeps the job on the other nodes, without its batch script."""
    cluster.await_idle()
    job = begin(submit, trials=16, minutes=10, gpus=4)
    await_both_nodes(job)
    if not requeue:
        cluster.check("hpc1", "scontrol", "update", f"JobId={job.number}", "Requeue=0")
    cluster.node("kill", "node1")
    try:
        if requeue:
            poll(lambda: state(job) == "PENDING", 60, "the job to be requeued", job.log)
            assert "node2: the head node node1 was lost" in job.log()
        else:
            poll(lambda: "Submitted batch job" in job.log(), 60, "another job", job.log)
            first, log = job.number, job.log()
            job.number = re.findall(r"Submitted batch job (\d+)", log)[-1]
            queue = ("squeue", "--noheader", f"--jobs={first}", "--states=R")
            poll(lambda: not cluster.run("hpc1", *queue).stdout, 20, "the end of the first job")
        assert_quiet(job.log())

        def over() -> bool:
            if job.queued("PD"):
                words = ("scontrol", "update", f"JobId={job.number}", "StartTime=now")
                cluster.run("hpc1", *words)
            return not job.queued("PD,R,CG")

        poll(over, 300, "the end of the study", job.log)
        assert job.status() == 0, job.log()
        assert_nothing_was_trained_twice(job.study("s"), trials=16)
    finally:
        cluster.node("start", "node1")
    job.await_nothing_left()


def test_make_cancel_waits_for_the_save_and_says_how_to_go_on(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    """The driver is suspended for a while, so the study takes longer to save than usual."""
    job = begin(submit, trials=12, minutes=10, gpus=4)
    await_epoch(job)
    make = ("make", "-C", job.directory)
    signal_driver(cluster, "STOP")
    cancel = cluster.start("hpc1", *make, "cancel", f"JOB={job.number}")
    saving = "the job is cancelled: saving the study, for at most 60 s"
    poll(lambda: saving in job.log(), 20, saving, job.log)
    time.sleep(8)  # the length of the save
    assert job.queued("R")
    signal_driver(cluster, "CONT")
    said = cancel.communicate(timeout=60)[0]
    assert cancel.returncode == 0, said
    assert f"job {job.number} saves its study, for at most 60 s" in said
    assert f"make cancel JOB={job.number} stops it at once" in said
    assert f"job {job.number} has ended; its study continues with\n  {resume_line()}" in said
    log = job.wait(20)
    assert log.rstrip().endswith(resume_line()), log
    assert_quiet(log)
    driver = json.loads((job.study("s") / "driver.json").read_text())
    assert "ended" in driver
    assert (job.study("s") / "report.html").exists()
    status = cluster.check("hpc1", *make, "status", "SITE=virtual")
    assert f"; cancelled (resume with {resume_line()}); " in status
    job.await_nothing_left()


def test_a_second_make_cancel_stops_the_job_at_once(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    job = begin(submit, trials=12, minutes=10)
    await_epoch(job)
    signal_driver(cluster, "STOP")  # it never saves
    cancel = ("make", "-C", job.directory, "cancel", f"JOB={job.number}")
    first = cluster.start("hpc1", *cancel)
    poll(lambda: "the job is cancelled: saving" in job.log(), 20, "the save", job.log)
    done = cluster.run("hpc1", *cancel, timeout_s=30)
    assert "is being cancelled already: stopping it at once" in done.stderr
    assert "has ended" in first.communicate(timeout=30)[0]
    log = job.wait(10)
    assert "stopping at once" in log
    assert log.rstrip().endswith(resume_line(gpus=2)), log
    assert_quiet(log)
    status = cluster.check("hpc1", "make", "-C", job.directory, "status", "SITE=virtual")
    assert "; cancelled (resume with make submit GPUS=2 " in status
    job.await_nothing_left()


ALL = "bash|srun|starter|python|ray|gcs"  # but no FUSE servers, and no processes of trials
KILLS = {
    "the driver": ("node1", "pkill -KILL -u hpc1 -f entrypoints/tune.py"),
    "ray on the head node": ("node1", "pkill -KILL -u hpc1 raylet"),
    "the script of another node": ("node2", "pkill -KILL -u hpc1 -f slurm/node.sh"),
    "the batch script": ("node1", "pkill -KILL -u hpc1 -f slurm_script"),
    "everything on another node": ("node2", f"pkill -KILL -u hpc1 '{ALL}'"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_nothing_stays_of_a_job_that_was_killed_in_part(
    submit: Callable[..., Job], cluster: Cluster, kill: str
) -> None:
    cluster.await_idle()
    job = begin(submit, trials=4, minutes=10, gpus=4, restarts=0)
    await_both_nodes(job)
    place, command = KILLS[kill]
    cluster.run("root", "bash", "-c", command, place=place)
    log = job.wait(120)
    assert_quiet(log)
    job.await_nothing_left()


def begin_another(cluster: Cluster, job: Job) -> None:
    """Runs another job of the account in the same directory."""
    words = ("SITE=virtual", "GPUS=4", "ARGS=--trials 0")
    output = cluster.check("hpc1", "make", "-C", job.directory, "submit", *words)
    number = re.search(r"Submitted batch job (\d+)", output)
    assert number, output
    Job(cluster, "hpc1", job.directory, number[1]).wait(90)


def test_a_job_removes_what_a_dead_one_left_and_nothing_else(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    """Every process of the first job but one container's is killed, at once and on both nodes."""
    cluster.await_idle()
    job = begin(submit, trials=30, minutes=10, gpus=4, restarts=0)
    await_both_nodes(job)
    for node in ("node2", "node1"):
        cluster.run("root", "pkill", "-KILL", "-u", "hpc1", ALL, place=node)
    job.wait(60)
    others = "mkdir -p /tmp/sift-mine /tmp/sift-999999; touch /tmp/sift-mine/file"
    cluster.check("hpc1", "bash", "-c", others, place="node2")
    poll(lambda: "squashfuse_ll" in job.left(), 5, "something to be left", job.left)
    assert f"/tmp/sift-{job.number}" in job.left()
    assert f"{job.number}\n" in job.left()  # in .siftune
    cluster.await_idle()
    begin_another(cluster, job)
    job.await_nothing_left()
    kept = ("ls", "-d", "/tmp/sift-mine/file", "/tmp/sift-999999")
    cluster.check("hpc1", *kept, place="node2")
    cluster.check("hpc1", "rm", "-r", "/tmp/sift-mine", "/tmp/sift-999999", place="node2")


@pytest.mark.parametrize("how", ["make cancel", "scancel"])
def test_a_grow_job_is_announced_and_leaves_nothing(
    submit: Callable[..., Job], cluster: Cluster, how: str
) -> None:
    cluster.await_idle()
    job = begin(submit, trials=40, minutes=10, gpus=2)
    await_epoch(job)
    grow = ("make", "-C", job.directory, "grow", f"JOB={job.number}", "GPUS=2", "SITE=virtual")
    output = cluster.check("hpc1", *grow)
    number = re.search(r"Submitted batch job (\d+)", output)
    assert number, output
    added = Job(cluster, "hpc1", job.directory, number[1])
    announced = f"job {added.number} adds node2, with 2 GPUs"
    poll(lambda: announced in job.log(), 30, announced, job.log)
    poll(lambda: len(nodes(job.study("s"))) == 2, 90, "epochs on the added node", added.log)
    make = ("make", "-C", job.directory, "cancel", f"JOB={added.number}")
    cluster.check("hpc1", *(make if how == "make cancel" else ("scancel", added.number)))
    added.wait(60)
    left = "ls -d /tmp/sift-* 2>/dev/null; ps -U hpc1 -o pid,comm --no-headers"
    look = ("root", "bash", "-c", left)
    poll(lambda: not cluster.run(*look, place="node2").stdout, 15, "the clean-up of node2")
    ends = f"job {added.number} ends: node2 leave"
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


def test_the_seed_is_drawn_and_kept_when_the_job_is_requeued(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    job = begin(submit, trials=4, minutes=10)
    await_epoch(job)
    cluster.check("hpc1", "scontrol", "requeue", job.number)
    poll(lambda: job.queued("PD"), 60, "the job to be requeued", job.log)
    cluster.check("hpc1", "scontrol", "update", f"JobId={job.number}", "StartTime=now")
    log = job.wait(120)
    seeds = re.findall(r", seed (\d+), ", log)
    assert len(seeds) == 2, log
    assert len(set(seeds)) == 1
    assert f"seed: {seeds[0]}\n" in (job.study("s") / "study.yaml").read_text()
    job.await_nothing_left()
