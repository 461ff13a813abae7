"""`tune.sample_from`: a function of the user draws an entry of each config."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siftune.driver.proposals import Proposals
from siftune.errors import UsageError
from siftune.searchers import SEARCHERS
from siftune.space import Space, drawn
from siftune.study.planning import plan
from siftune.study.reading import read, read_saved
from siftune.trainables.user.file import load_space

SPACES = """
import random
import numpy as np
from ray import tune

SPACE = {
    "decay": tune.sample_from(lambda config: config["lr"] * config["factor"]),
    "lr": tune.loguniform(1e-4, 1e-1),
    "factor": tune.sample_from(lambda spec: spec.config.model["width"] / 8),
    "model": {
        "width": tune.choice([8, 16]),
        "depth": tune.sample_from(lambda: random.randint(1, 1000)),
        "noise": tune.sample_from(lambda _: np.random.uniform()),
    },
    "kind": "text",
}
NAMES = {"lr": tune.uniform(0, 1), "x": tune.sample_from(lambda config: config["lrr"])}
FAILS = {"lr": tune.uniform(0, 1), "x": tune.sample_from(lambda config: 1 / 0)}
OBJECT = {"lr": tune.uniform(0, 1), "x": tune.sample_from(lambda config: object())}
EPOCHS = {"lr": tune.uniform(0, 1), "epochs": tune.sample_from(lambda config: 3)}
"""


@pytest.fixture
def spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"spaces_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(SPACES)
    return path


def layer(source: str, **more: Any) -> dict[str, Any]:
    layer = {"trainable": "t.py:f", "name": "s", "metric": "loss", "scheduler": "none"}
    return layer | {"space": load_space(source), "searcher": "random", "trials": 8} | more


def test_a_function_may_use_the_rest_of_the_config(spaces: Path) -> None:
    space = Space.read(load_space(f"{spaces}:SPACE"))
    config = space.sample(np.random.default_rng(0))
    given = space.given(config)
    assert given["factor"] == given["model"]["width"] / 8
    assert given["decay"] == given["lr"] * given["factor"]
    assert set(given) == {"decay", "lr", "factor", "model", "kind"}
    assert json.loads(json.dumps(config)) == config
    assert space.mistakes(config) == []
    assert space.mistakes({"lr": 0.01, "model/width": 8})[0] == "the config lacks 'decay'"
    assert space.canonical(config) == config


def test_functions_draw_the_same_for_the_same_proposal(spaces: Path) -> None:
    space = Space.read(load_space(f"{spaces}:SPACE"))
    first, again, other = (space.sample(np.random.default_rng(seed)) for seed in (1, 1, 2))
    random.seed(7)
    expected = random.random()
    random.seed(7)
    assert space.sample(np.random.default_rng(1)) == first == again
    assert random.random() == expected
    assert first["model/depth"] != other["model/depth"]
    assert first["model/noise"] != other["model/noise"]


def test_configs_differ_if_only_a_drawn_value_differs(spaces: Path) -> None:
    space = Space.read(load_space(f"{spaces}:SPACE"))
    config = space.sample(np.random.default_rng(1))
    assert space.identity(config) != space.identity(config | {"model/depth": 0})
    assert space.size() is None
    assert space.points() == 0


def test_a_resumed_study_finds_the_functions_again(spaces: Path, tmp_path: Path) -> None:
    study, _ = plan(read([layer(f"{spaces}:SPACE")], {}), slots=1)
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    resumed = read_saved(tmp_path)
    assert resumed.space.texts() == study.space.texts()
    asked = [Proposals(s, s.build_searcher()).ask(3).config for s in (study, resumed)]
    assert asked[0] == asked[1]

    spaces.write_text("SPACE = {}\n")
    spaces.rename(tmp_path / "moved.py")
    text = study.to_yaml().replace(spaces.name, "moved.py")
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UsageError, match="no longer there: restore the file"):
        read_saved(tmp_path)


def test_a_drawn_entry_can_be_set_to_a_value(spaces: Path) -> None:
    request = read([layer(f"{spaces}:SPACE")], {"decay": 0.5, "model.depth": 3})
    config = request.space.sample(np.random.default_rng(0))
    assert (config["decay"], config["model/depth"]) == (0.5, 3)
    assert set(request.space.drawn) == {"factor", "model/noise"}


@pytest.mark.parametrize("searcher", [name for name in SEARCHERS if name != "random"])
def test_searchers_with_a_model_refuse_drawn_entries(searcher: str, spaces: Path) -> None:
    scheduler = "bohb" if searcher == "bohb" else "none"
    request = read([layer(f"{spaces}:NAMES", searcher=searcher, scheduler=scheduler)], {})
    with pytest.raises(UsageError, match=f"--searcher {searcher} cannot propose x, which sample"):
        plan(request, slots=1)


def test_auto_takes_random_and_says_why(spaces: Path) -> None:
    study, notes = plan(read([layer(f"{spaces}:SPACE", searcher="auto")], {}), slots=1)
    assert study.searcher == "random"
    assert "sample_from draws model/depth, model/noise, decay, factor" in notes[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NAMES", "parameter 'x': its sample_from function raised KeyError: 'lrr'"),
        ("FAILS", "parameter 'x': its sample_from function raised ZeroDivisionError"),
        ("OBJECT", "parameter 'x': its sample_from function raised TypeError: Object of type"),
        ("EPOCHS", "epochs must be a domain or a number, not sample_from"),
    ],
)
def test_a_function_that_fails_is_a_usage_error_before_the_start(
    name: str, says: str, spaces: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        plan(read([layer(f"{spaces}:{name}")], {}), slots=1)


def test_a_condition_cannot_name_a_drawn_entry(spaces: Path) -> None:
    entries = load_space(f"{spaces}:SPACE") | {"x": "uniform(0, 1) if factor > 1"}
    with pytest.raises(UsageError, match="'factor', which the space does not have"):
        Space.read(entries)


def test_other_text_is_text() -> None:
    texts = {"a": "sample_from(", "b": "sample_from(x)", "c": "sample_from('a')", "d": "sample"}
    assert drawn.unmark(texts, load_space) == texts
