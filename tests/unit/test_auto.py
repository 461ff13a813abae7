"""`--searcher auto` chooses by space and budget, and explains its choice."""

import pytest

from siftune.searchers import SEARCHERS
from siftune.searchers.auto import choose
from siftune.space import Space

NUMERIC = Space.read({"lr": "loguniform(1e-5, 1e-2)", "dropout": "uniform(0, 0.5)"})
FINITE = Space.read({"depth": "randint(1, 4)", "width": "choice([16, 32])"})
AWKWARD = Space.read(
    {
        "lr": "loguniform(1e-5, 1e-2)",
        "optimizer": "choice(['adam', 'sgd'])",
        "momentum": "uniform(0, 1) if optimizer == 'sgd'",
    }
)
WIDE = Space.read({f"x{k}": "uniform(0, 1)" for k in range(40)})


@pytest.mark.parametrize(
    ("space", "trials", "slots", "scheduler", "expected"),
    [
        (FINITE, 6, 2, "asha", "grid"),
        (FINITE, 5, 1, "asha", "random"),
        (NUMERIC, 15, 8, None, "random"),
        (NUMERIC, 8, 2, "asha", "random"),
        (NUMERIC, 64, 8, "asha", "portfolio"),
        (NUMERIC, 500, 8, "asha", "optuna"),
        (AWKWARD, 64, 8, "asha", "optuna"),
        (WIDE, 64, 8, "asha", "optuna"),
        (NUMERIC, 64, 8, "pbt", "random"),
        (NUMERIC, 64, 8, "bohb", "bohb"),
    ],
)
def test_choice_follows_from_space_and_budget(
    space: Space, trials: int, slots: int, scheduler: str | None, expected: str
) -> None:
    name, reason = choose(space, trials=trials, slots=slots, scheduler=scheduler)
    assert name == expected
    assert name in SEARCHERS
    assert reason.endswith(".")
