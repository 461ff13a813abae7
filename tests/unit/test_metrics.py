"""Metrics that the journal could not hold, or that could not be compared."""

import json
import sys
from typing import Any

import pytest

from siftune.journal import Event
from siftune.metrics import recordable
from siftune.progress import Progress
from siftune.proposals import Proposals
from siftune.study import read, resolve


@pytest.mark.parametrize("value", [2**1023, -(2**70), 0, True, 1.5, "text", None, float("inf")])
def test_what_can_be_recorded_is_recorded_as_it_is(value: Any) -> None:
    assert recordable({"m": value}) == {"m": value}
    assert recordable({"m": {"n": [value]}}) == {"m": {"n": [value]}}


@pytest.mark.parametrize("digits", [309, 400, 5000])
def test_a_whole_number_beyond_floats_is_recorded_in_words(digits: int) -> None:
    value = 10**digits
    bits = value.bit_length()
    assert recordable({"m": value, "n": [{"k": -value}]}) == {
        "m": f"a whole number of {bits} bits",
        "n": [{"k": f"a negative whole number of {bits} bits"}],
    }


@pytest.mark.parametrize(
    "value",
    [10**309, 10**5000, -(10**400), float("inf"), float("nan")],
    ids=["large", "beyond what Python writes", "negative", "infinite", "nan"],
)
@pytest.mark.parametrize("metric", ["loss", "other"])
def test_a_metric_that_cannot_be_compared_fails_its_trial_and_another_is_recorded(
    value: Any, metric: str
) -> None:
    layer = {"trainable": "t.py:f", "name": "s", "space": {"x": "uniform(0, 1)"}, "trials": 2}
    layer |= {"searcher": "random", "scheduler": "none"}
    study = resolve(read([layer], {}), slots=1)[0]
    log: list[Event] = []
    proposals = Proposals(study, study.build_searcher())
    progress = Progress(study, proposals, study.build_scheduler(), slots=1, write=log.append)
    for metrics in ({"loss": 1.0} | {metric: value}, {"loss": sys.float_info.max}):
        trial = progress.begin()
        assert trial is not None
        progress.report(trial.trial, 1, metrics, seconds=0.1)
        progress.end(trial.trial, "completed")
    failed = int(metric == "loss")
    assert progress.by_state()["failed"] == failed
    assert progress.by_state()["completed"] == 2 - failed
    if failed:
        assert "a finite number is needed" in log[1]["error"]
    assert len(json.loads(json.dumps(log))) == len(log)
