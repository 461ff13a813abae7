"""Models get moderate scores instead of extreme ones that would break their arithmetic."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siftune.searchers.model import ModelBased, moderate
from siftune.space import Space

LARGEST = sys.float_info.max


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30))
def test_any_finite_scores_can_be_computed_with_and_keep_their_order(scores: list[float]) -> None:
    told = moderate(scores)
    assert len(told) == len(scores)
    with np.errstate(all="raise", under="ignore"):
        if told:
            np.float32(np.var(np.float32(told)))
    order = np.argsort(scores, kind="stable")
    assert (np.diff(np.array(told)[order]) >= 0).all()


@given(st.lists(st.floats(-1e9, 1e9), max_size=30))
def test_ordinary_scores_are_told_as_they_are(scores: list[float]) -> None:
    assert moderate(scores) == scores


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([0.5, 1e200, 0.25, 1e30], [0.5, 0.75, 0.25, 0.75]),
        ([1e200, 0.5], [1.0, 0.0]),  # the usual range is not known yet
        ([1e200, 0.5, 0.5], [1.5, 0.5, 0.5]),
        ([0.0, 0.0, LARGEST], [0.0, 0.0, 1.0]),
        ([-0.9, 1e200, -0.5], [-0.9, -0.1, -0.5]),  # an accuracy, negated
        ([5e10, 7e10, 6e12], [5e10, 7e10, 6e12]),  # large but usual, such as bytes
        ([1e23, 2e23, 3e23], [0.0, 0.5, 1.0]),
        ([-1e200, 0.5, 0.7], [0.0, 1.0, 1.0]),
        ([-LARGEST, LARGEST, 0.0], [0.0, 1.0, 0.5]),
        ([LARGEST, LARGEST], [0.0, 0.0]),
    ],
)
def test_a_score_that_diverged_is_beyond_the_worst(scores: list[float], told: list[float]) -> None:
    assert moderate(scores) == pytest.approx(told)


class Distances(ModelBased):
    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        raise NotImplementedError


def test_a_running_config_counts_with_the_score_of_the_nearest_result() -> None:
    space = Space.read(
        {"x": "uniform(0, 1)", "width": "randint(1, 101)", "kind": "choice(['a', 'b', 'c'])"}
    )
    searcher = Distances(space, seed=0, startup=1)
    results = [((0.1, 1, "a"), 3.0), ((0.9, 100, "a"), 1.0), ((0.1, 1, "c"), 2.0)]
    for number, (values, score) in enumerate(results):
        searcher.begin(f"t{number}", dict(zip(space.parameters, values, strict=True)))
        searcher.end(f"t{number}", score)
    running = [(0.7, 90, "b"), (0.2, 11, "c"), (0.4, 40, "a")]
    for number, values in enumerate(running):
        searcher.begin(f"r{number}", dict(zip(space.parameters, values, strict=True)))
    configs, scores = searcher.with_lies()
    assert len(configs) == 6
    assert scores == [3.0, 1.0, 2.0, 1.0, 2.0, 3.0]
