"""A clone in PBT starts with its donor's weights, whatever happens before its first report."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from drivers import Driver

from siftune.record import journal
from siftune.record.journal import Event

# The weights are the name of the trial that created them. FIRST is replaced by the code that the
# first clone runs before it trains.
TRAINABLE = """
    import json, os, signal, tempfile, time
    from pathlib import Path
    from ray import tune
    SPACE = {"x": tune.uniform(0, 1), "epochs": 4}
    def train(config):
        trial = tune.get_context().get_trial_id().partition("-")[0]
        epoch, weights = 0, trial
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as directory:
                epoch, weights = json.loads(Path(directory, "state").read_text())
        if weights != trial:
            try:
                Path(__file__).with_name("cloned").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                FIRST
        while epoch < config["epochs"]:
            epoch += 1
            metrics = {"loss": config["x"] / epoch, "weights": weights}
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "state").write_text(json.dumps([epoch, weights]))
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))
"""


@pytest.fixture
def tune(job: dict[str, str], tmp_path: Path) -> Callable[..., Driver]:
    """Starts or resumes a study of the trainable above."""

    def start(first: str = "pass", *, resume: bool = False) -> Driver:
        file = tmp_path / "mine.py"
        flags = ["--trainable", f"{file}:train", "--name", "s", "--scheduler", "pbt"]
        flags += ["--searcher", "random", "--trials", "4", "--seed", "0", "--cpus-per-trial", "0.5"]
        if not resume:
            file.write_text(dedent(TRAINABLE.replace("FIRST", first)))
        return Driver(["--resume", "s"] if resume else flags, directory=tmp_path, environment=job)

    return start


def assert_clones_have_their_donors_weights(events: list[Event]) -> None:
    clones, weights = 0, {}
    for event in events:
        if event["event"] == "restart" and "donor" in event:
            weights[event["trial"]] = weights[event["donor"]]
            clones += 1
        elif event["event"] == "epoch":
            expected = weights.setdefault(event["trial"], event["trial"])
            assert event["metrics"]["weights"] == expected, event
    assert clones == 3


def test_a_clone_has_its_donors_weights_when_its_process_is_killed(
    tune: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = tune("os.kill(os.getpid(), signal.SIGKILL)")
    assert driver.wait() == 0, driver.said
    events = list(journal.events(tmp_path / "results/s"))
    assert [e["cause"] for e in events if e["event"] == "restart" and "donor" not in e] == ["crash"]
    assert_clones_have_their_donors_weights(events)


def test_a_clone_has_its_donors_weights_when_the_study_is_killed_and_its_donor_has_gone_on(
    tune: Callable[..., Driver], tmp_path: Path
) -> None:
    study = tmp_path / "results/s"

    def gone_on() -> bool:
        events = list(journal.events(study))
        restarts = [e for e in events if e["event"] == "restart"]
        epochs = [(e["trial"], e["epoch"]) for e in events if e["event"] == "epoch"]
        return any((clone["donor"], clone["epoch"] + 1) in epochs for clone in restarts)

    driver = tune("time.sleep(3600)")
    driver.wait_until(gone_on)
    driver.kill()
    driver = tune(resume=True)
    assert driver.wait() == 0, driver.said
    assert_clones_have_their_donors_weights(list(journal.events(study)))
