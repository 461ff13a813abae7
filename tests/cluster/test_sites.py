"""A site file written from what Slurm says, and jobs without GPUs, on the virtual cluster."""

import json
from collections.abc import Callable

from tests.cluster.conftest import Cluster
from tests.cluster.jobs import Job, submit_in
from tests.cluster.test_studies import SMALL, check_study


def test_a_study_trains_on_nodes_without_gpus(submit: Callable[..., Job], data: str) -> None:
    flags = f"{SMALL} --trials 4 --data {data}"
    job = submit(NODES=2, CPUS_PER_TRIAL=20, NAME="cpus", ARGS=flags)
    log = job.wait()
    assert job.status() == 0, log
    journal = check_study(job.study("cpus"), trials=4, slots=4)
    assert len({event["node"] for event in journal if event["event"] == "epoch"}) == 2
    assert json.loads((job.study("cpus") / "summary.json").read_text())["gpus"] == 0
    job.await_nothing_left()


def test_a_study_runs_with_a_site_that_was_written_from_slurm(
    cluster: Cluster, checkout: str, work: str, data: str
) -> None:
    written = "cp -r {}/slurm {}/Makefile . && make site NAME=found 2>&1"
    written = written.format(checkout, checkout)
    said = cluster.check("hpc1", "bash", "-c", f"cd {work} && {written}")
    assert "small:4:" in said
    assert "GPUS_PER_NODE=2" in said
    assert "make submit SITE=found DRY_RUN=1 GPUS=2" in said
    again = cluster.run("hpc1", "make", "-C", work, "site", "NAME=found")
    assert again.returncode == 2
    assert "there is a file slurm/sites/found.env" in again.stderr
    # A user would add this line, because the directory differs from the default.
    edit = "printf 'BINDS=/work\\n' >> slurm/sites/found.env; cp slurm/sites/found.env keep"
    cluster.check("hpc1", "bash", "-c", f"cd {work} && {edit}")
    keep = "cp keep slurm/sites/found.env"
    flags = f"{SMALL} --trials 2 --data {data}"
    variables = {"SITE": "found", "GPUS": 1, "NAME": "s", "ARGS": flags}
    job = submit_in(work, cluster, checkout, prepare=keep, **variables)
    log = job.wait()
    assert job.status() == 0, log
    check_study(job.study("s"), trials=2, slots=1)
