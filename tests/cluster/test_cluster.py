"""The virtual cluster has what later tests rely on: Slurm with four nodes, and Apptainer."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import HERE, STATE, Cluster, poll, script

# A job that succeeds only if the other account's job runs at the same time.
MEETING = """#!/bin/bash
set -euo pipefail
touch "$1/$USER"
deadline=$((SECONDS + 60))
until [[ -e $1/$2 ]]; do ((SECONDS < deadline)) || exit 1; sleep 0.2; done
echo "$USER $(hostname) $CUDA_VISIBLE_DEVICES"
"""


def _lines(text: str) -> list[str]:
    return sorted(text.splitlines())


def test_four_nodes_are_idle(cluster: Cluster) -> None:
    cluster.await_idle()
    assert sorted(cluster.states()) == list(cluster.nodes)


def test_up_again_changes_nothing(cluster: Cluster) -> None:
    def pids() -> list[str]:
        return [(STATE / "run" / node / "pid").read_text() for node in cluster.nodes]

    before = pids()
    assert script("up.sh").returncode == 0
    assert pids() == before


def test_an_ordinary_account_runs_on_every_node(cluster: Cluster) -> None:
    output = cluster.check("hpc1", "srun", "--nodes=4", "bash", "-c", "echo $(hostname) $(id -un)")
    assert _lines(output) == [f"{node} hpc1" for node in cluster.nodes]


def test_eight_gpus_are_two_on_each_node(cluster: Cluster) -> None:
    words = ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=2")
    show = "echo $(hostname) $CUDA_VISIBLE_DEVICES; test -c /dev/nvidia0 && test -c /dev/nvidia1"
    output = cluster.check("hpc1", "srun", *words, "bash", "-c", show)
    assert _lines(output) == [f"{node} 0,1" for node in cluster.nodes]


def test_a_third_gpu_of_a_node_is_refused(cluster: Cluster) -> None:
    refused = cluster.run("hpc1", "srun", "--nodes=1", "--gpus-per-node=3", "true")
    assert refused.returncode != 0
    assert "Requested node configuration is not available" in refused.stderr


def test_two_accounts_share_one_node_with_a_gpu_each(cluster: Cluster, work: str) -> None:
    (cluster.shared / Path(work).name / "meeting.sh").write_text(MEETING)
    options = ("--wait", "--partition=shared", "--nodelist=node1", "--gpus-per-node=1")
    jobs = []
    for account, other in (("hpc1", "hpc2"), ("hpc2", "hpc1")):
        output = f"--output={work}/{account}.out"
        words = ("sbatch", *options, output, f"{work}/meeting.sh", work, other)
        jobs.append(cluster.start(account, *words))
    outputs = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    first, second = (cluster.check(who, "cat", f"{work}/{who}.out") for who in ("hpc1", "hpc2"))
    assert first.split()[:2] == ["hpc1", "node1"]
    assert second.split()[:2] == ["hpc2", "node1"]
    assert {first.split()[2], second.split()[2]} == {"0", "1"}


def test_work_and_home_are_shared_and_tmp_is_not(cluster: Cluster, work: str) -> None:
    cluster.check("hpc1", "touch", f"{work}/here", "/tmp/here", "/home/hpc1/here", place="node1")
    cluster.check("hpc1", "test", "-e", f"{work}/here", place="node2")
    cluster.check("hpc1", "test", "-e", "/home/hpc1/here", place="node2")
    assert cluster.run("hpc1", "test", "-e", "/tmp/here", place="node2").returncode == 1
    assert cluster.run("hpc2", "ls", "/home/hpc1", place="node2").returncode != 0
    cluster.check("hpc1", "rm", "/tmp/here", "/home/hpc1/here", place="node1")


def test_the_job_s_node_local_directory_is_wiped_at_its_end(cluster: Cluster) -> None:
    where = 'd=/tmploc/$SLURM_JOB_USER/$SLURM_JOB_ID; touch "$d/file"; echo "$d"'
    options = ("--nodes=1", "--nodelist=node3")
    directory = cluster.check("hpc1", "srun", *options, "bash", "-c", where).strip()
    assert directory.startswith("/tmploc/hpc1/")
    poll(
        lambda: cluster.run("root", "test", "-e", directory, place="node3").returncode == 1,
        deadline_s=30,
        what=f"the removal of {directory}",
    )


def test_the_login_node_has_what_submitting_needs_and_no_python(cluster: Cluster) -> None:
    cluster.check("hpc1", "which", "bash", "make", "sbatch", "squeue", "scancel", "apptainer")
    assert cluster.run("hpc1", "which", "python3").returncode == 1


def test_exit_status_and_words_come_through(cluster: Cluster) -> None:
    assert cluster.run("hpc1", "bash", "-c", "exit 75").returncode == 75
    assert cluster.check("hpc2", "printf", "%s|", "a b", "", "$HOME") == "a b||$HOME|"


def test_a_killed_command_is_killed_in_the_cluster(cluster: Cluster) -> None:
    def running() -> bool:
        return cluster.run("hpc1", "pgrep", "-f", "sleep 4242[4]").returncode == 0

    command = cluster.start("hpc1", "sleep", "42424")
    poll(running, 20, "the command to start")
    command.kill()
    command.communicate()
    poll(lambda: not running(), 20, "the command to end")


def test_apptainer_runs_an_ordinary_account_s_image_on_two_nodes(
    cluster: Cluster, small_image: str
) -> None:
    show = "echo $(hostname) $(id -u) $(cat /built) $CUDA_VISIBLE_DEVICES"
    words = ("apptainer", "exec", "--nv", small_image, "sh", "-c", show)
    done = cluster.run("hpc1", "srun", "--nodes=2", "--gpus-per-node=2", *words)
    # --nv finds no driver for these GPUs and continues.
    assert done.returncode == 0, done.stderr
    uid = cluster.check("hpc1", "id", "-u").strip()
    assert _lines(done.stdout) == [f"node{n} {uid} built 0,1" for n in (1, 2)]


def test_a_cut_node_is_out_of_reach_until_it_is_healed(cluster: Cluster) -> None:
    def reached() -> bool:  # tries slurmd's port
        knock = "exec 3<>/dev/tcp/node2/6818"
        return (
            cluster.run("root", "timeout", "2", "bash", "-c", knock, place="node1").returncode == 0
        )

    assert reached()
    cluster.node("cut", "node2")
    try:
        assert not reached()
    finally:
        cluster.node("heal", "node2")
    poll(reached, 20, "node2 to be reachable")


def test_a_killed_node_is_down_until_it_is_started(cluster: Cluster) -> None:
    cluster.node("kill", "node4")
    try:
        poll(lambda: cluster.states()["node4"].startswith("down"), 120, "node4 to be down")
    finally:
        cluster.node("start", "node4")
    poll(lambda: cluster.states()["node4"] == "idle", 120, "node4 to be idle")
    assert cluster.check("hpc1", "srun", "--nodelist=node4", "hostname") == "node4\n"


def test_the_controller_forgets_no_job_when_it_is_restarted(cluster: Cluster) -> None:
    words = ("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true")
    job = cluster.check("hpc1", *words).strip()
    submitted = time.time()
    saved = STATE / "run" / "controller.spool" / "slurmctld" / "job_state"
    # Slurm saves its jobs every few seconds. Later changes are lost when the power fails.
    poll(lambda: saved.exists() and saved.stat().st_mtime > submitted, 60, "the jobs to be saved")
    cluster.node("kill", "controller")
    cluster.node("start", "controller")
    poll(lambda: cluster.run("hpc1", "squeue").returncode == 0, 60, "an answer from the controller")
    assert cluster.check("hpc1", "squeue", "-h", "--me", "-o", "%i").split() == [job]
    cluster.check("hpc1", "scancel", job)
    cluster.await_idle()


def test_down_leaves_nothing_behind(cluster: Cluster) -> None:
    if not cluster.ours:
        pytest.skip("the cluster was running before these tests, so it is not stopped")
    assert script("down.sh").returncode == 0
    links = [link.name for link in Path("/sys/class/net").iterdir()]
    assert not [name for name in links if name.startswith(("siftune", "st-"))]
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            assert str(STATE) not in mounts.read_text()
        except OSError:  # the process has just ended
            continue
    assert not (STATE / "run").exists()
    assert script("up.sh").returncode == 0


def test_without_root_it_says_what_it_needs(cluster: Cluster) -> None:
    with tempfile.TemporaryDirectory() as directory:  # readable by all accounts
        copy = Path(directory) / "a" / "b"
        shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        Path(directory).chmod(0o755)
        for name in ("tree.sh", "up.sh", "node.sh"):
            refused = subprocess.run(
                [str(copy / name), "kill", "node1"],
                user=65534,
                env={"PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
            )
            assert refused.returncode == 1
            assert "needs root" in refused.stderr
