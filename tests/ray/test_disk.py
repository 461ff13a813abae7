"""Studies on real disks that are full or become read-only."""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from drivers import Driver

from siftune.study.reading import read_saved

WALKER = Path(__file__).with_name("walker.py")
TRIALS, EPOCHS = 8, 4

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")


def sh(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def unmount(place: Path) -> None:
    once_free("umount", place)


def once_free(*command: str | Path) -> None:
    """Repeats the command until the trials of an ended driver have closed their files."""
    deadline = time.monotonic() + 60
    while subprocess.run(command, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{command} fails: the disk is still in use"
        time.sleep(0.2)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=2m", "none", place)
    yield place
    unmount(place)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """Mounts an ext4 file system that is stored in a file of 32 MiB."""
    place, image = tmp_path / "ext4", tmp_path / "image"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    sh("mkfs.ext4", "-q", image)
    sh("mount", "-o", "loop", image, place)
    yield place
    unmount(place)


@pytest.fixture
def tune(job: dict[str, str], tmp_path: Path) -> Callable[..., Driver]:
    """Starts or resumes a study of walker.py with its results on the given disk."""
    walker = shutil.copy(WALKER, tmp_path)

    def start(results: Path, *, weights_kib: int = 0, resume: bool = False) -> Driver:
        flags = ["--trainable", f"{walker}:train", "--name", "s", "--trials", str(TRIALS)]
        flags += ["--seed", "0"]
        flags += ["--set", f"weights_kib={weights_kib}", "--searcher", "random"]
        flags += ["--scheduler", "none", "--cpus-per-trial", "0.5"]
        flags = ["--resume", "s"] if resume else flags
        flags += ["--results", str(results)]
        return Driver(flags, directory=tmp_path, environment=job)

    return start


def events(study: Path) -> list[dict[str, Any]]:
    lines = (study / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_stopped_for_good_reason(driver: Driver, study: Path, reason: str) -> None:
    assert driver.wait() == 1, driver.said
    assert reason in driver.said
    assert "--resume s" in driver.said
    assert "Traceback" not in driver.said
    assert (study / "trials.jsonl").read_bytes().endswith(b"}\n")
    assert not [e for e in events(study) if e.get("state") == "failed"]
    assert len([e for e in events(study) if e["event"] == "end"]) < TRIALS


def assert_finishes(driver: Driver, study: Path) -> None:
    assert driver.wait() == 0, driver.said
    searcher = read_saved(study).build_searcher()
    configs = [e["config"] for e in events(study) if e["event"] == "start"]
    assert configs == [searcher.propose(number) for number in range(TRIALS)]
    names = [f"{number:04d}" for number in range(1, TRIALS + 1)]
    ends = [(e["trial"], e["state"]) for e in events(study) if e["event"] == "end"]
    assert sorted(ends) == [(name, "completed") for name in names]
    epochs = Counter((e["trial"], e["epoch"]) for e in events(study) if e["event"] == "epoch")
    assert set(epochs) == {(name, epoch) for name in names for epoch in range(1, EPOCHS + 1)}
    best = min((e["metrics"]["loss"], e["trial"]) for e in events(study) if e["event"] == "epoch")
    written = json.loads((study / "best.json").read_text())
    assert (written["metrics"]["loss"], written["trial"]) == best


def test_checkpoints_that_fill_the_disk_stop_the_study_until_there_is_room(
    tune: Callable[..., Driver], small: Path
) -> None:
    assert_stopped_for_good_reason(
        tune(small, weights_kib=400), small / "s", "No space left on device"
    )
    again = tune(small, resume=True)  # before space is freed
    assert_stopped_for_good_reason(again, small / "s", "No space left on device")
    sh("mount", "-o", "remount,size=64m", small)
    assert_finishes(tune(small, resume=True), small / "s")


@pytest.mark.parametrize("weights_kib", [0, -1], ids=["with checkpoints", "without"])
def test_a_disk_that_others_fill_stops_the_study_until_there_is_room(
    tune: Callable[..., Driver], small: Path, weights_kib: int
) -> None:
    driver = tune(small, weights_kib=weights_kib)
    driver.wait_for(small / "s/trials.jsonl", 12)
    with suppress(OSError), (small / "others").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert_stopped_for_good_reason(driver, small / "s", "No space left on device")
    (small / "others").unlink()
    assert_finishes(tune(small, resume=True), small / "s")


def test_a_disk_that_fails_stops_the_study_until_it_is_mended(
    tune: Callable[..., Driver], ext4: Path
) -> None:
    driver = tune(ext4)
    driver.wait_for(ext4 / "s/trials.jsonl", 12)
    sh("mount", "-o", "remount,abort", ext4)  # as the kernel does after a disk error
    assert_stopped_for_good_reason(driver, ext4 / "s", "Read-only file system")
    # Data that was not on the disk yet is lost, as in a power cut.
    unmount(ext4)
    subprocess.run(["e2fsck", "-y", ext4.with_name("image")], capture_output=True)
    sh("mount", "-o", "loop", ext4.with_name("image"), ext4)
    assert_finishes(tune(ext4, resume=True), ext4 / "s")


def test_a_study_that_cannot_be_written_is_refused(
    tune: Callable[..., Driver], small: Path
) -> None:
    first = tune(small)
    first.wait_for(small / "s/trials.jsonl", 12)
    first.kill()
    once_free("mount", "-o", "remount,ro", small)
    new = tune(small / "new")
    assert new.wait() == 2
    assert "tune: cannot write to" in new.said
    assert "Read-only file system; give another --results" in new.said
    again = tune(small, resume=True)
    assert again.wait() == 1
    assert "tune: cannot write" in again.said
    assert "Read-only file system" in again.said
    assert "Traceback" not in again.said
    sh("mount", "-o", "remount,rw", small)
    assert_finishes(tune(small, resume=True), small / "s")
