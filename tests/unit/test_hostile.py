"""Hostile values for each flag: input is never taken for a path or for code by accident."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FLAGS = {
    "tune": """--preset --config --trainable --trainable-arg --space --set --metric --mode
        --searcher --searcher-arg --scheduler --scheduler-arg --seed --time-limit --cpus-per-trial
        --gpus-per-trial --concurrent --retries --report-timeout --name --results --resume
        --try --try-file --stop --stop-after --min-improvement --data""",
    "train": "--from --preset --trainable --trainable-arg --space --set --seed",
    "status": "--results",
    "report": "--results",
}
VALUES = (
    *("../x", "a/b", "/x/y", "$(touch made)", "`touch made`", "; touch made", "'; touch made; '"),
    *("a\ntouch made", "-rf", "--option", "", "x" * 300, "é\u202e", "%n%s", '"', "\x1b[31m", "~"),
    *("__import__('os').system('touch made')", "!!python/object/apply:os.system [touch made]"),
    *("lr=__import__('os').system('touch made')", "lr=!!python/name:os.system", "*" * 20),
    *("x" * 300 + ".py:f", "x" * 300 + ".yaml", "../../x.py:f"),
)
# Flags that accept any text: the name of a metric, and paths.
FREE = ("--metric", "--results", "--data")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs an entrypoint in an empty directory; returns its exit status and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str) -> tuple[int, str]:
        spec = importlib.util.spec_from_file_location(name, ROOT / "entrypoints" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        entrypoint = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(entrypoint)
        try:
            status = entrypoint.main(words)
        except SystemExit as error:  # argparse
            status = error.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags.split()]
)
def test_a_hostile_value_is_refused_and_does_nothing(
    run: Callable[..., tuple[int, str]], tmp_path: Path, name: str, flag: str
) -> None:
    # A second, invalid argument makes sure that no study starts.
    besides = {"tune": ["--trials", "none"], "train": ["--no-such-flag"]}.get(name, ["nothing"])
    for value in VALUES:
        status, message = run(name, *besides, f"{flag}={value}")
        assert status == 2, (value, message)
        assert f"{name}: " in message, (value, message)
        # The value in NAME=VALUE may be any text: it is compared and never evaluated.
        if name == "tune" and flag not in FREE and not value.startswith("lr="):
            assert [line for line in message.splitlines() if "--trials" not in line], value
        assert list(tmp_path.iterdir()) == [], value


def test_a_resumed_study_is_one_of_the_results(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "study.yaml").write_text("name: outside\ntrainable: mnist\ntrials: 1\n")
    (tmp_path / "results").mkdir()
    for name in ("../outside", str(outside), ".", ".."):
        status, message = run("tune", "--resume", name)
        assert status == 2
        assert "--resume must be the name of a study" in message
    assert [path.name for path in outside.iterdir()] == ["study.yaml"]


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (Path("made"),))


def test_weights_outside_of_the_study_and_weights_that_run_code_are_not_loaded(
    run: Callable[..., tuple[int, str]], tmp_path: Path, mnist_directory: Path
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.yaml").write_text(
        "name: study\ntrainable: mnist\nsearcher: random\nscheduler: none\ntrials: 1\n"
    )
    for directory in (tmp_path, study):
        torch.save({"config": Evil()}, directory / "state.pt")
    for outside in ("../state.pt", str(tmp_path / "state.pt")):
        (study / "best.json").write_text(json.dumps({"checkpoint": outside}))
        status, message = run("train", "--from", str(study / "best.json"))
        assert status == 2
        assert "names weights outside of its study" in message
    (study / "best.json").write_text(json.dumps({"checkpoint": "state.pt"}))
    with pytest.raises(Exception, match="weights_only"):
        run("train", "--from", str(study / "best.json"), "--data", str(mnist_directory))
    assert not (tmp_path / "made").exists()
