"""A study learns from the trials of other studies: of siftune, of Optuna, and of tables."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.errors import UsageError
from siftune.export import csv as csv_export
from siftune.export import optuna as optuna_export
from siftune.record import history, learned
from siftune.record.journal import Journal
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.study import Study
from tests.unit.conftest import SPACE

Written = Callable[..., Any]


def study_of(*sources: Path | str, **layer: Any) -> Study:
    layer = {"trainable": "t.py:f", "name": "new", "space": SPACE, "metric": "loss"} | layer
    layer = {"trials": 20, "searcher": "optuna", "scheduler": "asha", "seed": 1} | layer
    layer["learn_from"] = [str(source) for source in sources]
    return plan(read([layer], {}), slots=2)[0]


@pytest.fixture
def old(written: Written) -> Any:
    """A study with a completed, a pruned, a failed and a running trial, and one without a value."""
    study = written("old", trials=9)
    study.trial(0.5, 0.4, 0.3, lr=0.01, depth=3, act="gelu", width2=16)
    study.trial(0.9, lr=0.5, state="pruned")
    study.trial(lr=0.9, state="failed")
    study.trial(0.7, 0.6, lr=0.02, state=None)
    study.trial(lr=0.03, state=None)
    study.driver()
    return study


@pytest.fixture(params=["study", "optuna", "csv"])
def source(request: pytest.FixtureRequest, old: Any, tmp_path: Path) -> Path:
    """The old study in each form."""
    if request.param == "study":
        return Path(old.directory)
    export = {"optuna": optuna_export, "csv": csv_export}[request.param]
    return export.writer(tmp_path, follow=False)(history.load(old.directory))[0]


def test_trials_of_every_form_are_learned(source: Path) -> None:
    lessons, said = learned.gather(study_of(source))
    assert said == [f"learns from 4 of 4 trials of {source}"]
    assert [lesson.failed for lesson in lessons] == [False, False, True, False]
    assert lessons[0].config == {"lr": 0.01, "depth": 3, "act": "gelu", "width2": 16, "epochs": 3}
    best = [min(lesson.values.values()) for lesson in lessons if lesson.values]
    assert best == [0.3, 0.9, 0.6]
    assert max(lessons[0].values) == 3
    # Without an effect, width2 may have any value.
    assert lessons[1].config["lr"] == 0.5


def test_the_searcher_is_told_them_before_the_first_trial_and_trains_none_to_its_end_again(
    old: Any,
) -> None:
    study = study_of(old.directory, searcher_options={"startup": 4})
    searcher = study.build_searcher()
    proposals = Proposals(study, searcher)
    lessons, _ = learned.gather(study)
    for lesson in lessons:
        proposals.learn(lesson)
    assert searcher.running == {}
    configs, scores, _ = searcher.results()  # type: ignore[attr-defined]
    assert len(configs) == len(scores) == 4
    # The pruned one and the running one may be trained again, to the end.
    trained = [lesson.config for lesson in lessons if lesson.failed or 3 in lesson.values]
    assert proposals._known == {study.space.identity(config) for config in trained}
    assert len(trained) == 2


def test_a_maximised_metric_is_told_with_its_sign(written: Written) -> None:
    study = written("old", metric="accuracy", mode="max")
    study.trial(0.2, lr=0.1)
    study.trial(0.9, lr=0.2)
    new = study_of(study.directory, metric="accuracy", mode="max")
    proposals = Proposals(new, new.build_searcher())
    for lesson in learned.gather(new)[0]:
        proposals.learn(lesson)
    assert proposals.searcher.results()[1] == [-0.2, -0.9]  # type: ignore[attr-defined]


def test_what_was_learned_is_kept_in_the_study_directory(old: Any, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    log = Journal(tmp_path / "new")
    lessons, _ = learned.gather(study_of(old.directory))
    learned.write(log, lessons)
    assert learned.load(tmp_path / "new") == lessons
    assert list(learned.counts(tmp_path / "new")) == [
        f"It learned from 4 trials of {old.directory}."
    ]
    learned.write(log, [])  # by another start
    assert learned.load(tmp_path / "new") == []


def test_trials_outside_the_space_do_not_count_and_are_said(old: Any) -> None:
    space = SPACE | {"lr": "loguniform(1e-4, 0.1)", "act": "relu"}
    lessons, said = learned.gather(study_of(old.directory, space=space))
    assert [lesson.config["lr"] for lesson in lessons] == [0.02]
    assert said == [
        f"learns from 1 of 4 trials of {old.directory}; the others lie outside the space (act, lr)"
    ]


def test_a_constant_of_either_study_may_be_a_parameter_of_the_other(old: Any) -> None:
    space = SPACE | {"depth": 1, "epochs": "randint(1, 10)", "dropout": 0.1}
    lessons, _ = learned.gather(study_of(old.directory, space=space))
    assert len(lessons) == 3
    assert {(lesson.config["epochs"], lesson.config["dropout"]) for lesson in lessons} == {(3, 0.1)}


def test_the_number_of_epochs_may_differ_if_it_is_a_constant(old: Any) -> None:
    lessons, _ = learned.gather(study_of(old.directory, space=SPACE | {"epochs": 27}))
    assert {lesson.config["epochs"] for lesson in lessons} == {27}


def test_a_table_without_epochs_counts_as_fully_trained(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("lr, depth, act, loss, note\n1e-3, 1, relu, 0.4, a\n1e-2, 1, gelu, , b\n")
    lessons, said = learned.gather(study_of(table))
    assert [(lesson.config["lr"], lesson.values) for lesson in lessons] == [(1e-3, {3: 0.4})]
    assert said == [f"learns from 1 of 1 trials of {table}"]


def test_a_searcher_without_a_model_is_said(old: Any) -> None:
    _, said = learned.gather(study_of(old.directory, searcher="random"))
    assert "the searcher random has no model" in said[1]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"metric": "f1"}, "no trial there has a value of 'f1'"),
        (
            {"space": SPACE | {"momentum": "uniform(0, 1)"}},
            "no value of momentum, .*--set momentum",
        ),
        (
            {"space": SPACE | {"lr": "loguniform(10, 20)"}},
            "none of its 4 trials lies .* lr must be",
        ),
    ],
)
def test_a_source_from_which_nothing_can_be_learned_is_refused(
    source: Path, change: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(UsageError, match=f"--learn-from {source}: .*{refusal}"):
        learned.gather(study_of(source, **change))


def test_all_sources_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("no database")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    storage = f"sqlite:///{tmp_path / 'two.db'}"
    for name in ("a", "b"):
        optuna.create_study(storage=storage, study_name=name, direction="maximize")
    names = ("nothing", "bad.db", "bad.csv", "two.db", "two.db:c", "two.db:a")
    with pytest.raises(UsageError) as raised:
        learned.gather(study_of(*(tmp_path / name for name in names)))
    reasons = [mistake.partition(": ")[2] for mistake in raised.value.mistakes]
    assert "must be a study directory, an SQLite file" in reasons[0]
    assert "Optuna cannot read the file" in reasons[1]
    assert "the table cannot be read" in reasons[2]
    assert "has the studies a, b: add :STUDY" in reasons[3]
    assert "no study 'c'; it has: a, b" in raised.value.mistakes[4]
    assert "maximizes, this one minimizes" in raised.value.mistakes[5]


# ── What it gains ───────────────────────────────────────────────────────────────────────────────

BOWL = {f"x{k}": "uniform(0, 1)" for k in range(4)}


def best_of(study: Study, lessons: list[learned.Lesson]) -> tuple[float, Progress]:
    """Returns the best value of a study of a bowl in four dimensions, one trial at a time."""
    proposals = Proposals(study, study.build_searcher())
    for lesson in lessons:
        proposals.learn(lesson)
    events: list[Any] = []
    progress = Progress(study, proposals, study.build_scheduler(), slots=1, write=events.append)
    while trial := progress.begin():
        loss = sum((trial.config[f"x{k}"] - 0.3) ** 2 for k in range(4))
        progress.report(trial.trial, 1, {"loss": loss}, seconds=1.0)
        progress.end(trial.trial, "completed")
    assert progress.best is not None
    return progress.best.metrics["loss"], progress


def test_twenty_trials_are_better_after_forty_of_another_study(tmp_path: Path) -> None:
    alone, taught = [], []
    for seed in range(5):
        layer = {"space": BOWL, "scheduler": "none", "seed": seed}
        _, progress = best_of(study_of(**layer, trials=40), [])
        lines = ["x0,x1,x2,x3,loss"]
        for trial in progress.trials.values():
            row = [*(trial.config[f"x{k}"] for k in range(4)), trial.epochs[1]["loss"]]
            lines.append(",".join(map(str, row)))
        table = tmp_path / f"{seed}.csv"
        table.write_text("\n".join(lines) + "\n")
        layer["seed"] = 100 + seed
        alone.append(best_of(study_of(**layer), [])[0])
        study = study_of(table, **layer)
        taught.append(best_of(study, learned.gather(study)[0])[0])
    print(
        f"median best of 20 trials: {statistics.median(alone):.3g} alone, "
        f"{statistics.median(taught):.3g} after 40 trials of another study"
    )
    assert statistics.median(taught) < 0.5 * statistics.median(alone)
