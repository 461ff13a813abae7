"""The study directory survives what happens to processes and files."""

import json
from pathlib import Path

import pytest

from siftune import journal
from siftune.journal import Journal


def start(trial: str) -> journal.Event:
    return {"event": "start", "trial": trial, "config": {"x": 1}, "time": 1.0}


def test_events_come_back_in_order(tmp_path: Path) -> None:
    log = Journal.create(tmp_path / "study")
    for name in ("0001", "0002"):
        log.append(start(name))
    log.close()
    assert [event["trial"] for event in journal.events(tmp_path / "study")] == ["0001", "0002"]


def test_each_line_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    log = Journal.create(tmp_path / "study")
    log.append(start("0001"))
    assert len((tmp_path / "study" / "trials.jsonl").read_text().splitlines()) == 1


def test_a_study_directory_is_never_overwritten(tmp_path: Path) -> None:
    log = Journal.create(tmp_path / "study")
    log.append(start("0001"))
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "study")
    assert len(list(journal.events(tmp_path / "study"))) == 1


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_read_past_and_mended(tmp_path: Path, cut: int) -> None:
    log = Journal.create(tmp_path / "study")
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
    log = Journal.create(tmp_path / "study")
    log.write("best.json", {"trial": "0001"})
    log.write("best.json", {"trial": "0002"})
    assert json.loads((log.directory / "best.json").read_text()) == {"trial": "0002"}
    assert sorted(p.name for p in log.directory.iterdir()) == [
        "best.json",
        "trials.jsonl",
    ]
