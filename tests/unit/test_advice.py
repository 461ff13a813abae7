"""The advice of the report follows from the data, and there is none without enough of them."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from siftune.record import history
from siftune.report import figures
from siftune.report import page as report_page
from siftune.report.advice import advice

Written = Callable[..., Any]
SPACE = {
    "lr": "loguniform(1e-4, 1)",
    "depth": "randint(1, 40)",
    "act": "choice(['relu', 'gelu', 'tanh'])",
    "epochs": 3,
}


def advised(study: Any) -> list[str]:
    loaded = history.load(study.directory)
    return advice(loaded, figures.ranked(loaded))


def filled(written: Written, trials: int, value: Callable[[dict[str, Any]], float]) -> Any:
    """Writes a study of random configs with this value of the metric."""
    study, draw = written(space=SPACE, trials=trials), random.Random(0)
    for _ in range(trials):
        config = {"lr": 10 ** draw.uniform(-4, 0), "depth": draw.randint(1, 39)}
        config["act"] = draw.choice(["relu", "gelu", "tanh"])
        study.trial(value(config), **config)
    return study


@pytest.mark.parametrize(("sign", "edge"), [(-1, "upper"), (1, "lower")])
def test_the_best_at_an_edge_widen_the_domain(written: Written, sign: int, edge: str) -> None:
    found = advised(filled(written, 300, lambda config: sign * config["lr"]))
    (sentence,) = [text for text in found if text.startswith("lr: ")]
    assert f"of the 5 best trials lie within 5 % of the {edge} edge" in sentence
    wider = "loguniform(0.0001, 10.0)" if edge == "upper" else "loguniform(1e-05, 1)"
    assert f"--set 'lr={wider}'" in sentence


def test_an_option_that_none_of_the_best_has_is_dropped(written: Written) -> None:
    study = filled(written, 60, lambda c: (c["act"] == "tanh") + abs(c["depth"] - 20) / 100)
    (sentence,) = [text for text in advised(study) if text.startswith("act: ")]
    assert "none of the 15 best of 60 trials has tanh" in sentence
    assert "choice([" in sentence


def test_a_parameter_without_effect_is_fixed(written: Written) -> None:
    found = advised(filled(written, 100, lambda config: abs(config["depth"] - 20)))
    (fixed,) = [t for t in found if t.startswith("lr shows no effect of its own in 100 trials")]
    assert "(--set lr=" in fixed
    assert not any(text.startswith("depth") for text in found)


def test_late_trials_without_improvement_are_told(written: Written) -> None:
    study = written(space=SPACE, trials=50)
    for i in range(50):
        study.trial(0.0 if i == 22 else 1.0, lr=0.01, depth=20, act="relu")
    assert any(
        "No improvement since trial 0023: the 27 trials after it" in t for t in advised(study)
    )


def test_slots_that_waited_are_told(written: Written) -> None:
    study = filled(written, 20, lambda config: 1.0)
    summary = {"wall_s": 100.0, "slots": 2, "slot_s": 200.0, "suggest_wait_s": 80.0}
    summary |= {"suggest_s": 80.0, "busy_fraction": 0.5}
    (study.directory / "summary.json").write_text(json.dumps(summary))
    assert any("idle 40 % of the time" in text for text in advised(study))


def test_few_trials_give_no_advice(written: Written) -> None:
    study = filled(written, 19, lambda config: config["lr"])
    assert advised(study) == []
    assert "What next" not in report_page.write(study.directory).read_text()
