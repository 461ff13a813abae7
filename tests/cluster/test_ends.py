"""How a job ends after make cancel, and how it goes on after its head node has lost power."""

import json
import time
from collections.abc import Callable

import pytest

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, submitted
from tests.cluster.test_faults import (
    assert_nothing_was_trained_twice,
    await_epoch,
    begin,
    begin_on_two_nodes,
    nodes_of,
)


def resume_line(*, gpus: int = 4) -> str:
    return f"make submit GPUS={gpus} SITE=virtual RESUME=s"


def signal_driver(job: Job, signal: str) -> None:
    words = ("pkill", f"-{signal}", "-u", "hpc1", "-f", "python .*entrypoints/tune.py")
    job.cluster.check("root", *words, place=nodes_of(job)[0])


def state(job: Job) -> str:
    words = ("squeue", "--noheader", f"--jobs={job.number}", "--format=%T")
    return job.cluster.run(job.account, *words).stdout.strip()


@pytest.mark.parametrize("requeue", [True, False])
def test_a_job_whose_head_node_loses_power_is_started_again(
    submit: Callable[..., Job], cluster: Cluster, requeue: bool
) -> None:
    """The head node stays off: Slurm keeps the job on the other nodes, without its batch script."""
    cluster.await_idle()
    job, (head, other) = begin_on_two_nodes(submit, trials=16)
    if not requeue:
        cluster.check("hpc1", "scontrol", "update", f"JobId={job.number}", "Requeue=0")
    cluster.node("kill", head)
    try:
        if requeue:
            poll(lambda: state(job) == "PENDING", 60, "the job to be requeued", job.log)
            assert f"{other}: the head node {head} was lost" in job.log()
        else:
            poll(lambda: "Submitted batch job" in job.log(), 60, "another job", job.log)
            first, log = job.number, job.log()
            job.number = submitted(log)
            queue = ("squeue", "--noheader", f"--jobs={first}", "--states=R")
            poll(lambda: not cluster.run("hpc1", *queue).stdout, 20, "the end of the first job")

        def over() -> bool:
            if job.queued("PD"):
                words = ("scontrol", "update", f"JobId={job.number}", "StartTime=now")
                cluster.run("hpc1", *words)
            return not job.queued("PD,R,CG")

        poll(over, 300, "the end of the study", job.log)
        assert job.status() == 0, job.log()
        assert_nothing_was_trained_twice(job.study("s"), trials=16)
    finally:
        cluster.node("start", head)
    job.await_nothing_left()


def test_make_cancel_waits_for_the_save_and_says_how_to_go_on(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    """The driver is suspended for a while, so the study takes longer to save than usual."""
    job = begin(submit, trials=12, minutes=10, gpus=4)
    await_epoch(job)
    make = ("make", "-C", job.directory)
    signal_driver(job, "STOP")
    cancel = cluster.start("hpc1", *make, "cancel", f"JOB={job.number}")
    saving = "the job is cancelled: saving the study, for at most 60 s"
    poll(lambda: saving in job.log(), 20, saving, job.log)
    time.sleep(8)  # the length of the save
    assert job.queued("R")
    signal_driver(job, "CONT")
    said = cancel.communicate(timeout=60)[0]
    assert cancel.returncode == 0, said
    assert f"job {job.number} saves its study, for at most 60 s" in said
    assert f"make cancel JOB={job.number} stops it at once" in said
    assert f"job {job.number} has ended; its study continues with\n  {resume_line()}" in said
    log = job.wait(20)
    assert log.rstrip().endswith(resume_line()), log
    driver = json.loads((job.study("s") / "driver.json").read_text())
    assert "ended" in driver
    assert (job.study("s") / "report.html").exists()
    status = cluster.check("hpc1", *make, "status", "SITE=virtual")
    assert f"; cancelled (resume with {resume_line()}); " in status, status
    job.await_nothing_left()


def test_a_second_make_cancel_stops_the_job_at_once(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    job = begin(submit, trials=12, minutes=10)
    await_epoch(job)
    signal_driver(job, "STOP")  # it never saves
    cancel = ("make", "-C", job.directory, "cancel", f"JOB={job.number}")
    first = cluster.start("hpc1", *cancel)
    poll(lambda: "the job is cancelled: saving" in job.log(), 20, "the save", job.log)
    done = cluster.run("hpc1", *cancel, timeout_s=30)
    assert "is being cancelled already: stopping it at once" in done.stderr
    assert "has ended" in first.communicate(timeout=30)[0]
    log = job.wait(10)
    assert "stopping at once" in log
    assert log.rstrip().endswith(resume_line(gpus=2)), log
    job.await_nothing_left()
