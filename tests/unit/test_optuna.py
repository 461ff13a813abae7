"""Optuna's samplers are told a selection of the trials."""

import pytest

from siftune.searchers import optuna
from siftune.space import Space

SPACE = Space.read({"x": "uniform(0, 1)", "kind": "choice(['a', 'b', 'c'])"})


def searched(trials: int) -> optuna.Optuna:
    """Returns a searcher after this many ended trials and one running trial."""
    searcher = optuna.Optuna(SPACE, seed=0)
    for number in range(trials):
        config = searcher.propose(number)
        searcher.begin(str(number), config)
        searcher.end(str(number), abs(config["x"] - 0.3) + (config["kind"] == "a"))
    searcher.begin("running", searcher.propose(trials))
    return searcher


def test_tpe_keeps_the_best_and_some_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna, "TPE_KEEPS", 30)
    monkeypatch.setattr(optuna, "TPE_KEEPS_BEST", 10)
    searcher = searched(100)
    scores = searcher.results()[1]
    kept = searcher._kept(scores)
    assert len(scores) == 100
    assert len(kept) == 30
    assert set(sorted(scores)[:10]) <= {scores[k] for k in kept}
    assert kept == sorted(kept)
    assert set(searcher._kept(scores[:99])) - set(kept) <= {99, *range(99)}
    assert searcher.propose(101) == searched(100).propose(101)
