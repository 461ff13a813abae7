"""The tables in the documentation contain the measured values."""

from pathlib import Path

import pytest

from tests.bench import accuracy, gpu
from tests.bench.table import FAST, FULL, ROWS, fast_table, table
from tests.readme import assert_part


def test_the_full_table_is_what_was_measured() -> None:
    assert_part(*FULL, table())


def test_the_table_in_the_readme_is_what_was_measured() -> None:
    assert_part(*FAST, fast_table())


def test_what_is_measured_on_a_gpu_fills_its_rows(
    mnist_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the GPU benchmark on the CPU if there is no GPU, so that it is tested everywhere."""
    monkeypatch.setattr(gpu, "WORKERS", 1)
    monkeypatch.setattr(gpu, "EPOCHS", 1)
    monkeypatch.setattr(accuracy, "SEEDS", (1, 2))
    figures = gpu.measure(mnist_directory, rounds=1, images=300)
    for name, _, *cells in ROWS:
        if name == "gpu":
            assert all(cell.format(**figures) for cell in cells if cell)
