"""Entries that a function draws: Ray Tune's sample_from. Also randn with every searcher."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

from siftune.cli.flags import read_space
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.errors import UsageError
from siftune.record import wording
from siftune.record.journal import Event
from siftune.searchers import SEARCHERS
from siftune.space import Space, when
from siftune.study.planning import plan
from siftune.study.reading import read, read_resumed, read_saved
from siftune.study.study import Study

LR = {"lr": tune.loguniform(1e-5, 1)}

FILE = """
import random
import numpy as np
from ray import tune

SPACE = {
    "lr": tune.loguniform(1e-5, 1),
    "ten": tune.sample_from(lambda config: config["lr"] * 10),
    "any": tune.sample_from(lambda _: random.random() + np.random.uniform()),
    "optim": {
        "momentum": tune.uniform(0.8, 1),
        "wd": tune.sample_from(lambda spec: spec.config.ten / 2),
        "betas": (0.9, 0.99),
    },
}
"""


def sample(space: Space, seed: int = 0) -> dict[str, Any]:
    return space.sample(np.random.default_rng(seed))


def drawn(function: Any, **entries: Any) -> Any:
    space = Space.read(LR | entries | {"b": tune.sample_from(function)})
    return sample(space)["b"], sample(space)["lr"]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "drawn_space.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("drawn_space", None)


def request(space: Any, **more: Any) -> Any:
    layer = {"trainable": "t.py:f", "name": "s", "space": space, "trials": 12}
    return read([layer | {"searcher": "random", "scheduler": "none"} | more], {})


def study(space: Any, **more: Any) -> Study:
    return plan(request(space, **more), slots=2)[0]


# ── What the function gets and returns ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "function",
    [
        lambda config: config["lr"] * 10,
        lambda spec: spec.config.lr * 10,
        lambda spec: spec["config"]["lr"] * 10,
        lambda config: config.lr * 10,
        lambda config: dict(**config)["lr"] * 10,
    ],
)
def test_the_function_reads_the_config_in_both_forms_of_ray(function: Any) -> None:
    value, lr = drawn(function)
    assert value == pytest.approx(10 * lr)


def test_the_function_gets_the_config_nested_and_with_tuples() -> None:
    entries = {"optim": {"name": "adam", "betas": (0.9, 0.99)}, "batch-size": 8}
    value, _ = drawn(lambda spec: [spec.config.optim.betas == (0.9, 0.99), "lr" in spec], **entries)
    assert value == [True, True]
    assert drawn(lambda config: config["batch-size"], **entries)[0] == 8


def test_functions_without_an_argument_are_called_without_one() -> None:
    assert drawn(lambda: 3)[0] == 3


def test_the_function_gets_earlier_drawn_entries_but_not_later_ones() -> None:
    a, b = tune.sample_from(lambda c: c["lr"] + 1), tune.sample_from(lambda c: c["a"] + 1)
    config = sample(Space.read({"b0": 1, "a": a, "b": b} | LR))
    assert config["b"] == config["lr"] + 1 + 1
    with pytest.raises(UsageError, match="sample_from of 'b' raised KeyError: 'a'"):
        sample(Space.read({"b": b, "a": a} | LR))


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (np.float32(0.5), 0.5),
        ((1, np.int64(2)), [1, 2]),
        (None, None),
        ("sgd", "sgd"),
        (True, True),
    ],
)
def test_values_are_those_that_the_journal_holds(returned: Any, value: Any) -> None:
    got, _ = drawn(lambda _: returned)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("returned", [len, np.zeros(2), {1, 2}])
def test_values_that_the_journal_cannot_hold_are_refused(returned: Any) -> None:
    with pytest.raises(UsageError, match="sample_from of 'b' must return a number, text, or a"):
        drawn(lambda _: returned)


@pytest.mark.parametrize(
    "function",
    [
        lambda _: random.random(),
        lambda _: np.random.uniform(),
        lambda _: np.random.default_rng().uniform(),
    ],
)
def test_random_functions_depend_on_the_seed_alone(function: Any) -> None:
    space = Space.read(LR | {"b": tune.sample_from(function), "c": tune.sample_from(function)})
    state = random.getstate()
    first = sample(space)
    assert random.getstate() == state
    random.random()
    np.random.uniform()
    assert sample(space) == first
    assert first["b"] != first["c"]
    assert sample(space, 1)["b"] != first["b"]


# ── Configs ─────────────────────────────────────────────────────────────────────────────────────


def test_configs_have_drawn_entries_everywhere() -> None:
    space = Space.read(LR | {"b": {"c": tune.sample_from(lambda config: config["lr"] * 10)}})
    config = json.loads(json.dumps(sample(space)))
    assert space.canonical(config) == space.active(config) == config
    assert space.mistakes(config) == []
    assert space.mistakes({"lr": 0.1}) == ["the config lacks 'b/c'"]
    assert space.given(config)["b"] == {"c": config["b/c"]}
    assert space.identity(config) == space.identity(dict(reversed(config.items())))
    assert space.identity(config) != space.identity(config | {"b/c": 3})
    assert [text.partition("=")[0] for text in wording.settings(config, space)] == ["lr", "b/c"]


def test_set_makes_a_drawn_entry_fixed_or_gives_it_a_domain() -> None:
    space = Space.read(LR | {"b": tune.sample_from(lambda config: config["lr"] * 10), "c": 1})
    assert sample(space.override({"b": 0.5}))["b"] == 0.5
    assert not space.override({"b": "uniform(0, 1)"}).drawn
    other = sample(space.override({"c": 2, "lr": 0.1}))
    assert other == {"lr": 0.1, "c": 2, "b": 1.0}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"b": when("lr > 0.1", tune.sample_from(len))}, "sample_from cannot have the condition"),
        ({"c": "choice([1]) if b > 1"}, "names 'b', which is a sample_from: a condition must name"),
        ({"c": "sample_from(lambda c: c['lr'])"}, "give --space FILE.py:NAME"),
        ({"c": "sample_from(3)"}, "it must name a dictionary in a file"),
    ],
)
def test_what_sample_from_cannot_do_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Space.read(LR | {"b": tune.sample_from(len)} | entries)
    assert len(refused.value.mistakes) == 1
    assert message in refused.value.mistakes[0]


def test_epochs_and_entries_of_built_in_trainables_need_a_domain() -> None:
    with pytest.raises(UsageError, match="epochs must be a domain or a value"):
        request(LR | {"epochs": tune.sample_from(lambda _: 3)})
    space = Space.read(LR | {"b": tune.sample_from(lambda _: 3)})
    assert space.unfit(Space.read(LR)) == []
    assert len(space.unfit(Space.read(LR | {"b": 1}))) == 1


# ── Studies ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("searcher", ["optuna", "hebo", "bayesopt", "bohb"])
def test_models_refuse_drawn_entries(searcher: str) -> None:
    scheduler = "bohb" if searcher == "bohb" else "asha"
    space = LR | {"b": tune.sample_from(lambda _: 1)}
    with pytest.raises(UsageError) as refused:
        study(space, searcher=searcher, scheduler=scheduler)
    assert refused.value.mistakes == (
        f"--searcher {searcher} cannot work with sample_from (b): its model needs domains. Use "
        "--searcher random, or give a domain: --set 'b=loguniform(1e-5, 1e-2)'",
    )


@pytest.mark.parametrize("searcher", ["random", "auto"])
def test_pbt_refuses_drawn_entries(searcher: str) -> None:
    space = LR | {"epochs": 4, "b": tune.sample_from(lambda _: 1)}
    with pytest.raises(UsageError, match="--scheduler pbt cannot work with sample_from"):
        study(space, searcher=searcher, scheduler="pbt")


def test_auto_chooses_random_and_says_why() -> None:
    space = {"a": "choice([1, 2])", "b": tune.sample_from(lambda _: random.random())}
    planned, notes = plan(request(space, searcher="auto", trials=50), slots=2)
    assert (planned.searcher, planned.trials) == ("random", 50)
    assert notes == ["searcher random: no model can learn from sample_from (b)."]


def test_a_grid_draws_at_each_of_its_points() -> None:
    space = {"a": "choice([1, 2, 3])", "b": tune.sample_from(lambda c: c["a"] * 10)}
    planned = study(space, searcher="grid", trials=None)
    assert planned.trials == 3
    searcher = planned.build_searcher()
    assert [searcher.propose(n) for n in range(3)] == [{"a": a, "b": 10 * a} for a in (1, 2, 3)]


def test_a_function_that_raises_is_reported_before_the_start() -> None:
    with pytest.raises(UsageError, match="sample_from of 'b' raised KeyError: 'rl'"):
        study(LR | {"b": tune.sample_from(lambda config: config["rl"])})


def test_a_function_that_raises_sometimes_costs_no_study() -> None:
    def sometimes(config: dict[str, Any]) -> float:
        if config["x"] > 0.5:
            raise ZeroDivisionError
        return float(config["x"])

    planned = study({"x": "uniform(0, 1)", "b": tune.sample_from(sometimes)}, seed=2, trials=30)
    said: list[str] = []
    proposals = Proposals(planned, planned.build_searcher(), say=said.append)
    configs = [proposals.ask(number).config for number in range(30)]
    assert all(config["b"] == config["x"] <= 0.5 for config in configs)
    assert "gets a random config" in said[0]
    assert len(said) > 5


def test_a_deterministic_function_does_not_repeat_configs() -> None:
    planned = study({"a": "choice([1, 2, 3])", "b": tune.sample_from(lambda c: -c["a"])}, trials=9)
    progress = Progress(
        planned,
        Proposals(planned, planned.build_searcher()),
        planned.build_scheduler(),
        slots=2,
        write=lambda event: None,
    )
    while progress.begin():
        pass
    assert progress.exhausted
    assert sorted(trial.config["a"] for trial in progress.trials.values()) == [1, 2, 3]


def run(planned: Study, events: list[Event], until: int) -> None:
    """Resumes a study from its events, and runs it until this number of trials has begun."""
    progress = Progress(
        planned,
        Proposals(planned, planned.build_searcher()),
        planned.build_scheduler(),
        slots=1,
        write=events.append,
    )
    progress.replay(json.loads(json.dumps(events)))
    while len(progress.trials) < until and (trial := progress.begin()):
        progress.report(trial.trial, 1, {"loss": trial.config["lr"]}, seconds=0.1)
        progress.end(trial.trial, "completed")


def test_a_resumed_study_proposes_the_same(file: Path, tmp_path: Path) -> None:
    planned = study(read_space(f"{file}:SPACE"))
    whole: list[Event] = []
    run(planned, whole, until=12)
    directory = tmp_path / "results" / "s"
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text(planned.to_yaml())
    parts: list[Event] = []
    for until in (3, 7, 12):
        run(plan(read_resumed(directory, {}), slots=1)[0], parts, until)
    configs = [[e["config"] for e in events if e["event"] == "start"] for events in (whole, parts)]
    assert configs[0] == configs[1]
    assert len({config["any"] for config in configs[0]}) == 12
    for config in configs[0]:
        assert config["ten"] == pytest.approx(10 * config["lr"])
        given = planned.space.given(config)["optim"]
        assert (given["wd"], given["betas"]) == (config["ten"] / 2, (0.9, 0.99))


def test_study_yaml_names_the_file_which_only_a_run_needs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    file.with_name("drawn_train.py").write_text(FILE + "\ndef train(config): ...\n")
    trainable = "drawn_train.py:train"
    for space, name in ((None, "drawn_train.py"), (read_space("drawn_space.py:SPACE"), file.name)):
        text = study(space, trainable=trainable).to_yaml()
        assert f"sample_from('{file.with_name(name)}:SPACE')" in text
    directory = tmp_path / "results" / "s"
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text(text)
    file.rename(tmp_path / "moved")
    del sys.modules["drawn_space"]
    assert set(read_saved(directory).space.drawn) == {"ten", "any", "optim/wd"}
    with pytest.raises(UsageError) as refused:
        read_resumed(directory, {})
    assert refused.value.mistakes[0] == (
        f"sample_from of 'ten' needs its function in {file}:SPACE: {file} does not exist; there "
        f"is {tmp_path}/drawn_train.py. Restore the file, or correct its path in study.yaml"
    )
    file.write_text("SPACE = {'ten': 1}")
    with pytest.raises(UsageError, match="SPACE has no sample_from 'ten' there"):
        read_resumed(directory, {})


# ── randn ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("searcher", [name for name in SEARCHERS if name != "grid"])
def test_every_searcher_works_with_normal_numbers(searcher: str) -> None:
    if searcher == "hebo":
        pytest.importorskip("hebo", reason="HEBO is not installed")
    space = {"x": tune.randn(5, 2), "y": tune.qrandn(0, 1, 0.25)}
    options = {"min_points": 2} if searcher == "bohb" else {"startup": 3}
    planned = study(
        space,
        searcher=searcher,
        searcher_options={} if searcher == "random" else options,
        scheduler="bohb" if searcher == "bohb" else "none",
        scheduler_options={"max_epochs": 9},
    )
    built = planned.build_searcher()
    for number in range(8):
        config = built.propose(number)
        assert planned.space.mistakes(config) == []
        assert config["y"] % 0.25 == 0
        score = (config["x"] - 6) ** 2 + config["y"] ** 2
        built.begin(str(number), config)
        built.report(str(number), 1, score)
        built.end(str(number), score)
