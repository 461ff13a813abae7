"""The image for these tests: the one in SIFTUNE_IMAGE, or else the virtual cluster's."""

import os

import pytest

from tests.cluster.conftest import HERE, checkout, cluster

__all__ = ["checkout", "cluster"]


@pytest.fixture(scope="session")
def image_of_the_cluster(request: pytest.FixtureRequest) -> None:
    """Builds the image on the cluster's login node, if none is named and this account is root."""
    if {"SIFTUNE_IMAGE", "SIFTUNE_ON"} & os.environ.keys() or os.geteuid() != 0:
        return
    os.environ["SIFTUNE_IMAGE"] = f"{request.getfixturevalue('checkout')}/tune.sif"
    os.environ["SIFTUNE_ON"] = f"{HERE / 'on.sh'} login hpc1"
