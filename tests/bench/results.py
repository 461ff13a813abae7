"""Stores measurements in results.json, with the date and the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench.table import RESULTS

Figures = dict[str, float]


def machine() -> dict[str, Any]:
    """Returns the properties of this machine that the figures depend on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU implementer")):
            cpu = line.partition(":")[2].strip()
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": f"{os.cpu_count()} × {cpu}, {platform.machine()}",
        "memory_gib": round(memory_kib / 2**20),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def keep(name: str, figures: Figures, load: float) -> None:
    """Writes the figures to results.json, in place of earlier ones."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    results[name] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "load_before": round(load, 2),
        "figures": {key: float(f"{value:.4g}") for key, value in figures.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
