"""One driver per study: which one wins, which is refused, and which notices that it has lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from siftune.record import lease
from siftune.record.lease import Lease, StudyBusyError
from siftune.study.planning import plan
from siftune.study.reading import read

TUNE = Path(__file__).parents[2] / "entrypoints/tune.py"
# Prints whether it got the lease of a study, and holds it until its standard input is closed.
# Then it gives the lease back, if the last argument is "end". The option tells what happens just
# before driver.json is replaced: the process is killed, falls asleep, or the file system is slow.
HOLDER = """
import os, signal, sys, time
from pathlib import Path
from siftune.record import lease
from siftune.record.lease import Lease, StudyBusyError

def hook(option):
    def before(function):
        def call(path, target):
            if Path(target).name == "driver.json":
                if option == "slow":
                    time.sleep(0.5)
                else:
                    print("here", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL if option == "killed" else signal.SIGSTOP)
            return function(path, target)
        return call
    Path.rename, Path.replace = before(Path.rename), before(Path.replace)

option, end = sys.argv[2], sys.argv[3] == "end"
if option == "asleep":  # for the others it is on another machine: it may only be watched
    here = lease._this_process()
    lease._this_process = lambda: here | {"boot": "other"}
if option and not end:
    hook(option)
print("ready", flush=True)
sys.stdin.readline()
try:
    held = Lease(Path(sys.argv[1]), job=None)
except StudyBusyError:
    print("busy", flush=True)
else:
    print("won", flush=True)
    sys.stdin.read()
    if end:
        hook(option)
        held.end()
        print("ended", flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that tries to get the lease of the study in tmp_path when told to."""
    processes = []

    def start(option: str = "", when: str = "begin") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), option, when],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert said(process) == "ready"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def elsewhere(directory: Path) -> dict[str, Any]:
    """Returns the content of driver.json for a driver on another machine."""
    driver = {"host": "node7", "pid": 4711, "began": 1, "boot": "other", "pids": "pid:[1]"}
    driver |= {"job": None, "nonce": "theirs"}
    (directory / "driver.json").write_text(json.dumps(driver))
    return driver


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[None]:
    """Touches driver.json, as a driver on another machine would."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.2):
            os.utime(tmp_path / "driver.json")

    thread = threading.Thread(target=touch)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("before", ["nobody", "killed", "ended", "killed while it took over"])
@pytest.mark.parametrize("disk", ["", "slow"])
def test_one_of_many_drivers_at_once_wins(
    holder: Callable[..., subprocess.Popen[str]], tmp_path: Path, before: str, disk: str
) -> None:
    if before == "killed while it took over":
        first = holder("killed")
        go(first)
        assert said(first) == "here"
        first.wait()
    if before == "killed":
        first = holder()
        go(first)
        assert said(first) == "won"
        first.kill()
        first.wait()
    if before == "ended":
        Lease(tmp_path, job=None).end()
    processes = [holder(disk) for _ in range(12)]
    for process in processes:
        go(process)
    answers = {process.pid: said(process) for process in processes}
    assert sorted(answers.values()) == ["busy"] * 11 + ["won"]
    assert answers[lease.read(tmp_path)["pid"]] == "won"
    assert [path.name for path in tmp_path.iterdir()] == ["driver.json"]


@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_driver_that_falls_asleep_before_it_writes_driver_json_does_not_write_it_later(
    holder: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    monkeypatch.setattr(lease, "_SILENCE_S", 1.0)
    asleep = holder("asleep", when)
    go(asleep)
    if when == "end":
        assert said(asleep) == "won"
        assert asleep.stdin is not None
        asleep.stdin.close()
    assert said(asleep) == "here"
    mine = Lease(tmp_path, job=None)
    asleep.send_signal(signal.SIGCONT)
    assert said(asleep) == ("busy" if when == "begin" else "ended")
    assert lease.read(tmp_path)["pid"] == os.getpid()
    mine.check()
    mine.end()
    assert lease.read(tmp_path)["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["driver.json"]


def test_a_driver_that_died_before_it_said_who_it_is_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SILENCE_S", 1.0)
    (tmp_path / ".driver.nobody.1").touch()
    Lease(tmp_path, job=None).end()
    assert "ended" in lease.read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["driver.json"]


def test_a_claim_on_a_driver_that_was_replaced_meanwhile_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow file system, another driver wins between reading driver.json and the claim."""
    first: list[Lease] = []
    over = lease._over

    def look(other: dict[str, Any], job: str | None) -> bool:
        if not first:
            monkeypatch.setattr(lease, "_over", over)
            first.append(Lease(tmp_path, job=None))
        return over(other, job)

    monkeypatch.setattr(lease, "_over", look)
    with pytest.raises(StudyBusyError, match="is being run by process"):
        Lease(tmp_path, job=None)
    first[0].check()
    first[0].end()
    assert [path.name for path in tmp_path.iterdir()] == ["driver.json"]


def test_ending_says_whether_work_is_left_and_only_once(tmp_path: Path) -> None:
    for finished in (True, False):
        driver = Lease(tmp_path, job=None)
        driver.end(finished=finished)
        driver.end(finished=not finished)
        assert lease.read(tmp_path)["finished"] is finished


def test_a_driver_elsewhere_that_is_heard_of_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(lease, "_SILENCE_S", 5.0)
    theirs = elsewhere(tmp_path)
    request.getfixturevalue("beating")
    with pytest.raises(StudyBusyError, match="process 4711 on node7"):
        Lease(tmp_path, job=None)
    assert lease.read(tmp_path) == theirs


def test_a_driver_elsewhere_that_is_silent_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SILENCE_S", 1.0)
    elsewhere(tmp_path)
    began = time.monotonic()
    mine = Lease(tmp_path, job=None)
    assert time.monotonic() - began >= 1
    assert lease.read(tmp_path)["pid"] == os.getpid()
    mine.end()


def test_a_job_that_slurm_started_again_waits_for_nobody(tmp_path: Path) -> None:
    theirs = elsewhere(tmp_path) | {"job": "12"}
    (tmp_path / "driver.json").write_text(json.dumps(theirs))
    began = time.monotonic()
    Lease(tmp_path, job="12").end()
    assert time.monotonic() - began < lease._SILENCE_S


def test_a_driver_that_was_taken_for_dead_notices_and_leaves_the_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    mine = Lease(tmp_path, job=None)
    mine.check()
    theirs = elsewhere(tmp_path)
    deadline = time.monotonic() + 20
    while not mine.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(StudyBusyError, match="taken over"):
        mine.check()
    mine.end()
    assert lease.read(tmp_path) == theirs


def test_a_driver_that_slept_too_long_looks_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 1000.0)  # no heartbeat is due yet
    mine = Lease(tmp_path, job=None)
    elsewhere(tmp_path)
    mine.check()  # its heartbeat is recent, so no other driver can have taken over
    monkeypatch.setattr(lease, "_SILENCE_S", 0.0)
    with pytest.raises(StudyBusyError, match="taken over"):
        mine.check()
    mine.end()


def test_a_moment_without_the_file_system_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    mine = Lease(tmp_path, job=None)
    (tmp_path / "driver.json").rename(tmp_path / "away")
    time.sleep(0.5)
    (tmp_path / "away").rename(tmp_path / "driver.json")
    mine.check()
    mine.end()
    assert "ended" in lease.read(tmp_path)


def test_a_cancelled_study_is_cancelled_whether_it_was_saved_or_killed(tmp_path: Path) -> None:
    mine = Lease(tmp_path, job="12", resume="make submit")
    (tmp_path / ".driver.cancelled").write_text(lease.read(tmp_path)["nonce"] + "\n")
    assert lease.look(tmp_path, complete=False).life is lease.Life.RUNNING
    killed = lease.read(tmp_path) | {"began": 1}
    mine.end()
    assert lease.look(tmp_path, complete=False).life is lease.Life.CANCELLED
    (tmp_path / "driver.json").write_text(json.dumps(killed))
    seen = lease.look(tmp_path, complete=False)
    assert (seen.life, seen.resume) == (lease.Life.CANCELLED, "make submit")
    (tmp_path / "driver.json").write_text(json.dumps(killed | {"nonce": "another"}))
    assert lease.look(tmp_path, complete=False).life is lease.Life.DEAD


@pytest.mark.parametrize("place", ["this machine", "another machine"])
def test_the_command_refuses_a_study_that_is_being_run(
    holder: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    place: str,
) -> None:
    (tmp_path / "mine.py").write_text("SPACE = {'x': 1}\ndef train(config): ...\n")
    layer = {"trainable": f"{tmp_path}/mine.py:train", "name": tmp_path.name, "searcher": "random"}
    (tmp_path / "study.yaml").write_text(plan(read([layer], {}), slots=1)[0].to_yaml())
    if place == "this machine":
        first = holder()
        go(first)
        assert said(first) == "won"
    else:
        elsewhere(tmp_path)
        request.getfixturevalue("beating")
    before = lease.read(tmp_path)
    second = subprocess.run(
        [sys.executable, TUNE, "--results", tmp_path.parent, "--resume", tmp_path.name],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    said_why = f"tune: the study {tmp_path.name} is being run by process {before['pid']} on "
    assert second.stderr.startswith(said_why + before["host"])
    assert second.stderr.count("\n") == 1
    assert not (tmp_path / "trials.jsonl").exists()
    assert lease.read(tmp_path) == before
