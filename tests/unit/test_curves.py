"""Trials of different lengths are compared at the same epoch."""

from typing import Any

import pytest

from siftune.searchers import SEARCHERS
from siftune.searchers.curves import ENOUGH, Curves
from siftune.searchers.model import ModelBased
from siftune.space import Space


def curves(**trials: list[float]) -> Curves:
    told = Curves()
    for name, scores in trials.items():
        for epoch, score in enumerate(scores, start=1):
            told.report(name, epoch, score)
    return told


def test_trials_are_compared_at_the_largest_epoch_that_enough_have_reached() -> None:
    long = {f"t{k}": [15.0 + k, 14.0 + k, 13.0 + k] for k in range(ENOUGH - 1)}
    told = curves(**long, last=[99.0, 98.0, 98.5], other=[1.0])
    assert told.scores([*long, "other"]) == [*(15.0 + k for k in range(ENOUGH - 1)), 1.0]
    # A score that becomes worse again counts with the best. `other` reached only the first epoch,
    # so it is expected to improve by 2, the median of the others.
    at_third = [13.0 + k for k in range(ENOUGH - 1)]
    assert told.scores([*long, "last", "other"]) == [*at_third, 98.0, -1.0]


def test_a_longer_trial_is_not_better_for_its_length_alone() -> None:
    equal = [1 / epoch for epoch in range(1, 10)]
    names = [f"t{k}" for k in range(ENOUGH + 2)]
    told = curves(**{name: equal[: 3 + k % 7] for k, name in enumerate(names)})
    assert len(set(told.scores(names))) == 1


def test_an_epoch_that_is_reported_again_counts_once() -> None:
    told = curves(a=[3.0, 2.0])
    told.report("a", 1, 0.0)
    assert told.scores(["a"]) == [2.0]
    assert told.scores([]) == []


def searcher(**space: Any) -> ModelBased:
    """Returns a searcher after four ended trials, of which one failed, and two running ones."""
    entries = {"x": "uniform(0, 1)"} | space
    searcher: ModelBased = SEARCHERS.build("optuna", {}, space=Space.read(entries), seed=0)
    for number in range(6):
        name = f"t{number}"
        searcher.begin(name, searcher.propose(number))
        for epoch in range(1, min(number, 4) + 1):
            searcher.report(name, epoch, 10.0 * number - epoch)
        if number < 4:
            searcher.end(name, None if number == 3 else 10.0 * number - number)
    return searcher


def test_running_trials_count_once_they_have_reported() -> None:
    configs, scores, running = searcher(epochs=9).results()
    assert len(configs) == len(scores) == 6
    assert running == []
    assert scores[3] == max(scores)  # it failed


def test_without_reports_trials_are_only_known_to_run() -> None:
    model = searcher(epochs=9)
    model.begin("new", model.propose(6))
    assert model.results()[2] == [model.running["new"]]


@pytest.mark.parametrize("searched", [True, False])
def test_trials_that_choose_their_epochs_count_with_their_best(searched: bool) -> None:
    model = searcher(epochs="randint(1, 10)" if searched else 9)
    configs, _, running = model.results()
    assert (len(configs), len(running)) == ((4, 2) if searched else (6, 0))
    if searched:
        assert model.results()[1] == [0.0, 9.0, 18.0, 18.0]
