"""The study directory survives killed processes, full disks and damaged files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from siftune.record import journal
from siftune.record.journal import Journal, Trial, fold


def create(directory: Path) -> Journal:
    directory.mkdir()
    return Journal(directory)


def start(trial: str) -> journal.Event:
    return {"event": "start", "trial": trial, "config": {"x": 1}, "time": 1.0}


def test_events_come_back_in_order(tmp_path: Path) -> None:
    log = create(tmp_path / "study")
    for name in ("0001", "0002"):
        log.append(start(name))
    log.close()
    assert [event["trial"] for event in journal.events(tmp_path / "study")] == ["0001", "0002"]


def test_each_line_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    log = create(tmp_path / "study")
    log.append(start("0001"))
    assert len((tmp_path / "study" / "trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_read_past_and_mended(tmp_path: Path, cut: int) -> None:
    log = create(tmp_path / "study")
    log.append(start("0001"))
    log.append(start("0002"))
    log.close()
    path = tmp_path / "study" / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [event["trial"] for event in journal.events(tmp_path / "study")] == ["0001"]
    assert journal.mend(tmp_path / "study")
    assert not journal.mend(tmp_path / "study")
    log = Journal(tmp_path / "study")
    log.append(start("0003"))
    log.close()
    assert [event["trial"] for event in journal.events(tmp_path / "study")] == ["0001", "0003"]


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    log = create(tmp_path / "study")
    log.write("best.json", {"trial": "0001"})
    log.write("best.json", {"trial": "0002"})
    assert json.loads((log.directory / "best.json").read_text()) == {"trial": "0002"}
    assert sorted(p.name for p in log.directory.iterdir()) == [
        "best.json",
        "trials.jsonl",
    ]


def test_zeros_at_the_end_are_a_torn_line(tmp_path: Path) -> None:
    log = create(tmp_path / "study")
    log.append(start("0001"))
    log.close()
    path = tmp_path / "study" / "trials.jsonl"
    path.write_bytes(path.read_bytes() + b"\0" * 200 + b"\n" + b"\0" * 30)
    assert [event["trial"] for event in journal.events(tmp_path / "study")] == ["0001"]
    assert journal.mend(tmp_path / "study")
    assert len(path.read_text().splitlines()) == 1


def test_damage_in_the_middle_is_named_and_not_cut(tmp_path: Path) -> None:
    log = create(tmp_path / "study")
    for name in ("0001", "0002", "0003"):
        log.append(start(name))
    path = log.directory / "trials.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"event": "start", "trial": "0002"', b"oops"))
    with pytest.raises(journal.JournalError, match="line 2"):
        list(journal.events(log.directory))
    assert not journal.mend(log.directory)


@pytest.mark.parametrize("limit", range(301, 360, 13))
def test_what_does_not_fit_on_the_disk_leaves_the_earlier_lines_whole(
    tmp_path: Path, limit: int
) -> None:
    # A limit on the file size stops a write in the middle, as a full disk does.
    script = """
import resource, signal, sys
from pathlib import Path
from siftune.record.journal import Journal, StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
Path(sys.argv[1]).mkdir()
log = Journal(Path(sys.argv[1]))
try:
    for number in range(100):
        log.append({"event": "start", "trial": f"{number:04d}", "config": {"x": 1}})
except StorageError as error:
    sys.exit(str(error))
"""
    directory = tmp_path / "study"
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory), str(limit)], capture_output=True, text=True
    )
    assert "trials.jsonl" in done.stderr
    assert "then run again with --resume study" in done.stderr
    content = (directory / "trials.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    names = [event["trial"] for event in journal.events(directory)]
    assert names == [f"{number:04d}" for number in range(len(names))]
    assert len(names) >= 3


def test_a_clone_goes_on_from_its_copy_until_it_has_trained() -> None:
    trials: dict[str, Trial] = {}
    epoch = {"event": "epoch", "trial": "0001", "metrics": {}, "seconds": 1.0}
    fold(trials, {"event": "start", "trial": "0001", "config": {"lr": 1}})
    for number in (1, 2):
        fold(trials, epoch | {"epoch": number, "checkpoint": f"own{number}"})
    clone = {"event": "restart", "trial": "0001", "epoch": 2, "cause": "cloned", "donor": "0002"}
    trial = fold(trials, clone | {"config": {"lr": 2}, "checkpoint": "copy"})
    assert (trial.config, trial.clone) == ({"lr": 2}, "copy")
    assert trial.checkpoints == {1: "own1", 2: "copy"}
    trial = fold(trials, epoch | {"epoch": 3, "checkpoint": "own3"})
    assert (trial.clone, trial.checkpoints[3]) == (None, "own3")
