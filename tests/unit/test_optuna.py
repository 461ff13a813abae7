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
    values = [trial.value for trial in searcher._study.trials if trial.state.is_finished()]
    assert 30 <= len(values) < 60
    assert set(sorted(searcher.scores)[:5]) <= set(values)
    running = [trial for trial in searcher._study.trials if trial.params and trial.value is None]
    assert len(running) == 1
    assert searcher.propose(101) == searched(100).propose(101)
    assert len(searcher.scores) == 100
