"""Every benchmark, as ratios measured side by side in one run.

    make bench [ARGS="overhead search"]

What was measured goes to results.json, with the date and the machine, and from there into the
README's table. A benchmark that needs what this machine lacks, a GPU or root, is left as it was.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from siftune.data import ensure_mnist
from tests.bench import on_cluster, overhead, packing, samples_per_s, scale, search
from tests.bench.table import RESULTS, table
from tests.readme import write_part

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("which", nargs="*", metavar="|".join(BENCHMARKS), help="[all]")
    which = parser.parse_args().which or list(BENCHMARKS)
    if unknown := sorted(set(which) - set(BENCHMARKS)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    print(machine())
    for name in which:
        measure, needs = BENCHMARKS[name]
        if lacking := needs():
            print(f"{name}: not measured, {lacking}")
            continue
        load = os.getloadavg()[0]
        figures = measure()
        print(name, *(f"  {key} {value:.4g}" for key, value in figures.items()), flush=True)
        _keep(name, figures, load)
    write_part("bench", table())


def machine() -> dict[str, Any]:
    """What the figures depend on."""
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


def _keep(name: str, figures: Figures, load: float) -> None:
    """Puts them into results.json, in place of the earlier ones."""
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


def _training() -> Figures:
    torch.set_num_threads(1)
    return samples_per_s.measure(ensure_mnist(Path(os.environ.get("SIFTUNE_DATA", "data"))))


def _packing() -> Figures:
    return packing.measure(ensure_mnist(Path(os.environ.get("SIFTUNE_DATA", "data"))))


def _on_cluster(method: str) -> Callable[[], Figures]:
    def measure() -> Figures:
        with on_cluster.bench() as jobs:
            figures: Figures = getattr(jobs, method)()
            return figures

    return measure


def _nothing() -> str:
    return ""


def _root() -> str:
    return "" if os.geteuid() == 0 else "the virtual cluster needs root"


def _gpu() -> str:
    return "" if torch.cuda.is_available() else "no GPU was at hand"


def _strace() -> str:
    return "" if shutil.which("strace") else "strace is not installed"


BENCHMARKS: dict[str, tuple[Callable[[], Figures], Callable[[], str]]] = {
    "overhead": (overhead.measure, _nothing),
    "growth": (overhead.growth, _nothing),
    "search": (search.measure, _nothing),
    "training": (_training, _nothing),
    "packing": (_packing, _gpu),
    "scale": (scale.measure, _strace),
    "start": (_on_cluster("start"), _root),
    "cold": (_on_cluster("cold"), _root),
    "scaling": (_on_cluster("scaling"), _root),
    "page": (_on_cluster("page"), _root),
}


if __name__ == "__main__":
    main()
