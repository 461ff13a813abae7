"""What several test files share."""

import os
from pathlib import Path

import pytest

from siftune.data import ensure_mnist

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def mnist_directory() -> Path:
    """The real MNIST, fetched once to the directory that the commands use."""
    return ensure_mnist(Path(os.environ.get("SIFTUNE_DATA") or REPOSITORY / "data"))
