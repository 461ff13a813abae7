"""What several test files share."""

import os
from pathlib import Path

import pytest

from siftune.data import ensure_mnist

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


@pytest.fixture(scope="session")
def mnist_directory() -> Path:
    """The real MNIST, fetched once to the directory that the commands use."""
    return ensure_mnist(Path(os.environ.get("SIFTUNE_DATA") or REPOSITORY / "data"))


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests run in one process where there are several (make test): there is one virtual
    cluster, and one Ray is enough."""
    for item in items:
        place = item.path.relative_to(HERE).parts[0]
        together = {"cluster": "cluster", "container": "cluster", "ray": "ray"}
        item.add_marker(pytest.mark.xdist_group(together.get(place, item.path.name)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests recorded as their figures."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}\n{text}")
