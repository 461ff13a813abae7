"""Tests each scheduler on examples that are small enough to check by hand."""

from typing import Any

import pytest

from siftune.errors import UsageError
from siftune.schedulers import SCHEDULERS
from siftune.schedulers.asha import Asha, default_grace
from siftune.schedulers.base import Clone, Decision, Resume, Scheduler, Stop
from siftune.schedulers.bohb import BohbHyperBand
from siftune.schedulers.hyperband import HyperBand, brackets
from siftune.schedulers.median import Median
from siftune.schedulers.none import NoScheduler
from siftune.schedulers.pbt import Pbt
from siftune.space import Space

CONTINUE, STOP, PAUSE = Decision.CONTINUE, Decision.STOP, Decision.PAUSE
SPACE = Space.read(
    {
        "lr": "loguniform(1e-4, 1e-1)",
        "batch_size": "choice([16, 32, 64])",
        "optimizer": "choice(['sgd', 'adam'])",
        "momentum": "uniform(0.5, 1) if optimizer == 'sgd'",
        "depth": "randint(1, 6)",
    }
)
CONFIG = SPACE.canonical(
    {"lr": 1e-2, "batch_size": 32, "optimizer": "sgd", "momentum": 0.75, "depth": 2}
)


def needs(**given: Any) -> dict[str, Any]:
    return {"max_epochs": 9, "seed": 0, "space": SPACE, "trials": 8} | given


def begin(scheduler: Scheduler, *trials: str) -> None:
    for trial in trials:
        scheduler.begin(trial, CONFIG)


def report(scheduler: Scheduler, epoch: int, **scores: float) -> list[Decision]:
    return [scheduler.report(trial, epoch, score) for trial, score in scores.items()]


def test_options_are_those_with_a_default() -> None:
    known = {name: SCHEDULERS.options(name) for name in SCHEDULERS}
    assert known == {
        "none": {},
        "asha": {"eta": 3, "grace_epochs": None},
        "hyperband": {"eta": 3},
        "bohb": {"eta": 3},
        "median": {"grace_epochs": 1, "min_trials": 3},
        "pbt": {
            "interval_epochs": 1,
            "quantile": 0.25,
            "mutate": "",
            "resample_probability": 0.25,
        },
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("asha", {"eta": 1}, "eta must be a whole number of at least 2, got 1"),
        ("asha", {"eta": 2.5}, "eta must be a whole number of at least 2, got 2.5"),
        ("asha", {"grace_epochs": 0}, "grace_epochs must be a whole number of at least 1, got 0"),
        ("hyperband", {"eta": "3"}, "eta must be a whole number of at least 2, got '3'"),
        ("median", {"min_trials": 0}, "min_trials must be a whole number of at least 1, got 0"),
        ("median", {"grace_epochs": True}, "grace_epochs must be a whole number of at least 1"),
        ("pbt", {"interval_epochs": 0}, "interval_epochs must be a whole number of at least 1"),
        ("pbt", {"quantile": 0.6}, "quantile must be above 0 and at most 0.5, got 0.6"),
        ("pbt", {"quantile": "x"}, "quantile must be above 0 and at most 0.5, got 'x'"),
        ("pbt", {"resample_probability": 2}, "resample_probability must be between 0 and 1, got 2"),
        ("pbt", {"mutate": "lr, width"}, "mutate must name parameters of the space, got 'width'"),
        ("pbt", {"mutate": 3}, "mutate must be names separated by commas, got 3"),
        ("asha", {"gamma": 1}, "scheduler 'asha' has no option 'gamma'; it has: eta=3"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SCHEDULERS.build(name, options, **needs())
    assert message in str(caught.value)


def test_none_stops_nothing() -> None:
    scheduler = NoScheduler(**needs())
    begin(scheduler, "a", "b")
    assert report(scheduler, 1, a=0.0, b=9.0) == [CONTINUE, CONTINUE]
    assert scheduler.orders(idle=True) == []


# ── ASHA ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        ({}, [3]),  # 8 trials support one halving; not 9: stopping there would save nothing
        ({"eta": 2}, [1, 2, 4, 8]),
        ({"grace_epochs": 2}, [2, 6]),
        ({"grace_epochs": 9}, []),
    ],
)
def test_asha_rungs(options: dict, rungs: list[int]) -> None:
    assert Asha(**needs(), **options).rungs == rungs


@pytest.mark.parametrize(
    ("max_epochs", "trials", "grace"),
    [(81, 81, 1), (81, 50, 3), (100, 12, 11), (5, 50, 1), (100, 2, 99), (2, 1, 1), (1, 50, 1)],
)
def test_asha_s_first_rung_follows_from_the_budget(
    max_epochs: int, trials: int, grace: int
) -> None:
    assert default_grace(max_epochs, trials, 3) == grace
    budget = {"max_epochs": max_epochs, "trials": trials}
    assert Asha.resolve({}, **budget) == {"grace_epochs": grace}
    assert Asha.resolve({"grace_epochs": 7}, **budget) == {"grace_epochs": 7}


def test_asha_stops_all_but_the_best_third_of_those_that_came() -> None:
    scheduler = Asha(**needs(), grace_epochs=1)
    assert report(scheduler, 1, a=5.0, b=6.0, c=4.0, d=4.5, e=3.0) == [
        CONTINUE,  # the first is the best so far
        STOP,
        CONTINUE,  # best of three
        STOP,  # second of four
        CONTINUE,
    ]
    assert report(scheduler, 1, f=3.5, g=9.0) == [CONTINUE, STOP]  # two of six, two of seven
    assert report(scheduler, 2, a=99.0) == [CONTINUE]  # not a rung
    assert report(scheduler, 3, a=99.0, c=1.0, e=1.0) == [CONTINUE, CONTINUE, CONTINUE]  # a tie
    assert report(scheduler, 9, a=99.0) == [CONTINUE]


# ── HyperBand ───────────────────────────────────────────────────────────────────────────────────


def test_hyperband_brackets_are_those_of_the_paper() -> None:
    # Algorithm 1 of Li et al. 2018 for R = 81 and eta = 3. n_i = floor(n × eta^-i) below each.
    assert brackets(81, 3) == [
        (81, [1, 3, 9, 27, 81]),  # 81, 27, 9, 3, 1 trials
        (34, [3, 9, 27, 81]),  # 34, 11, 3, 1
        (15, [9, 27, 81]),  # 15, 5, 1
        (8, [27, 81]),  # 8, 2
        (5, [81]),
    ]
    assert brackets(10, 2) == [(8, [1, 2, 5, 10]), (6, [2, 5, 10]), (4, [5, 10]), (4, [10])]
    assert brackets(1, 3) == [(1, [1])]


def test_hyperband_runs_a_bracket_as_in_the_paper() -> None:
    scheduler = HyperBand(**needs(max_epochs=81, trials=81 + 34))
    trials = [f"{i:03d}" for i in range(81 + 34)]
    begin(scheduler, *trials)
    went_on = {}
    for first, last, milestones in ((0, 81, [1, 3, 9, 27]), (81, 115, [3, 9, 27])):
        rung = trials[first:last]
        for milestone in milestones:
            assert [scheduler.report(t, milestone, float(t)) for t in rung] == [PAUSE] * len(rung)
            orders = scheduler.orders()
            assert {order.trial for order in orders} == set(rung)
            for order in orders:
                if isinstance(order, Stop):
                    scheduler.end(order.trial)
            rung = sorted(order.trial for order in orders if isinstance(order, Resume))
            assert rung == trials[first : first + len(rung)]
            went_on[last - first, milestone] = len(rung)
            if milestone == 27:
                assert [scheduler.report(t, 81, 0.0) for t in rung] == [CONTINUE]
    assert list(went_on.values()) == [27, 9, 3, 1, 11, 3, 1]


def test_hyperband_waits_for_those_that_are_to_come() -> None:
    scheduler = HyperBand(**needs(max_epochs=3, trials=3))  # one bracket of three, pausing at 1
    begin(scheduler, "a", "b")
    assert report(scheduler, 1, a=1.0, b=2.0) == [PAUSE, PAUSE]
    assert scheduler.orders() == []
    assert scheduler.orders(idle=True) == [Resume("a"), Stop("b")]  # no other trial will join
    begin(scheduler, "c")
    assert scheduler.orders() == []
    scheduler.end("c")
    assert scheduler.orders() == [Resume("a"), Stop("b")]


def test_hyperband_stands_by_what_it_decided_in_idleness() -> None:
    scheduler = HyperBand(**needs(max_epochs=3, trials=3))
    begin(scheduler, "a", "b")
    report(scheduler, 1, a=1.0, b=2.0)
    assert scheduler.orders(idle=True) == [Resume("a"), Stop("b")]
    report(scheduler, 2, a=1.0)
    assert scheduler.orders() == [Stop("b")]
    begin(scheduler, "c")  # added to the plan later: too late for this bracket
    assert scheduler.orders() == [Stop("b")]


def test_hyperband_last_bracket_takes_what_is_left() -> None:
    scheduler = HyperBand(**needs(max_epochs=3, trials=2))
    begin(scheduler, "a", "b")
    report(scheduler, 1, a=2.0, b=1.0)
    assert scheduler.orders() == [Resume("b"), Stop("a")]


def test_hyperband_gives_no_place_to_a_trial_with_nothing_left_to_train() -> None:
    scheduler = HyperBand(**needs(max_epochs=3, trials=3))
    begin(scheduler, "a", "b")
    scheduler.begin("short", {"epochs": 1})
    assert report(scheduler, 1, short=0.0, a=2.0, b=1.0) == [CONTINUE, PAUSE, PAUSE]
    assert scheduler.orders() == [Resume("b"), Stop("a")]


def test_bohb_takes_the_brackets_of_hyperband() -> None:
    assert issubclass(BohbHyperBand, HyperBand)
    scheduler = BohbHyperBand(**needs(max_epochs=3, trials=3))
    begin(scheduler, "a", "b", "c")
    report(scheduler, 1, a=2.0, b=1.0, c=3.0)
    assert scheduler.orders() == [Resume("b"), Stop("a"), Stop("c")]


# ── Median ──────────────────────────────────────────────────────────────────────────────────────


def test_median_compares_the_best_with_the_others_averages() -> None:
    scheduler = Median(**needs(), min_trials=3)
    assert report(scheduler, 1, a=2.0, b=4.0, c=6.0) == [CONTINUE] * 3  # fewer than 3 others
    assert report(scheduler, 2, a=2.0, b=2.0, c=2.0) == [CONTINUE] * 3  # averages 2, 3 and 4
    assert report(scheduler, 1, d=4.0, e=4.5) == [CONTINUE, STOP]  # medians 4 and 4
    assert report(scheduler, 2, d=3.5) == [STOP]  # its best is 3.5, the median is 3
    scheduler.end("a")
    assert report(scheduler, 1, f=3.0) == [CONTINUE]
    assert report(scheduler, 2, f=100.0) == [CONTINUE]  # its best is 3, the median is 4


def test_median_waits_for_the_grace_epochs_and_spares_the_last() -> None:
    scheduler = Median(**needs(max_epochs=3), min_trials=1, grace_epochs=2)
    for epoch, decision in ((1, CONTINUE), (2, STOP), (3, CONTINUE)):
        assert report(scheduler, epoch, a=1.0, b=9.0) == [CONTINUE, decision]


# ── PBT ─────────────────────────────────────────────────────────────────────────────────────────


def test_pbt_bottom_quarter_clones_the_top_quarter() -> None:
    scheduler = Pbt(**needs(trials=4), interval_epochs=2)
    begin(scheduler, "a", "b", "c", "d")
    assert report(scheduler, 1, a=1.0) == [CONTINUE]
    assert report(scheduler, 2, a=1.0, b=4.0, c=3.0) == [PAUSE] * 3
    assert scheduler.orders() == []
    assert report(scheduler, 2, d=2.0) == [PAUSE]
    clone, *others = scheduler.orders()
    assert others == [Resume("a"), Resume("c"), Resume("d")]
    assert isinstance(clone, Clone)
    assert (clone.trial, clone.donor) == ("b", "a")
    unchanged = ("batch_size", "optimizer", "depth")
    assert [clone.config[name] for name in unchanged] == [CONFIG[name] for name in unchanged]


def test_pbt_mutates_by_factors_within_the_domain() -> None:
    scheduler = Pbt(**needs(trials=2), quantile=0.5, resample_probability=0)
    begin(scheduler, "a", "b")
    report(scheduler, 1, a=1.0, b=2.0)
    (clone, _) = scheduler.orders()
    assert isinstance(clone, Clone)
    assert clone.config["lr"] in (pytest.approx(0.8e-2), pytest.approx(1.2e-2))
    assert clone.config["momentum"] in (pytest.approx(0.6), pytest.approx(0.9))


def test_pbt_moves_a_named_discrete_parameter_to_a_neighbour() -> None:
    scheduler = Pbt(
        **needs(trials=2), quantile=0.5, resample_probability=0, mutate="batch_size, depth"
    )
    begin(scheduler, "a", "b")
    report(scheduler, 1, a=1.0, b=2.0)
    (clone, _) = scheduler.orders()
    assert isinstance(clone, Clone)
    assert clone.config["batch_size"] in (16, 64)
    assert clone.config["depth"] in (1, 3)
    assert clone.config["lr"] == CONFIG["lr"]


def test_pbt_clone_of_a_clone_has_its_config() -> None:
    scheduler = Pbt(**needs(trials=2), quantile=0.5, resample_probability=0, mutate="lr")
    begin(scheduler, "a", "b")
    report(scheduler, 1, a=1.0, b=2.0)
    (first, _) = scheduler.orders()
    assert isinstance(first, Clone)
    report(scheduler, 2, a=2.0, b=1.0)
    (second, _) = scheduler.orders()
    assert isinstance(second, Clone)
    assert (second.trial, second.donor) == ("a", "b")
    factor = second.config["lr"] / first.config["lr"]
    assert factor in (pytest.approx(0.8), pytest.approx(1.2))
    assert first.config["lr"] != CONFIG["lr"]


def test_pbt_depends_on_the_seed_alone() -> None:
    def clone(seed: int) -> Any:
        scheduler = Pbt(**needs(trials=2, seed=seed), quantile=0.5)
        begin(scheduler, "a", "b")
        report(scheduler, 1, a=1.0, b=2.0)
        return scheduler.orders()[0]

    assert clone(1) == clone(1) != clone(2)


def test_pbt_member_that_trained_all_its_epochs_is_gone() -> None:
    scheduler = Pbt(**needs(trials=3), quantile=0.5)
    begin(scheduler, "a", "b")
    scheduler.begin("short", CONFIG | {"epochs": 1})
    assert report(scheduler, 1, a=2.0, b=3.0, short=1.0) == [PAUSE, PAUSE, CONTINUE]
    clone, other = scheduler.orders()  # although `short` has not ended yet
    assert isinstance(clone, Clone)
    assert (clone.trial, clone.donor, other) == ("b", "a", Resume("a"))


def test_pbt_alone_goes_on() -> None:
    scheduler = Pbt(**needs(trials=2))
    begin(scheduler, "a")
    assert report(scheduler, 1, a=1.0) == [PAUSE]
    assert scheduler.orders() == []
    assert scheduler.orders(idle=True) == [Resume("a")]


def test_pbt_needs_something_to_mutate() -> None:
    space = Space.read({"depth": "randint(1, 6)"})
    with pytest.raises(ValueError, match="if no parameter is continuous, got ''"):
        Pbt(**needs(space=space))
    assert Pbt(**needs(space=space), mutate="depth")
