"""The simulation of many slots in `make bench` works with the current driver."""

from tests.bench import scale


def test_simulated_trials_report() -> None:
    assert scale._apart(slots=8, seconds=60)["reports_per_s"] > 0
