"""Fixtures for studies: all studies of a test run share one Ray."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from siftune.backend import environment
from siftune.driver.launch import launch
from siftune.study.reading import read

assert "ray" not in sys.modules, "Ray reads its environment when it is imported"
PREPARED = environment.prepared()
PREPARED.__enter__()

from drivers import job_of_this_ray  # noqa: E402


def pytest_unconfigure() -> None:
    PREPARED.__exit__(None, None, None)


@pytest.fixture(scope="session")
def connected() -> Iterator[None]:
    """Connects to a Ray with two CPUs for the duration of the tests."""
    from siftune.backend.connect import connect

    with connect():
        yield


@pytest.fixture(scope="session")
def job(connected: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns the environment variables for drivers that join this Ray."""
    return job_of_this_ray(tmp_path_factory.mktemp("job"))


class Result:
    """The content of a study directory."""

    def __init__(self, status: int, directory: Path) -> None:
        self.status = status
        self.directory = directory
        lines = (directory / "trials.jsonl").read_text().splitlines()
        self.events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())

    @property
    def best(self) -> dict[str, Any]:
        return json.loads((self.directory / "best.json").read_text())

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


@pytest.fixture
def study(connected: None, tmp_path: Path, mnist_directory: Path) -> Callable[..., Result]:
    """Runs a study in this process and reads its directory."""

    def run(**layer: Any) -> Result:
        layer = {"name": "study", "seed": 0} | layer
        request = read([layer], {})
        status = launch(request, data=mnist_directory, results=tmp_path)
        return Result(status, tmp_path / str(layer["name"]))

    return run
