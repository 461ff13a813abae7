"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from siftune.trainables.datasets.mnist import ensure_mnist

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def mnist_directory() -> Path:
    """Returns the directory of the real MNIST, downloaded once to where the commands look."""
    return ensure_mnist(Path(os.environ.get("SIFTUNE_DATA") or REPOSITORY / "data"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: threads that wait for a busy core slow down small batches."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures that tests recorded."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}\n{text}")
