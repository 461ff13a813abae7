"""Jobs that end before the study does, and nodes that come and go."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, events

NAPPER = (Path(__file__).parents[1] / "napper.py").read_text()


def nodes(study: Path) -> set[str]:
    return {event["node"] for event in events(study) if event["event"] == "epoch"}


def test_a_study_outlives_its_job_and_grows(submit: Callable[..., Job], cluster: Cluster) -> None:
    """The time limit is Slurm's own; where requeueing is forbidden another job follows."""
    flags = "--trainable napper.py:train --set nap=1.0 --scheduler none --searcher random"
    write = f"cat > napper.py <<'END'\n{NAPPER}\nEND"
    job = submit(prepare=write, GPUS=2, TIME=1, NAME="s", ARGS=f"{flags} --trials 14")
    study = job.study("s")
    poll(lambda: "epoch 1" in job.log(), 60, "a first epoch", job.log)
    cluster.check("hpc1", "scontrol", "update", f"JobId={job.number}", "Requeue=0")

    grow = ("grow", f"JOB={job.number}", "GPUS=2", "SITE=virtual")
    said = cluster.check("hpc1", "make", "-C", job.directory, *grow)
    added = re.search(r"Submitted batch job (\d+)", said)
    assert added, said
    poll(lambda: len(nodes(study)) == 2, 40, "epochs on the added node")
    cluster.check("hpc1", "scancel", added[1])

    runs = 1
    while "the time is nearly over" in (said := job.wait(90)):
        assert job.status() == 75, said
        following = re.search(r"Submitted batch job (\d+)", said)
        assert following, said
        job.number, runs = following[1], runs + 1
    assert job.status() == 0, said
    assert 2 <= runs <= 4
    assert "goes on after epoch" in said
    found = events(study)
    for kind in ("start", "end"):
        counts = Counter(e["trial"] for e in found if e["event"] == kind)
        assert counts == {f"{n:04d}": 1 for n in range(1, 15)}
    epochs = Counter((e["trial"], e["epoch"]) for e in found if e["event"] == "epoch")
    assert epochs == {(f"{n:04d}", epoch): 1 for n in range(1, 15) for epoch in range(1, 10)}
    causes = Counter(e["cause"] for e in found if e["event"] == "restart")
    assert causes.keys() <= {"lost", "interrupted"}
    assert job.left() == ""
