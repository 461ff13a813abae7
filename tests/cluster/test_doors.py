"""Another account cannot access a study: hpc2 tries every way while a study of hpc1 runs.

hpc2 uses the same node and the same image. Each attempt is repeated with hpc1's keys and must then
succeed, which shows that none fails for another reason.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job, events

# Trains until hpc2 has tried everything. Also reports whether a home directory is in the container.
TRAIN = """
import time
from pathlib import Path
from ray import tune

SPACE = {"x": "uniform(0, 1)", "epochs": 100000}

def train(config):
    homes = len([home for home in Path("/home").iterdir() if any(home.iterdir())])
    for epoch in range(config["epochs"]):
        tune.report({"loss": config["x"], "homes": homes})
        if Path(__file__).with_name("tried").exists():
            return
        time.sleep(0.3)
"""

# Without TLS, a call of this method with neither a token nor a node id would end Ray 2.60's head.
FATAL = "/ray.rpc.syncer.RaySyncer/StartSync"
# Services that Ray would answer without a token if there were no TLS. None of them runs code.
TALKATIVE = ("/grpc.channelz.v1.", "/grpc.health.v1.", "/grpc.reflection.v1alpha.")
# Status codes of gRPC; CLOSED is defined by knock.py.
OK, UNIMPLEMENTED, UNAUTHENTICATED, CLOSED = 0, 12, 16, -2
# A harmless method of each kind of server.
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
)
RAY = ("gcs_server", "raylet", "ray::", "python")  # the driver is the last
SLURM = ("srun",)
AGENT = "ray::RuntimeEnv"
JOIN = "import ray; ray.init(address={!r}); print('in', ray.cluster_resources())"
OWN = "/work/hpc2-doors"


class Node:
    """The node that a job's study runs on, with the means of the two accounts to access it."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.cluster, self.job = cluster, job
        match = re.search(r" (node\d): 1 nodes", job.log())
        assert match, job.log()
        self.name = match[1]
        self.private = f"{job.directory}/.siftune/{job.number}"
        self.address = self.as_root("cat", f"{self.private}/address").strip()
        self.host = self.address.partition(":")[0]
        own = f"{self.private}/tls/driver"
        self.keys = {
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{self.private}/token"},
            **{"RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": f"{self.private}/tls/job.crt"},
            **{"RAY_TLS_SERVER_CERT": f"{own}.crt", "RAY_TLS_SERVER_KEY": f"{own}.key"},
        }
        # hpc2 can create its own token, and a certificate with the same names as hpc1's.
        key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=driver"
        names = f"-addext subjectAltName=IP:{self.host},IP:127.0.0.1"
        make = f"rm -rf {OWN}; mkdir {OWN}; cd {OWN}; printf %064d 1 > token; "
        make += f"openssl req -x509 {key} {names} -keyout own.key -out own.crt"
        cluster.check("hpc2", "bash", "-c", make, place=self.name)
        forged = {"RAY_TLS_CA_CERT": f"{OWN}/own.crt", "RAY_TLS_SERVER_CERT": f"{OWN}/own.crt"}
        forged |= {"RAY_AUTH_TOKEN_PATH": f"{OWN}/token", "RAY_TLS_SERVER_KEY": f"{OWN}/own.key"}
        self.forged = self.keys | forged
        knock = (Path(__file__).parent / "knock.py").read_text()
        (cluster.shared / Path(OWN).name / "knock.py").write_text(knock)

    def as_root(self, *words: str) -> str:
        return self.cluster.check("root", *words, place=self.name)

    def command(self, environment: dict[str, str], *words: str) -> list[str]:
        """Returns the command line that runs a command in the image."""
        given = ",".join(f"{name}={value}" for name, value in environment.items())
        command = ["apptainer", "--silent", "exec", "--no-home", "--bind", "/work,/tmp"]
        command += ["--pwd", "/tmp", "--env", given, f"{self.job.directory}/tune.sif"]
        return [*command, *words]

    def knock(self, account: str, *words: str) -> dict[str, Any]:
        command = self.command({"PYTHONUNBUFFERED": "1"}, "python", f"{OWN}/knock.py", *words)
        return json.loads(self.cluster.check(account, *command, place=self.name))

    def together(self, attempts: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
        """Runs commands at once, by NAME@ACCOUNT; returns each one's exit status and output."""
        started = {
            name: self.cluster.start(name.partition("@")[2], *command, place=self.name)
            for name, command in attempts.items()
        }
        outputs = {name: process.communicate(timeout=120)[0] for name, process in started.items()}
        return {name: (started[name].returncode, outputs[name]) for name in started}


def test_a_second_account_on_the_same_node_finds_every_door_closed(
    cluster: Cluster, submit: Callable[..., Job]
) -> None:
    write = f"cat > mine.py <<'END'\n{TRAIN}\nEND"
    flags = "--trainable mine.py:train --trials 2 --scheduler none --searcher random"
    job = submit(prepare=write, GPUS=1, PARTITION="shared", NAME="s", ARGS=flags)
    poll(lambda: "epoch 1 " in job.log(), 120, f"a first epoch: {job.log()}")
    # All accounts may enter the parent directory, as is usual on a shared file system.
    cluster.check("hpc1", "chmod", "755", job.directory)
    node = Node(cluster, job)
    pids = node.as_root("pgrep", "-u", "hpc1").split()

    _ports(node)
    _files(node)
    _processes(node, pids)
    _ray(node)

    cluster.check("hpc1", "touch", f"{job.directory}/tried")
    log = job.wait(deadline_s=60)
    assert job.status() == 0, log
    assert log.count(" start ") == 2
    journal = events(job.study("s"))
    assert [e["state"] for e in journal if e["event"] == "end"] == ["completed", "completed"]
    assert [e for e in journal if e["event"] == "restart"] == []
    assert {e["metrics"]["homes"] for e in journal if e["event"] == "epoch"} == {0}
    job.await_nothing_left()
    cluster.run("root", "rm", "-rf", OWN)


def _ports(node: Node) -> None:
    """Each listening port is known, and requires the job's certificate and then its token."""
    servers: dict[str, str] = {}
    for line in node.as_root("ss", "-Hltunp").splitlines():
        user = re.search(r'"([^"]+)",pid=(\d+)', line)
        assert user, line
        if node.as_root("ps", "-o", "user=", user[2]).strip() == "hpc1":
            servers[line.split()[4].rpartition(":")[2]] = user[1]
            assert line.startswith("tcp"), line
    assert {n for n in servers.values() if not n.startswith((*RAY, *SLURM))} == set(), servers
    http = [port for port, name in servers.items() if name.startswith(AGENT)]
    grpc = [port for port, name in servers.items() if name.startswith(RAY) and port not in http]
    assert len(http) == 1
    assert len(grpc) >= 5  # head, raylet, object manager, driver, worker
    abstract = node.as_root("ss", "-Hlxp")
    assert not [line for line in abstract.splitlines() if " @" in line and "hpc1" in line]

    tried = (*METHODS, FATAL, "/grpc.health.v1.Health/Check")
    tls = f"plain,-,{OWN}/own"
    for token in ("-", f"{OWN}/token"):
        results = node.knock("hpc2", "grpc", token, tls, node.host, *grpc, *tried)
        for port, statuses in results.items():
            assert len(statuses) == 3 * len(tried)
            assert set(statuses.values()) == {CLOSED}, (port, servers[port], statuses)
    # With a valid certificate, every method of Ray still requires the token.
    mine, token = f"{node.private}/tls/driver", f"{node.private}/token"
    results = node.knock("hpc1", "grpc", "-", mine, node.host, *grpc, f"-{FATAL}")
    for port, statuses in results.items():
        asked = {name: s for name, s in statuses.items() if not name.startswith(TALKATIVE)}
        assert set(asked.values()) == {UNIMPLEMENTED, UNAUTHENTICATED}, (servers[port], asked)
    results = node.knock("hpc1", "grpc", token, mine, node.host, *grpc, *METHODS)
    for port, statuses in results.items():
        assert sorted(statuses.values()) == [OK, *[UNIMPLEMENTED] * 3], (servers[port], statuses)

    call = f"{http[0]}/get_runtime_envs_info"
    for account, token, status in (
        ("hpc2", "-", 401),
        ("hpc2", f"{OWN}/token", 403),
        ("hpc1", f"{node.private}/token", 200),
    ):
        assert node.knock(account, "http", token, "-", node.host, call) == {call: status}


def _files(node: Node) -> None:
    """hpc2 cannot read, write or connect to any file of the job, the study or Ray."""
    temporary = f"/tmp/sift-{node.job.number}"
    sockets = node.as_root("find", temporary, "-type", "s").split()
    assert len(sockets) == 3, sockets  # raylet, plasma, the fork server
    private = [f"{node.private}/{name}" for name in ("token", "log", "address", "tls/job.key")]
    study = f"{node.job.directory}/results/s"
    names = [*sockets, *private, node.private, temporary, f"{temporary}/r", study]
    names += [f"{study}/trials.jsonl", f"{node.job.directory}/slurm-{node.job.number}.out"]
    results = node.knock("hpc2", "file", "-", "-", *names)
    assert {name: result for name, result in results.items() if result != "PermissionError"} == {}
    for name in names:
        opened = node.knock("hpc1", "file", "-", "-", name)
        assert "OPEN" in " ".join(opened.values()), opened
    modes = node.as_root(
        "stat", "-c", "%a", f"{node.private}/token", node.private, temporary, study
    )
    assert modes.split() == ["600", "700", "700", "700"]
    shared = node.as_root("find", "/dev/shm", "-user", "hpc1", "-perm", "/077")
    assert shared == ""


def _processes(node: Node, pids: list[str]) -> None:
    """hpc2 cannot signal, trace or inspect any process, and no process shows the token."""
    results = node.knock("hpc2", "process", "-", "-", *pids)
    # Other results than PermissionError are of processes that have ended; a zombie has no memory.
    closed = {"PermissionError", "ProcessLookupError", "FileNotFoundError", "OPEN ''"}
    assert {name: result for name, result in results.items() if result not in closed} == {}
    assert "PermissionError" in results.values()
    mine = node.as_root("pgrep", "-u", "hpc1", "-f", "entrypoints/tune.py").split()[-1]
    opened = node.knock("hpc1", "process", "-", "-", mine)
    assert opened[f"{mine} signal"].startswith("OPEN")
    token = node.as_root("cat", f"{node.private}/token").strip()
    assert len(token) == 64
    look = f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' > {OWN}/ps"
    look += f"; cat {node.job.directory}/slurm-*.out {node.private}/log/* >> {OWN}/ps"
    look += f"; find /tmp/sift-{node.job.number} -type f -exec cat {{}} + >> {OWN}/ps"
    node.as_root("bash", "-c", f"{look}; true")
    seen = (node.cluster.shared / Path(OWN).name / "ps").read_text(errors="replace")
    assert node.private in seen  # shows that `seen` contains hpc1's processes
    assert token not in seen


def _ray(node: Node) -> None:
    """hpc2's Ray commands can neither connect nor join, and `ray stop` stops nothing of hpc1."""
    quick = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    disabled = {"RAY_AUTH_MODE": "disabled"} | quick
    forged = node.forged | quick
    init = ("timeout", "40", "python", "-c", JOIN.format(node.address))
    join = ("timeout", "40", "ray", "start", f"--address={node.address}", "--num-cpus=1")
    join += (f"--temp-dir={OWN}/r",)
    status = ("timeout", "40", "ray", "status", f"--address={node.address}")
    tried = node.together(
        {
            "init, no token@hpc2": node.command({"RAY_AUTH_MODE": "token"} | quick, *init),
            "init, disabled@hpc2": node.command(disabled, *init),
            "init, forged@hpc2": node.command(forged, *init),
            "join, disabled@hpc2": node.command(disabled, *join),
            "join, forged@hpc2": node.command(forged, *join),
            "status, forged@hpc2": node.command(forged, *status),
            "init@hpc1": node.command(node.keys, *init),
            "status@hpc1": node.command(node.keys, *status),
        }
    )
    for name, (code, output) in tried.items():
        assert (code == 0) == name.endswith("@hpc1"), (name, output)
        assert "in {" not in output or name.endswith("@hpc1"), (name, output)
    assert node.as_root("pgrep", "-u", "hpc1", "gcs_server").strip()
    stop = node.command(disabled, "ray", "stop", "--force")
    node.cluster.run("hpc2", *stop, place=node.name)
    assert node.as_root("pgrep", "-u", "hpc1", "gcs_server").strip()
