"""Runs a study with five minutes of random faults; `make soak` runs for any length of time."""

from collections.abc import Callable

from tests.cluster.conftest import Cluster
from tests.cluster.soak import Soak


def test_nothing_is_lost_in_five_minutes_of_faults(
    cluster: Cluster, checkout: str, record_property: Callable[[str, object], None]
) -> None:
    figures = Soak(cluster, checkout, seed=1).run(minutes=5)
    record_property("figures", str(figures))
    assert set(figures.faults) == {fault.__name__ for fault in Soak.FAULTS}
    assert figures.trials
    assert (figures.lost, figures.doubled, figures.failed, figures.epochs_again) == (0, 0, 0, 0)
