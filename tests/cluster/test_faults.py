"""Jobs that end before the study does, and nodes that come and go."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, events, submitted

NAPPER = (Path(__file__).parents[1] / "napper.py").read_text()


def nodes(study: Path) -> set[str]:
    return {event["node"] for event in events(study) if event["event"] == "epoch"}


def begin(submit: Callable[..., Job], *, trials: int, minutes: int, gpus: int = 2) -> Job:
    """Submits a job with a study of napper.py, and returns the job."""
    flags = "--trainable napper.py:train --set nap=1.0 --scheduler none --searcher random"
    write = f"cat > napper.py <<'END'\n{NAPPER}\nEND"
    args = f"{flags} --trials {trials}"
    return submit(prepare=write, GPUS=gpus, TIME=minutes, NAME="s", ARGS=args)


def await_epoch(job: Job) -> None:
    poll(lambda: "epoch 1" in job.log(), 90, "a first epoch", job.log)


def begin_on_two_nodes(submit: Callable[..., Job], *, trials: int) -> tuple[Job, list[str]]:
    """Returns a job that trains on both of its nodes, and their names, the head first."""
    job = begin(submit, trials=trials, minutes=10, gpus=4)
    await_epoch(job)
    names = nodes_of(job)
    poll(lambda: nodes(job.study("s")) == set(names), 120, "epochs on both nodes", job.log)
    return job, names


def nodes_of(job: Job) -> list[str]:
    """Returns the names of the job's nodes, the head first. Slurm chooses them."""
    names = re.search(r"\d+ nodes, (.+?) ?, head on", job.log())
    assert names, job.log()
    return names[1].split()


def assert_nothing_was_trained_twice(study: Path, *, trials: int) -> None:
    journal = events(study)
    names = [f"{n:04d}" for n in range(1, trials + 1)]
    for kind in ("start", "end"):
        assert Counter(e["trial"] for e in journal if e["event"] == kind) == dict.fromkeys(names, 1)
    epochs = Counter((e["trial"], e["epoch"]) for e in journal if e["event"] == "epoch")
    assert epochs == {(name, epoch): 1 for name in names for epoch in range(1, 10)}


def causes(study: Path) -> set[str]:
    return {event["cause"] for event in events(study) if event["event"] == "restart"}


def test_a_study_outlives_its_job(submit: Callable[..., Job], cluster: Cluster) -> None:
    """Slurm's time limit ends the job. The first job may not be requeued, so another one follows,
    which is requeued."""
    job = begin(submit, trials=12, minutes=1)
    await_epoch(job)
    study = job.study("s")
    cluster.check("hpc1", "scontrol", "update", f"JobId={job.number}", "Requeue=0")
    log = job.wait(90)
    assert job.status() == 75, log
    assert "the time limit is near" in log
    job.number = submitted(log)

    def over() -> bool:
        if job.queued("PD"):  # a requeued job waits for two minutes
            words = ("scontrol", "update", f"JobId={job.number}", "StartTime=now")
            cluster.run("hpc1", *words)
        return not job.queued("PD,R,CG")

    poll(over, 240, "the end of the study", job.log)
    assert job.status() == 0, job.log()
    assert_nothing_was_trained_twice(study, trials=12)
    assert causes(study) == {"interrupted"}
    job.await_nothing_left()


def test_a_time_limit_that_comes_near_after_the_last_trial_changes_nothing(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    job = begin(submit, trials=2, minutes=10)
    poll(lambda: "(2 of 2)" in job.log(), 120, "the last trial to end", job.log)
    cluster.check("hpc1", "scancel", "--batch", "--signal=USR1", job.number)
    log = job.wait(90)
    assert job.status() == 0, log
    assert "report.html" in log
    assert "saving the study" not in log


def test_a_study_grows_and_shrinks_again(submit: Callable[..., Job], cluster: Cluster) -> None:
    """The study starts on one of its two nodes; on the other the job is killed before it joins."""
    cluster.await_idle()
    job = begin(submit, trials=24, minutes=10, gpus=4)
    poll(lambda: "2 nodes, " in job.log(), 30, "the job to start", job.log)
    head, lost = nodes_of(job)

    def killed() -> bool:
        look = "pgrep -u hpc1 -f slurm/node.sh && while pkill -9 -u hpc1; do sleep 0.1; done"
        return cluster.run("root", "bash", "-c", look, place=lost).stdout != ""

    poll(killed, 30, "a second node to start", job.log)
    missing = f"{lost} has not joined the job's Ray after 30 s: the study continues without it"
    poll(lambda: missing in job.log(), 150, missing, job.log)
    study = job.study("s")
    assert nodes(study) == {head}
    grow = ("grow", f"JOB={job.number}", "GPUS=2", "SITE=virtual")
    added = submitted(cluster.check("hpc1", "make", "-C", job.directory, *grow))
    log = Job(cluster, "hpc1", job.directory, added).log
    poll(lambda: len(nodes(study)) == 2, 90, "epochs on the added node", log)
    (new,) = nodes(study) - {head}
    cluster.check("hpc1", "scancel", added)
    output = job.wait(240)
    assert job.status() == 0, output
    assert f"job {added} adds {new}\n" in output
    assert f"job {added} ends: {new} left\n" in output
    assert_nothing_was_trained_twice(study, trials=24)
    assert causes(study) == {"lost"}
    # Every process of the job was killed there, so that only the next job would remove it.
    cluster.check("root", "rm", "-rf", f"/tmp/sift-{job.number}", place=lost)
    job.await_nothing_left()


def test_a_node_whose_disk_is_full_is_left_out(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    """Its trials, which save to the node's own disk first, continue on the other node."""
    cluster.await_idle()
    job, (_, node) = begin_on_two_nodes(submit, trials=16)
    study = job.study("s")
    fill = "head -c 2G /dev/zero > /tmp/full"
    cluster.run("root", "bash", "-c", fill, place=node)
    try:
        log = job.wait(240)
    finally:
        cluster.check("root", "rm", "/tmp/full", place=node)
    assert job.status() == 0, log
    assert log.count(f"{node} is excluded from the study: cannot write to /tmp/") == 1
    assert_nothing_was_trained_twice(study, trials=16)
    assert causes(study) == {"node"}
    job.await_nothing_left()
