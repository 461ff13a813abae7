"""Studies from Python: the examples of the page, and what a notebook does."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

import siftune

PAGE = Path(__file__).parents[2] / "src/siftune/api/README.md"


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_examples_of_the_page_run_one_after_the_other(tmp_path: Path) -> None:
    """As a script, whose functions are in the main module."""
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 4
    checks = """
        assert len(result.trials) == 12, result.trials
        assert set(result.trials.state) <= {"completed", "pruned"}
        assert len(result.epochs) > 12
        assert abs(result.best.config["x"] - 0.3) < 0.5
        assert result.report().is_file()
        print(result)
        assert study.result.finished
        assert study.result.best.config["x"] < 0.4
    """
    (tmp_path / "script.py").write_text("\n".join(examples) + textwrap.dedent(checks))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<study first in " in done.stdout
    # The study goes on without the script.
    (tmp_path / "script.py").unlink()
    resume = "import sys; from siftune.cli import main; sys.exit(main())"
    words = ("tune", "--resume", "first", "--trials", "13")
    done = subprocess.run([sys.executable, "-c", resume, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(siftune.load("results/first").trials) == 13


def test_a_closure_trains_and_ray_tunes_domains_are_a_space(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray import tune

    center, seen = 0.25, list[float]()

    def train(config: dict[str, float]) -> float:
        seen.append(config["x"])
        return (config["x"] - center) ** 2

    space = {"x": tune.uniform(0, 1), "kind": tune.choice(["a", ("b", 1)])}
    result = siftune.tune(train, space, trials=4, searcher="random", seed=1)
    assert re.fullmatch(r"train-\d{8}-\d{6}", result.directory.name)
    assert result.finished
    assert result.best
    assert result.best.value == pytest.approx((result.best.config["x"] - center) ** 2)
    assert result.best.checkpoint is None
    assert seen == []  # trials are other processes
    assert "study " in capsys.readouterr().out


def test_all_mistakes_are_raised_at_once_and_nothing_is_started() -> None:
    def train(config: dict[str, float]) -> float:
        return 0.0

    with pytest.raises(siftune.UsageError) as raised:
        siftune.tune(train, {"x": "unifrom(0, 1)"}, trials=0, searcher="heboo", name="s")
    assert all(word in str(raised.value) for word in ("unifrom", "--trials", "heboo"))
    with pytest.raises(siftune.UsageError, match="unknown setting 'trails'"):
        siftune.tune(train, {"x": "uniform(0, 1)"}, trails=3)
    with pytest.raises(siftune.UsageError, match="use stop_conditions"):
        siftune.tune(train, {"x": "uniform(0, 1)"}, stop=["loss <= 1"])
    lock = threading.Lock()
    with pytest.raises(siftune.UsageError, match="cannot be sent to the trials"):
        siftune.tune(lambda config: lock.locked(), {"x": "uniform(0, 1)"})
    with pytest.raises(siftune.UsageError, match="there is no study"):
        siftune.load("results/s")
    # The files that the refused calls wrote do not prevent the corrected call.
    assert siftune.tune(train, {"x": "uniform(0, 1)"}, trials=1, name="s").finished
    with pytest.raises(siftune.UsageError, match="resume=True"):
        siftune.tune(train, {"x": "uniform(0, 1)"}, name="s")


def test_a_notebook_shows_one_table_that_is_updated(tmp_path: Path) -> None:
    """The kernel is a real one. A function of one cell trains in another one's study."""
    cells = [
        "import siftune\ncenter = 0.25",
        "def train(config):\n    return (config['x'] - center) ** 2",
        "r = siftune.tune(train, {'x': 'uniform(0, 1)'}, trials=12, searcher='random', name='n')",
        "r.trials",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    study, trials = (cell.outputs for cell in notebook.cells[2:])
    tables = [output.data for output in study if output.output_type == "display_data"]
    assert len(tables) == 1, study
    for kind in ("text/plain", "text/html"):
        assert "12 of 12 trials done (12 completed)" in tables[0][kind]
    text = "".join(output.text for output in study if output.output_type == "stream")
    assert "minimises loss" in text
    assert not re.search(r"trial 0\d+ (start|epoch|completed)", text), text
    assert "config/x" in trials[0].data["text/html"]
    assert len(siftune.load(tmp_path / "results/n").trials) == 12


def test_files_beside_a_script_may_be_named_like_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The driver and the processes that compute proposals import the real ones."""
    for name in ("csv", "optuna", "torch", "yaml"):
        Path(f"{name}.py").write_text("raise SystemExit('the wrong file')")
    space = {"x": "uniform(0, 1)", "y": "uniform(0, 1)"}
    options = {"sampler": "gp", "startup": 2}
    settings = {"trials": 6, "searcher": "optuna", "searcher_options": options, "concurrent": 2}
    result = siftune.tune(lambda config: config["x"], space, **settings)
    assert len(result.trials) == 6
    output = capsys.readouterr().out
    assert "the wrong file" not in output
    assert "has ended" not in output, output
    assert any("knew" in line for line in (result.directory / "trials.jsonl").open())


def test_a_study_that_a_condition_stopped_is_finished() -> None:
    result = siftune.tune(
        lambda c: c["x"], {"x": "uniform(0, 1)"}, trials=9, stop_conditions=["loss >= 0"]
    )
    assert result.finished
    assert 1 <= len(result.trials) < 9
    assert re.fullmatch(r"lambda-[0-9-]+", result.directory.name)
    with pytest.raises(siftune.UsageError, match="resume=True"):
        siftune.tune(lambda c: c["x"], {"x": "uniform(0, 1)"}, name=result.directory.name)


def test_a_study_whose_trials_all_fail_raises() -> None:
    def train(config: dict[str, float]) -> float:
        raise RuntimeError("no luck")

    with pytest.raises(siftune.StudyError, match="no luck"):
        siftune.tune(train, {"x": "uniform(0, 1)"}, trials=2, name="s")


def test_an_interrupt_saves_the_study_and_it_can_go_on(tmp_path: Path) -> None:
    script = """
        import siftune, sys, time
        def train(config):
            for epoch in range(3):
                time.sleep(0.5)
                yield {"loss": config["x"] / (epoch + 1)}
        space = {"x": "uniform(0, 1)"}
        try:
            result = siftune.tune(train, space, trials=4, concurrent=1, name="s", resume=True,
                                  scheduler="none") if len(sys.argv) < 2 else siftune.tune(
                                  train, name="s", resume=True)
            assert result.finished
        except KeyboardInterrupt:
            print("interrupted")
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "script.py"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "results/s/trials.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or '"epoch"' not in journal.read_text():
        assert time.monotonic() < deadline, "the study does not begin"
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGINT)
    output = first.communicate(timeout=60)[0]
    assert "interrupted" in output
    assert not siftune.load("results/s").finished
    done = subprocess.run([*command, "again"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert siftune.load("results/s").trials.state.tolist() == ["completed"] * 4
