"""Properties of the space: its domains, its conditions and its configs."""

import json
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import tune

from siftune.errors import UsageError
from siftune.space import Space, key, when
from siftune.space import text as domain_text
from siftune.space.domains import Choice, Domain, Float, Integer
from siftune.study.planning import plan
from siftune.study.reading import read
from siftune.study.text import parse_yaml

# ── Any space ───────────────────────────────────────────────────────────────────────────────────


@st.composite
def floats(draw: st.DrawFn) -> Float:
    log = draw(st.booleans())
    bound = st.floats(1e-8 if log else -1e6, 1e6, allow_subnormal=False)
    low, high = sorted((draw(bound), draw(bound)))
    return Float(low, high, log=log)


@st.composite
def stepped_floats(draw: st.DrawFn) -> Float:
    step = draw(st.sampled_from([0.1, 0.25, 0.001, 3.0, 1e-5]))
    log = draw(st.booleans())
    first = draw(st.integers(1 if log else -20, 20))
    low, high = first * step, (first + draw(st.integers(0, 20))) * step
    # Bounds need not be multiples of the step, as long as one multiple lies between them.
    return Float(low - draw(st.sampled_from([0.0, 0.3])) * step, high, log=log, step=step)


@st.composite
def integers(draw: st.DrawFn) -> Integer:
    log, step = draw(st.booleans()), draw(st.integers(1, 5))
    low = draw(st.integers(1 if log else -50, 50))
    return Integer(low, low + step - 1 + draw(st.integers(0, 40)), log=log, step=step)


options = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-10, 10),
    st.sampled_from(["sgd", "adam", "it's", 'a "b" if c', "", "uniform(0, 1)", "é\n"]),
    st.lists(st.integers(0, 2), max_size=2),
)


def choices(of: st.SearchStrategy = options) -> st.SearchStrategy[Choice]:
    return st.lists(of, min_size=1, max_size=4).map(_distinct).map(tuple).map(Choice)


def _distinct(values: list) -> list:
    return [value for i, value in enumerate(values) if value not in values[:i]]


finite_domains = st.one_of(stepped_floats(), integers(), choices(), choices(st.integers(0, 9)))
all_domains = st.one_of(floats(), finite_domains)


@st.composite
def spaces(draw: st.DrawFn, of: st.SearchStrategy[Domain] = all_domains, most: int = 5) -> Space:
    """Draws spaces with a constant and with parameters that depend on others, in any order."""
    entries: dict[str, Any] = {"num_classes": 10}
    for name in "abcdefgh"[: draw(st.integers(1, most))]:
        domain = draw(of)
        condition = draw(st.none() | conditions([n for n in entries if n != name], entries))
        entries[name] = when(condition, domain) if condition else domain
    return Space.read(dict(draw(st.permutations(list(entries.items())))))


@st.composite
def conditions(draw: st.DrawFn, names: list[str], entries: dict[str, Any]) -> str:
    def comparison() -> str:
        name = draw(st.sampled_from(names))
        entry = entries[name]
        domain = getattr(entry, "domain", entry)
        values = domain.options if isinstance(domain, Choice) else [10]
        if isinstance(domain, Float | Integer):
            operator = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
            values = [domain.low, domain.high, domain.default()]
        else:
            operator = draw(st.sampled_from(["==", "!="]))
        text = f"{name} {operator} {draw(st.sampled_from(list(values)))!r}"
        return draw(st.sampled_from([text, f"not {text}"]))

    parts = [comparison() for _ in range(draw(st.integers(1, 2)))]
    return draw(st.sampled_from([" and ", " or "])).join(parts)


seeds = st.integers(0, 2**32 - 1)


def sample(space: Space, seed: int) -> dict[str, Any]:
    return space.sample(np.random.default_rng(seed))


def active(space: Space, config: dict[str, Any]) -> set[str]:
    """Returns the active parameters: those for which another value gives another config."""
    return {
        name
        for name, parameter in space.parameters.items()
        for u in (0.0, 1.0)
        if (size := parameter.domain.size) != 1
        and space.canonical(
            config
            | {
                name: parameter.domain.decode(
                    u if parameter.domain.kind == "unit" else int(u * ((size or 1) - 1))
                )
            }
        )
        != config
    }


slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ── Configs ─────────────────────────────────────────────────────────────────────────────────────


@slow
@given(spaces(), seeds)
def test_text_reads_back_as_the_same_space(space: Space, seed: int) -> None:
    text = space.to_dict()
    again = Space.read(yaml.safe_load(yaml.safe_dump(text, sort_keys=False)))
    assert again.to_dict() == Space.read(text).to_dict()
    assert [p.domain for p in again.parameters.values()] == [
        p.domain for p in space.parameters.values()
    ]
    assert again.constants == space.constants
    assert sample(again, seed) == sample(space, seed)


@slow
@given(spaces(), seeds)
def test_sample_is_valid_and_canonical(space: Space, seed: int) -> None:
    config = sample(space, seed)
    assert space.mistakes(config) == []
    assert key(space.canonical(config)) == key(config)
    assert list(config) == space.names


@slow
@given(spaces(), seeds)
def test_decode_undoes_encode(space: Space, seed: int) -> None:
    config = sample(space, seed)
    coordinates = space.encode(config)
    decoded = space.decode(coordinates)
    for name, parameter in space.parameters.items():
        domain, coordinate = parameter.domain, coordinates[name]
        if domain.kind == "unit":
            assert 0 <= coordinate <= 1
        else:
            assert isinstance(coordinate, int)
            assert 0 <= coordinate < (domain.size or 0)
        if isinstance(domain, Float) and domain.step is None:
            width = max(abs(domain.low), abs(domain.high))
            tolerance = {"rel": 1e-9} if domain.log else {"rel": 1e-9, "abs": 1e-9 * width}
            assert decoded[name] == pytest.approx(config[name], **tolerance)
        else:
            assert decoded[name] == config[name]


@slow
@given(spaces(), seeds, seeds)
def test_inactive_parameters_never_distinguish_two_configs(
    space: Space, seed: int, other: int
) -> None:
    config = sample(space, seed)
    fixed = set(space.parameters) - active(space, config)
    elsewhere = sample(space, other)
    for name in fixed:
        assert space.canonical(config | {name: elsewhere[name]}) == config
    assert space.canonical({n: v for n, v in config.items() if n not in space.constants}) == config


@slow
@given(spaces(of=finite_domains, most=3))
def test_grid_yields_each_config_once(space: Space) -> None:
    size = space.size()
    if size is None or size > 2000:
        return
    keys = [key(config) for config in space.grid()]
    assert len(keys) == len(set(keys)) == size
    assert all(key(space.canonical(json.loads(k))) == k for k in keys)
    assert {key(sample(space, seed)) for seed in range(20)} <= set(keys)


@given(all_domains)
def test_domain_agrees_with_itself(domain: Domain) -> None:
    assert domain.mistakes() == []
    assert domain_text.parse(str(domain)) == (domain, None)
    assert domain.contains(domain.default())
    values = domain.values()
    assert (values is None) == (domain.size is None)
    for value in values or [domain.default()]:
        assert domain.contains(value)
        assert repr(domain.canonical(value)) == repr(value)
    if values is not None:
        assert len(values) == domain.size
        assert repr(domain.default()) in [repr(value) for value in values]
    if isinstance(domain, Float | Integer) and values is not None and domain.step:
        step = domain.step
        assert all(v == pytest.approx(round(v / step) * step) for v in values) or len(values) == 1


def test_a_float_is_a_float_wherever_it_comes_from() -> None:
    space = Space.read({"x": "uniform(0, 1)", "y": "uniform(0, 1) if x > 0.5"})
    assert key(space.canonical({"x": 1, "y": 0})) == '{"x": 1.0, "y": 0.0}'
    assert key(space.canonical({"x": 0, "y": 1})) == '{"x": 0.0, "y": 0.0}'


def test_conditions_on_conditions() -> None:
    space = Space.read(
        {
            "c": "choice([3, 5]) if b > 0",
            "b": "choice([0, 1]) if a == 'x'",
            "a": "choice(['y', 'x'])",
        }
    )
    assert space.canonical({"a": "x", "b": 1, "c": 5}) == {"c": 5, "b": 1, "a": "x"}
    assert space.canonical({"a": "x", "b": 0, "c": 5}) == {"c": 3, "b": 0, "a": "x"}
    # A parameter that depends on an inactive one is inactive too, whatever value that one has.
    assert space.canonical({"a": "y", "b": 1, "c": 5}) == {"c": 3, "b": 0, "a": "y"}
    assert space.size() == 4


def test_size_does_not_count_the_uncountable() -> None:
    assert Space.read({"x": "uniform(0, 1)"}).size() is None
    assert Space.read({"n": "randint(0, 1000000000000)"}).size() is None
    assert Space.read({"x": "quniform(0, 1000000000, 0.001)"}).size() is None
    assert Space.read({"x": "uniform(2, 2)", "n": "randint(0, 5)"}).size() == 5
    assert Space.read({"classes": 10}).size() == 1


def test_grid_of_a_continuous_domain_says_how_to_discretise_it() -> None:
    space = Space.read({"lr": "loguniform(1e-5, 1e-3)", "x": "uniform(0, 1)", "n": "randint(0, 3)"})
    with pytest.raises(UsageError) as caught:
        next(space.grid())
    assert len(caught.value.mistakes) == 2
    assert "--set 'lr=choice([1e-05, 0.0001, 0.001])'" in caught.value.mistakes[0]


def test_config_mistakes_are_named() -> None:
    space = Space.read({"lr": "loguniform(1e-5, 1e-2)", "n": "randint(0, 3)", "a": "choice(['x'])"})
    assert space.mistakes({"lr": 1, "n": 1.5}) == [
        "the config lacks 'a'",
        "lr must be in loguniform(1e-05, 0.01), got 1",
        "n must be in randint(0, 3), got 1.5",
    ]


# ── Override ────────────────────────────────────────────────────────────────────────────────────

LAYERS = Space.read(
    {
        "channels": tune.choice([0, 16]),
        "kernel": when("channels > 0", tune.choice([3, 5])),
        "classes": 10,
    }
)


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"kernel": "choice([7, 9])"}, {"kernel": "choice([7, 9]) if channels > 0"}),
        ({"kernel": tune.randint(3, 6)}, {"kernel": "randint(3, 6) if channels > 0"}),
        (
            {"kernel": "choice([7]) if channels == 16"},
            {"kernel": "choice([7]) if channels == 16"},
        ),
        (
            {"kernel": when("channels == 16", tune.choice([7]))},
            {"kernel": "choice([7]) if channels == 16"},
        ),
        ({"kernel": 7}, {"kernel": 7}),
        ({"channels": 16, "classes": 3}, {"channels": 16, "classes": 3}),
        ({}, {}),
    ],
)
def test_override_keeps_conditions(settings: dict, written: dict) -> None:
    assert LAYERS.override(settings).to_dict() == LAYERS.to_dict() | written


def test_override_names_all_mistakes() -> None:
    with pytest.raises(UsageError) as caught:
        LAYERS.override({"kernal": 3, "kernel": "chioce([3])", "channels": "choice([])"})
    unknown, *others = caught.value.mistakes
    assert unknown == "unknown parameter 'kernal'; the space has: channels, kernel, classes"
    assert sorted(mistake.split(":")[0] for mistake in others) == [
        "parameter 'channels'",
        "parameter 'kernel'",
    ]


# ── Ray Tune's objects ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "uniform(0.0, 1.0)",
        "uniform(-1, 1)",
        "loguniform(1e-05, 0.01)",
        "quniform(0.0, 1.0, 0.1)",
        "quniform(0, 10, 2)",
        "qloguniform(0.001, 1.0, 0.001)",
        "randint(1, 5)",
        "lograndint(1, 5)",
        "qrandint(2, 10, 2)",
        "qrandint(2, 9)",
        "qlograndint(2, 10, 2)",
        "choice([1, 2.5, 'x', None, False, [3, 3]])",
        "choice([(3, 3), (5, 5)])",
        "choice([{'a': 1}, {'a': 2}])",
        "grid_search([1, 2])",
        "uniform(lower=0, upper=1)",
        "quniform(lower=0, upper=1, q=0.5)",
        "choice(categories=[1, 2])",
        "grid_search(values=[1, 2])",
    ],
)
def test_ray_tunes_object_and_its_text_are_one_domain(text: str) -> None:
    # Safe to evaluate: the texts are written in this file, and each calls a function of Ray Tune.
    domain = domain_text.from_ray(eval(f"tune.{text}"))
    assert domain is not None
    assert domain.mistakes() == []
    for written in (text, f"tune.{text}", f"  {text} ", str(domain)):
        assert domain_text.parse(written) == (domain, None)


@pytest.mark.parametrize(
    ("given", "lowest", "highest"),
    [
        (tune.randint(1, 5), 1, 4),
        (tune.lograndint(1, 5), 1, 4),
        (tune.qrandint(2, 10, 2), 2, 10),
        (tune.qlograndint(2, 10, 2), 2, 10),
        (tune.quniform(0.5, 1.0, 0.25), 0.5, 1.0),
    ],
)
def test_bounds_are_those_of_ray_tune(given: Any, lowest: float, highest: float) -> None:
    domain = domain_text.from_ray(given)
    assert domain is not None
    values = domain.values() or ()
    assert (min(values), max(values)) == (lowest, highest)
    drawn = [given.sample(random_state=np.random.default_rng(i)) for i in range(200)]
    assert (min(drawn), max(drawn)) == (lowest, highest)
    assert set(map(float, drawn)) <= set(map(float, values))


def test_numpys_numbers_become_pythons() -> None:
    space = Space.read(
        {
            "lr": tune.choice(list(np.array([0.1, 0.2]))),
            "wd": tune.choice(np.array([1, 2])),
            "n": tune.randint(np.int64(1), np.int64(3)),
            "x": tune.uniform(np.float64(0), np.float64(1)),
            "classes": np.int64(10),
            "shape": (np.int64(1), 2),
        }
    )
    assert space.to_dict() == {
        "lr": "choice([0.1, 0.2])",
        "wd": "choice([1, 2])",
        "n": "randint(1, 3)",
        "x": "uniform(0.0, 1.0)",
        "classes": 10,
        "shape": (1, 2),
    }


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────


def mistakes(**entries: Any) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        Space.read(entries)
    return caught.value.mistakes


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("uniform(3, 2)", "low must not be above high, got low 3 and high 2"),
        (tune.uniform(3, 2), "low must not be above high, got low 3 and high 2"),
        ("randint(3, 3)", "low must not be above high"),
        ("loguniform(0, 1)", "a log scale must begin above 0, got 0"),
        ("lograndint(0, 8)", "a log scale must begin above 0, got 0"),
        ("loguniform(-1e-5, 1)", "a log scale must begin above 0, got -1e-05"),
        ("uniform(0, 1e999)", "low and high must be finite numbers, got 0 and inf"),
        ("uniform('a', 'b')", "low and high must be finite numbers, got 'a' and 'b'"),
        ("uniform(True, 2)", "low and high must be finite numbers, got True and 2"),
        ("randint(1.5, 4)", "low, high and step must be whole numbers, got 1.5, 3, 1"),
        ("qrandint(1, 4, 0.5)", "low, high and step must be whole numbers, got 1, 4, 0.5"),
        ("choice([])", "a choice needs at least one option, got none"),
        (tune.choice([]), "a choice needs at least one option, got none"),
        (tune.grid_search([]), "a choice needs at least one option, got none"),
        ("choice([1, 2, 1])", "a choice must not repeat an option, got 1"),
        ("choice([1, True])", "a choice must not repeat an option, got True"),
        ("choice('abc')", "a choice needs a list of options, got 'abc'"),
        ("choice(3)", "a choice needs a list of options, got 3"),
        ({"grid_search": 3}, "a choice needs a list of options, got 3"),
        (tune.choice([len]), "an option must be a number, text or a list, got <built-in"),
        (tune.choice([float("nan")]), "an option must be a number, text or a list, got nan"),
        (tune.choice([tune.uniform(0, 1)]), "an option must be a number, text or a list, got"),
        ("quniform(0, 1, 0)", "the step must be a number above 0, got 0"),
        ("quniform(0, 1, -0.1)", "the step must be a number above 0, got -0.1"),
        ("quniform(0, 1, 1e999)", "the step must be a number above 0, got inf"),
        ("quniform(0.2, 0.8, 1)", "no multiple of 1 lies between 0.2 and 0.8"),
        ("qrandint(4, 5, 3)", "no multiple of 3 lies between 4 and 5"),
        ("quniform(0, 1)", "quniform() missing 1 required positional argument: 'q'"),
        ("uniform(0, 1, 2)", "uniform() takes 2 positional arguments but 3 were given"),
        ("uniform(0, high=1)", "uniform() got an unexpected keyword argument 'high'"),
        ("unifrom(0, 1)", "unknown domain 'unifrom'; known: choice, grid_search, lograndint"),
        ("uniform(0, 1", "is not a domain: is a bracket, quote or comma missing?"),
        ("choice([1, 2)", "is not a domain: is a bracket, quote or comma missing?"),
        ("uniform(0, 1) if", "is not a domain: is a bracket, quote or comma missing?"),
        ("uniform(0, x)", "is not a domain: is x text? Write 'x', with quotes"),
        ("loguniformm(1e-5, 1)", "unknown domain 'loguniformm'"),
        ("normal(0, 1)", "unknown domain 'normal'"),
        ("tune.something(0, 1)", "unknown domain 'something'"),
        ("uniform(0, __import__('os'))", "is not a domain: is __import__ text?"),
        ("randn(0, 0)", "the standard deviation must be above 0, got 0"),
        (when("depth > 1", tune.sample_from(len)), "sample_from cannot have the condition"),
        ("sample_from(lambda config: 1)", "has a function, which only a Python file can hold"),
        ({"grid_search": [1], "more": 2}, "grid_search must be the only entry"),
        (len, "a constant must be a number, text, or a list of them, got <built-in"),
        (when("depth > 1", "uniform(1, 0)"), "low must not be above high, got low 1 and high 0"),
        (when("depth > 1", "choice([3]) if depth > 2"), "two conditions, 'depth > 1' and"),
        (when("", "choice([3])"), "cannot read the condition ''"),
        (when("depth >", "choice([3])"), "cannot read the condition 'depth >'"),
        ("choice([3]) if 1 < 2", "the condition '1 < 2' names no parameter"),
        ("choice([3]) if dept > 2", "its condition 'dept > 2' names 'dept', which the space does"),
        ("choice([3]) if depth + 1 > 2", "may contain only comparisons"),
        ("choice([3]) if depth and 1", "may contain only comparisons"),
        ("choice([3]) if depth.real > 2", "names 'depth.real', which the space does not have"),
        ("choice([3]) if depth > __import__('os')", "may contain only comparisons"),
        ("choice([3]) if depth > [x for x in (1,)]", "may contain only comparisons"),
        ("choice([3]) if depth > 'a'", "'>' not supported between instances of 'int' and 'str'"),
        ("choice([3]) if text > 1", "'>' not supported between instances of 'str' and 'int'"),
        ("choice([3]) if classes in 3", "argument of type 'int' is not"),
        ("choice([3]) if bad > 3", "the conditions of bad depend on one another"),
    ],
)
def test_malformed_entry_is_a_usage_error(entry: Any, message: str) -> None:
    (mistake,) = mistakes(
        bad=entry, depth=tune.randint(1, 5), text=tune.choice(["a", "b"]), classes=10
    )
    assert "bad" in mistake
    assert message in mistake


def test_circular_conditions_are_named() -> None:
    circle = {"a": "choice([1, 2]) if c > 1", "b": "choice([1, 2]) if a > 1"}
    assert mistakes(**circle, c="choice([1, 2]) if b > 1", d="choice([1, 2])") == (
        "the conditions of a, b, c depend on one another",
    )


def test_all_mistakes_come_together() -> None:
    texts = mistakes(
        lr="loguniform(0, 1)",
        width="randn(0, 0)",
        depth="randint(5, 2) if wdith > 2",
        a="choice([1, 2]) if b > 1",
        b="choice([1, 2]) if a > 1",
        c="choice(['x', 'y'])",
        d="choice([1]) if c > 1",
        e={"f": len},
    )
    assert [mistake.split(":")[0] for mistake in texts] == [
        "parameter 'lr'",
        "parameter 'width'",
        "parameter 'depth'",
        "parameter 'depth'",
        "parameter 'e/f'",
        "parameter 'd'",
        "the conditions of a, b depend on one another",
    ]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a..b", "../a", "a=b", 3, None])
def test_names_that_no_script_or_file_could_take_are_refused(name: Any) -> None:
    with pytest.raises(UsageError, match="parameter names must be letters and digits"):
        Space.read({name: 1})


@pytest.mark.parametrize(
    "text",
    [
        "relu",
        "1E5",
        "null",
        "yes",
        "what if",
        "a if b",
        "",
        "1e-3",
        "path/to (1)",
        "x\0y",
        "print(1)",
        "os.system('')",
    ],
)
def test_plain_text_is_a_constant(text: str) -> None:
    space = Space.read({"name": text})
    assert space.constants == {"name": text}
    saved = plan(read([{"trainable": "t.py:f", "name": "s", "space": space}], {}), slots=1)[0]
    assert Space.read(parse_yaml(saved.to_yaml())["space"]).constants == {"name": text}


# ── Names, nesting, tuples ──────────────────────────────────────────────────────────────────────


def test_names_may_have_dots_dashes_and_slashes() -> None:
    space = Space.read(
        {
            "model.depth": "choice([1, 2])",
            "batch-size": "choice([16, 32])",
            "optim/lr": "loguniform(1e-5, 1)",
            "a": when("model.depth > 1 and batch-size == 16", tune.uniform(0, 1)),
            "b": "uniform(0, 1) if optim/lr > 0.01",
        }
    )
    rng = np.random.default_rng(0)
    for config in (space.sample(rng) for _ in range(20)):
        active = space.active(config)
        assert ("a" in active) == (config["model.depth"] == 2 and config["batch-size"] == 16)
        assert ("b" in active) == (config["optim/lr"] > 0.01)
        assert space.given(config) == config  # flat as it was given


def nested() -> Space:
    return Space.read(
        {
            "optim": {"lr": tune.loguniform(1e-5, 1), "betas": (0.9, 0.999), "name": "adam"},
            "model": {"head": {"widths": tune.choice([(8, 8), (16,)])}},
            "fixed": {"x": 1, "none": None},
            "text": "print(1)",
            "epochs": 3,
        }
    )


@pytest.mark.parametrize("saved", [False, True])
def test_a_nested_space_is_given_back_nested_with_its_tuples(saved: bool) -> None:
    space = nested()
    if saved:  # and through study.yaml and the journal
        layer = {"trainable": "t.py:f", "name": "s", "space": space}
        text = plan(read([layer], {}), slots=1)[0].to_yaml()
        space = Space.read(parse_yaml(text)["space"])
    assert set(space.parameters) == {"optim/lr", "model/head/widths"}
    config = json.loads(json.dumps(space.sample(np.random.default_rng(0))))
    given = space.given(space.canonical(config))
    assert given["optim"]["betas"] == (0.9, 0.999)
    assert given["model"]["head"]["widths"] in ((8, 8), (16,))
    assert given["fixed"] == {"x": 1, "none": None}
    assert given["text"] == "print(1)"
    assert list(given) == ["optim", "model", "fixed", "text", "epochs"] or saved


def test_keys_of_nested_dictionaries_stay_numbers() -> None:
    space = Space.read({"layers": {1: 64, 2: {3: tune.choice([8])}}})
    space = Space.read(parse_yaml(yaml.safe_dump(space.to_dict())))
    assert space.given(sample(space, 0)) == {"layers": {1: 64, 2: {3: 8}}}


@pytest.mark.parametrize("reference", ["m.a.b", "m/a/b", "m/a.b"])
def test_conditions_name_nested_entries_with_dots_or_slashes(reference: str) -> None:
    space = Space.read(
        {
            "m": {"a": {"b": tune.choice([0, 1])}, "c": when(f"{reference} > 0", "uniform(0, 1)")},
            "m.a.b.c": "choice([0, 1])",  # another name
            "d": f"uniform(0, 1) if {reference} < 1 and m.a.b.c == 1 and name != 'm.a.b'",
            "name": "m/a/b",
        }
    )
    for seed in range(20):
        config = sample(space, seed)
        active = space.active(config)
        assert ("m/c" in active) == (config["m/a/b"] == 1)
        assert ("d" in active) == (config["m/a/b"] == 0 and config["m.a.b.c"] == 1)
    assert Space.read(space.to_dict()).to_dict() == space.to_dict()


def test_text_that_looks_like_a_domain_can_be_a_choice() -> None:
    (mistake,) = mistakes(bad="normalize(0.5)")
    assert mistake.endswith("write choice(['normalize(0.5)'])")
    assert sample(Space.read({"a": "choice(['normalize(0.5)'])"}), 0) == {"a": "normalize(0.5)"}


def test_set_reaches_nested_entries_with_dots_or_slashes() -> None:
    space = nested().override({"optim.lr": 0.1, "model/head/widths": "choice([(4,)])"})
    assert space.given(space.sample(np.random.default_rng(0)))["optim"]["lr"] == 0.1
    assert space.given(space.sample(np.random.default_rng(0)))["model"]["head"]["widths"] == (4,)


def test_an_entry_that_is_given_flat_and_nested_is_refused() -> None:
    with pytest.raises(UsageError, match="'a/b' is given twice"):
        Space.read({"a/b": 1, "a": {"b": 2}})


@pytest.mark.parametrize("domain", [tune.randn(2, 3), tune.qrandn(2, 3, 0.5), "randn(2, 3)"])
def test_normal_numbers_are_drawn_as_such(domain: Any) -> None:
    space = Space.read({"x": domain})
    rng = np.random.default_rng(0)
    values = np.array([space.sample(rng)["x"] for _ in range(2000)])
    assert abs(values.mean() - 2) < 0.2
    assert abs(values.std() - 3) < 0.2
    again = Space.read(space.to_dict())
    assert again.to_dict() == space.to_dict()
    assert again.canonical({"x": values[0]})["x"] == values[0]


@pytest.mark.parametrize("high", [2**31, 2**63, 2**64])
def test_wide_integers_take_no_memory(high: int) -> None:
    space = Space.read({"n": tune.randint(0, high), "m": f"randint(0, {high})"})
    rng = np.random.default_rng(0)
    for _ in range(50):
        config = space.sample(rng)
        assert all(0 <= value < high for value in config.values())
        assert space.canonical(config) == config
    domain = space.parameters["n"].domain
    assert domain.kind == "unit"
    assert domain.canonical(high - 1) == high - 1
    next(space.grid())  # lazily


def test_yaml_words_in_a_choice_are_values() -> None:
    assert Space.read({"amp": "choice([true, false, null])"}).options("amp") == (True, False, None)


def test_configs_that_differ_in_single_precision_only_are_one() -> None:
    space = Space.read({"lr": "loguniform(1e-5, 1)", "n": "randint(0, 5)"})
    config = space.sample(np.random.default_rng(0))
    rounded = {name: float(np.float32(u)) for name, u in space.encode(config).items()}
    assert space.decode(rounded) != config
    assert space.identity(space.decode(rounded)) == space.identity(config)
    assert space.identity(config | {"n": (config["n"] + 1) % 5}) != space.identity(config)


def _read_again(space: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config that a function gets, of a study and of its study.yaml."""
    layer = {"trainable": "t.py:f", "name": "s", "searcher": "random", "trials": 2}
    study, _ = plan(read([layer | {"space": space}], changes), slots=1)
    again = read([parse_yaml(study.to_yaml())], {})
    first, second = (s.space.sample(np.random.default_rng(3)) for s in (study, again))
    return study.space.given(first), again.space.given(second)


ODD_VALUES = [(0.9, 0.99), ((1, 2), [3, (4,)]), (), "print(1)", None, True, ""]
ODD_VALUES += [
    "1e-3",
    "1",
    "0x10",
    "2024-01-01",
    "12:30",
    "null",
    "yes",
    "a: b",
    "# c",
    "!x",
    "[1]",
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_odd_values_survive_studyyaml(value: Any) -> None:
    for space in (
        {"a": value},
        {"a": {"b": {"c": value}}},
        {"a": tune.choice([value])},
        {"a": {"b": tune.choice([value, "other"])}},
    ):
        got, again = _read_again(space)
        assert repr(again) == repr(got)
        if space["a"] == value:
            assert repr(got["a"]) == repr(value)
    assert repr(_read_again({"a": 1}, a=value)[0]["a"]) == repr(value)


@pytest.mark.parametrize("value", [{1}, b"x", 1j, len], ids=["set", "bytes", "complex", "len"])
def test_values_that_no_file_can_hold_are_refused(value: Any) -> None:
    for space in ({"a": value}, {"a": {"b": value}}, {"a": tune.choice([value, 2])}):
        with pytest.raises(UsageError, match="must be a number, text"):
            Space.read(space)
