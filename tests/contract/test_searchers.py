"""Properties of every searcher, whatever library it uses."""

import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from siftune.errors import UsageError
from siftune.searchers import SEARCHERS
from siftune.searchers.base import Searcher, SpaceExhausted
from siftune.searchers.optuna import SAMPLERS
from siftune.space import Config, Space, key

# Like the default space of mnist, with entries that are difficult for libraries: parameters with
# one value, and a range of whole numbers on a log scale.
ENTRIES: dict[str, Any] = {
    "lr": "loguniform(1e-5, 5e-3)",
    "batch_size": "choice([64, 16, 128, 32])",
    "optimizer": "choice(['adam', 'sgd', 'adamw'])",
    "weight_decay": "uniform(0, 0.1)",
    "conv3_channels": "choice([0, 16, 32, 64])",
    "kernel3": "choice([3, 5, 7]) if conv3_channels > 0",
    "dropout": "quniform(0, 0.5, 0.05)",
    "fc_dim": "lograndint(64, 512)",
    "scheduler": "choice(['none', 'cosine', 'step'])",
    "step_size": "choice([10, 20, 30]) if scheduler == 'step'",
    "gamma": "uniform(0.1, 0.9) if scheduler == 'step'",
    "depth": "randint(1, 5)",
    "activation": "choice(['relu'])",
    "momentum": "uniform(0.9, 0.9)",
    "num_classes": 10,
}
MIXED = Space.read(ENTRIES)
FINITE = MIXED.override(
    {
        "lr": "choice([1e-5, 1e-4, 1e-3])",
        "weight_decay": "choice([0.0, 0.1])",
        "dropout": 0.1,
        "fc_dim": 64,
        "batch_size": 16,
        "depth": 2,
        "gamma": "choice([0.1, 0.5])",
    }
)
SINGLE = Space.read({"activation": "choice(['relu'])", "momentum": "uniform(0.9, 0.9)"})


@dataclass(frozen=True)
class Case:
    """A searcher, and the number of proposals after which it must have learnt."""

    name: str
    proposals: int = 40
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    learns: bool = True

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.options.values())])

    @property
    def space(self) -> Space:
        return FINITE if self.name == "grid" else MIXED

    def build(self, space: Space | None = None, seed: int = 2) -> Searcher:
        return SEARCHERS.build(self.name, self.options, space=space or self.space, seed=seed)


CASES = [
    Case("random", learns=False),
    Case("grid", learns=False),
    *(
        Case("optuna", proposals, {"sampler": sampler}, learns=sampler != "qmc")
        for sampler, proposals in
        # The last two use populations and take longer to learn.
        {"tpe": 40, "gp": 36, "qmc": 40, "cmaes": 120, "nsga2": 120}.items()
    ),
    Case("hebo", 26, {"startup": 10}),
    Case("bohb", 120),
    Case("bayesopt", 36),
    Case("portfolio", 36),
]
every_searcher = pytest.mark.parametrize("case", CASES, ids=str)


def loss(config: Config) -> float:
    """Returns a loss that is cheap to compute and depends on every kind of parameter."""
    return (
        (math.log10(config["lr"]) + 3) ** 2
        + 4 * config["dropout"]
        + {"adam": 0.0, "adamw": 0.3, "sgd": 1.5}[config["optimizer"]]
        + abs(config["depth"] - 3) / 2
        + (config["scheduler"] == "step")
    )


Event = Callable[[Searcher], None]


@dataclass
class Record:
    """A searcher, the events that it was told, and the configs that it proposed."""

    searcher: Searcher
    events: list[Event] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        event(self.searcher)
        self.events.append(event)

    def begin(self, trial: str, config: Config) -> None:
        self.tell(lambda searcher: searcher.begin(trial, config))

    def end(self, trial: str, score: float | None) -> None:
        if score is not None:
            for epoch in (1, 2):
                reached = score + 1 / epoch
                self.tell(lambda searcher, e=epoch, s=reached: searcher.report(trial, e, s, 50.0))
        self.tell(lambda searcher: searcher.end(trial, score))

    def replayed(self, searcher: Searcher) -> Searcher:
        for event in self.events:
            event(searcher)
        return searcher


@cache
def studied(case: Case) -> Record:
    """Runs a study on three slots: two trials are always running, and every ninth fails."""
    record = Record(case.build())
    for number in range(case.proposals):
        record.configs.append(record.searcher.propose(number))
        record.begin(f"t{number}", record.configs[-1])
        if number >= 2:
            over = number - 2
            score = None if over % 9 == 8 else loss(record.configs[over])
            record.end(f"t{over}", score)
    return record


def next_proposals(case: Case, searcher: Searcher) -> list[Config]:
    return [searcher.propose(case.proposals, attempt) for attempt in range(2)]


@every_searcher
def test_proposes_only_canonical_configs_of_the_space(case: Case) -> None:
    for config in studied(case).configs:
        assert case.space.mistakes(config) == []
        assert key(case.space.canonical(config)) == key(config)


@every_searcher
def test_restored_searcher_proposes_what_the_original_does(case: Case) -> None:
    original = studied(case)
    restored = original.replayed(case.build())
    assert next_proposals(case, restored) == next_proposals(case, original.searcher)


@every_searcher
def test_proposal_does_not_change_what_is_proposed_later(case: Case) -> None:
    searcher = studied(case).searcher
    assert searcher.propose(case.proposals) == searcher.propose(case.proposals)


@every_searcher
def test_further_attempt_proposes_another_config(case: Case) -> None:
    searcher = studied(case).searcher
    configs = {key(searcher.propose(case.proposals, attempt)) for attempt in (0, 1, 3, 4)}
    assert len(configs) >= 3


@every_searcher
def test_respects_the_seed(case: Case) -> None:
    def proposals(seed: int) -> list[Config]:
        searcher = case.build(seed=seed)
        return [searcher.propose(number) for number in range(3)]

    assert proposals(1) == proposals(1)
    assert (proposals(1) == proposals(2)) == (case.name == "grid")


@pytest.mark.parametrize("case", [c for c in CASES if c.learns], ids=str)
def test_learns_from_results(case: Case) -> None:
    last = studied(case).configs[-case.proposals // 3 :]
    by_chance = [loss(MIXED.sample(np.random.default_rng(k))) for k in range(500)]
    assert np.mean([loss(config) for config in last]) < 0.8 * np.mean(by_chance)


@every_searcher
def test_accepts_failures_before_any_result(case: Case) -> None:
    record = Record(case.build())
    for number in range(24):
        config = record.searcher.propose(number)
        record.begin(f"t{number}", config)
        record.end(f"t{number}", None if number < 12 else loss(config))
    restored = record.replayed(case.build())
    config = record.searcher.propose(24)
    assert case.space.mistakes(config) == []
    assert restored.propose(24) == config


@every_searcher
def test_accepts_results_that_are_all_the_same(case: Case) -> None:
    record = Record(case.build())
    for number in range(20):
        record.begin(f"t{number}", case.space.sample(np.random.default_rng(number)))
        record.end(f"t{number}", 1.0)
    assert case.space.mistakes(record.searcher.propose(20)) == []


LARGEST = sys.float_info.max


DIVERGED = {"half": 2, "all": 1}  # every second trial diverges, or every one
# A proposal of HEBO takes seconds, so it is tested with each value only once.
ONCE = {("half", 1e200), ("all", LARGEST), ("half", -LARGEST)}


@pytest.mark.parametrize(
    ("case", "share", "diverged"),
    [
        pytest.param(case, DIVERGED[name], value, id=f"{case}-{name}-{value}")
        for case in CASES
        for name in DIVERGED
        for value in (1e200, LARGEST, -LARGEST)
        if case.name != "hebo" or (name, value) in ONCE
    ],
)
def test_accepts_scores_of_trials_that_diverged(case: Case, share: int, diverged: float) -> None:
    record = Record(case.build())
    for number in range(20):
        record.begin(f"t{number}", case.space.sample(np.random.default_rng(number)))
        score = diverged if number % share == 0 else number / 20
        if number == 9:
            record.end(f"t{number}", None)
        else:
            record.end(f"t{number}", score)
    restored = record.replayed(case.build())
    config = record.searcher.propose(20)
    assert case.space.mistakes(config) == []
    assert restored.propose(20) == config


# Searchers that model the scores themselves, not their ranks.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bayesopt", {"acquisition": "ucb", "kappa": 0.5}),
        ("bayesopt", {"acquisition": "ei"}),
        ("bayesopt", {"acquisition": "poi"}),
        ("optuna", {"sampler": "gp"}),
    ],
    ids=["bayesopt-ucb", "bayesopt-ei", "bayesopt-poi", "optuna-gp"],
)
@pytest.mark.parametrize("diverged", [1e200, LARGEST])
def test_learns_beside_trials_that_diverged(
    name: str, options: dict[str, Any], diverged: float
) -> None:
    learns_beside_trials_that_diverged(name, options, diverged)


def test_hebo_learns_beside_trials_that_diverged() -> None:
    learns_beside_trials_that_diverged("hebo", {}, LARGEST)  # only once, because it takes 15 s


def learns_beside_trials_that_diverged(name: str, options: dict[str, Any], diverged: float) -> None:
    space = Space.read({"x": "uniform(0, 1)", "y": "uniform(0, 1)"})
    searcher = Case(name, options=options | {"startup": 5}).build(space)
    losses = []
    for number in range(20):
        config = searcher.propose(number)
        searcher.begin(f"t{number}", config)
        losses.append((config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2)
        searcher.end(f"t{number}", diverged if config["x"] > 0.6 else losses[-1])
    # At random, one of the last nine proposals comes this close in one study of twelve.
    assert min(losses[-9:]) < 0.003


@pytest.mark.parametrize("case", [c for c in CASES if str(c) != "optuna-cmaes"], ids=str)
def test_proposes_the_only_config_there_is(case: Case) -> None:
    record = Record(case.build(SINGLE))
    config = record.searcher.propose(0)
    assert config == {"activation": "relu", "momentum": 0.9}
    record.begin("t0", config)
    record.end("t0", 1.0)
    if case.name != "grid":
        assert record.searcher.propose(1) == config


@every_searcher
def test_leaves_the_global_random_state_and_threads_alone(case: Case) -> None:
    searcher = studied(case).searcher

    def state() -> list[Any]:
        numpy_state = np.random.get_state(legacy=False)["state"]
        torch_state = torch.random.get_rng_state().tolist()
        return [
            random.getstate(),
            numpy_state["key"].tolist(),
            numpy_state["pos"],
            torch_state,
            torch.get_num_threads(),
        ]

    before = state()
    searcher.propose(case.proposals)
    assert state() == before


def test_grid_proposes_every_config_once_and_then_says_so() -> None:
    searcher = Case("grid").build()
    size = FINITE.size()
    assert size is not None
    proposed = [searcher.propose(number) for number in range(size)]
    assert proposed == list(FINITE.grid())
    assert searcher.propose(0, attempt=3) == proposed[3]
    with pytest.raises(SpaceExhausted):
        searcher.propose(size)


def test_grid_refuses_a_continuous_domain() -> None:
    with pytest.raises(UsageError, match="'lr' is continuous"):
        Case("grid").build(MIXED)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("optuna", {"sampler": "tpo"}, f"must be one of {', '.join(SAMPLERS)}, got 'tpo'"),
        ("optuna", {"startup": 0}, "startup must be at least 1, got 0"),
        ("optuna", {"sampler": "nsga2", "startup": 1}, "at least 2 for nsga2, got 1"),
        ("hebo", {"startup": 0}, "startup must be at least 1, got 0"),
        ("bayesopt", {"acquisition": "pi"}, "must be one of ucb, ei, poi, got 'pi'"),
        ("bayesopt", {"kappa": -1}, "kappa and xi must be at least 0, got -1 and 0.01"),
        ("bohb", {"top_n_percent": 0}, "must be between 0 and 100, got 0"),
        ("bohb", {"random_fraction": 2}, r"must be in \[0, 1\], got 2"),
        ("random", {"startup": 3}, "searcher 'random' has no option 'startup'; it has: none"),
    ],
)
def test_impossible_option_is_a_usage_error(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SEARCHERS.build(name, options, space=MIXED, seed=1)


def test_cmaes_refuses_a_space_without_numbers() -> None:
    space = Space.read({"optimizer": "choice(['adam', 'sgd'])"})
    with pytest.raises(UsageError, match="cmaes needs a numeric parameter"):
        Case("optuna", options={"sampler": "cmaes"}).build(space)


@pytest.mark.parametrize("acquisition", ["ucb", "ei", "poi"])
@pytest.mark.parametrize(
    "space", [MIXED, Space.read({"lr": "loguniform(1e-5, 1)", "x": "uniform(0, 1)"})]
)
def test_every_acquisition_of_bayesopt_proposes(acquisition: str, space: Space) -> None:
    searcher = Case("bayesopt", options={"acquisition": acquisition, "startup": 3}).build(space)
    for number in range(4):
        searcher.begin(f"t{number}", searcher.propose(number))
        searcher.end(f"t{number}", float(number))
    assert space.mistakes(searcher.propose(4)) == []
