"""Runs the benchmarks, which compare siftune with other tools in the same run.

    make bench [ARGS="overhead search"]

The results are written to results.json, with the date and the machine, and from there to the tables
in tests/bench/README.md and README.md. A benchmark that needs a GPU or root keeps its earlier
results if the machine has no GPU or the account is not root.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from siftune.trainables.datasets.mnist import ensure_mnist
from tests.bench import accuracy, gpu, on_cluster, overhead, packing, samples_per_s, scale, search
from tests.bench.quality import measure as quality
from tests.bench.results import Figures, keep, machine
from tests.bench.table import FAST, FULL, fast_table, table
from tests.readme import write_part


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
        keep(name, figures, load)
    write_part(*FULL, table())
    write_part(*FAST, fast_table())


def _on_mnist(measure: Callable[[Path], Figures]) -> Callable[[], Figures]:
    def on_data() -> Figures:
        torch.set_num_threads(1)
        return measure(ensure_mnist(Path(os.environ.get("SIFTUNE_DATA", "data"))))

    return on_data


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


def _no_gpu() -> str:
    return "it measures the CPU, and this machine has a GPU" if torch.cuda.is_available() else ""


def _gpu() -> str:
    return "" if torch.cuda.is_available() else "this machine has no GPU"


def _strace() -> str:
    return "" if shutil.which("strace") else "strace is not installed"


BENCHMARKS: dict[str, tuple[Callable[[], Figures], Callable[[], str]]] = {
    "overhead": (overhead.measure, _nothing),
    "growth": (overhead.growth, _nothing),
    "search": (search.measure, _nothing),
    "quality": (quality.measure, _nothing),
    "training": (_on_mnist(samples_per_s.measure), _no_gpu),
    "accuracy": (_on_mnist(accuracy.measure), _no_gpu),
    "gpu": (_on_mnist(gpu.measure), _gpu),
    "packing": (_packing, _gpu),
    "scale": (scale.measure, _strace),
    "start": (_on_cluster("start"), _root),
    "cold": (_on_cluster("cold"), _root),
    "scaling": (_on_cluster("scaling"), _root),
    "page": (_on_cluster("page"), _root),
}


if __name__ == "__main__":
    main()
