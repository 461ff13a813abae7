"""Formats the measurements in results.json as Markdown tables.

`table` returns the full table, for tests/bench/README.md; `fast_table` a short one, for README.md.
"""

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")

# The pages that contain the tables, as paths in the repository, and the names of their parts.
FULL = ("tests/bench/README.md", "bench")
FAST = ("README.md", "fast")

HEADER = ["| | siftune | compared with | ratio |", "|---|---|---|---|"]
NEEDS_GPU = ("gpu", "packing")  # benchmarks

# Benchmark, what is measured, siftune's figure, the other side's figure, the ratio. A row without a
# second entry continues the row above. {figure:format} names a figure of the benchmark.
Row = tuple[str, str, str, str, str]
ROWS: list[Row] = [
    (
        "overhead",
        "Overhead per trial, each in a new process, in seconds: 256 trials that import torch and "
        "train nothing, 2 slots",
        "{siftune_s:.3f}",
        "Ray Tune, an actor per trial: {ray_s:.2f}",
        "{ray_ratio:.0f}",
    ),
    ("overhead", "", "", "Optuna, a process per trial: {optuna_s:.2f}", "{optuna_ratio:.0f}"),
    ("overhead", "", "", "Syne Tune, local: {syne_tune_s:.2f}", "{syne_tune_ratio:.0f}"),
    (
        "overhead",
        "The same, without the start of the worker",
        "{siftune_warm_s:.4f}",
        "",
        "",
    ),
    (
        "overhead",
        "The same, with processes that are reused",
        "{siftune_reuse_warm_s:.4f}",
        "Ray Tune, actors reused: {ray_reuse_warm_s:.4f}",
        "{warm:.1f}",
    ),
    (
        "growth",
        "The same for the 2,000th trial, compared with the 200th, with Optuna's TPE",
        "{trial_2000_s:.3f}",
        "{trial_200_s:.3f}",
        "{ratio:.2f}",
    ),
    (
        "search",
        "Fraction of the time that 8 slots wait for proposals: 48 trials of 1 to 10 epochs of 2 s",
        "HEBO: {hebo:.3f}, Optuna's GP: {optuna_gp:.3f}, BOHB: {bohb:.5f}",
        "Ray Tune's HEBOSearch: {ray_hebo:.2f}",
        "",
    ),
    (
        "start",
        "Time from the start of a job to its first epoch, in seconds, 4 nodes with 2 GPUs each",
        "{siftune_s:.1f}",
        "the launch script in Ray's documentation: {recipe_s:.1f}",
        "{ratio:.1f}",
    ),
    (
        "start",
        "The same, for trials that import torch",
        "{torch_siftune_s:.1f}",
        "the launch script in Ray's documentation: {torch_recipe_s:.1f}",
        "{torch_ratio:.1f}",
    ),
    (
        "cold",
        "Time of `import torch, ray.tune` in the image with nothing cached, in seconds",
        "{image_s:.1f}",
        "the same files unpacked: {unpacked_s:.1f}",
        "{ratio:.2f}",
    ),
    (
        "scaling",
        "Efficiency of 8 trials that sleep on 8 GPUs, compared with 1 trial on 1 GPU",
        "{efficiency:.2f}",
        "",
        "",
    ),
    (
        "page",
        "Time of a job with the 8-trial study from CALMIP's Turpan page, in seconds, 4 nodes with "
        "2 GPUs each",
        "{siftune_s:.0f}",
        "the page's own script and batch file (which run 32 trials): at least {page_s:,.0f}",
        "at least {ratio:.1f}",
    ),
    (
        "training",
        "MNIST samples per second on the CPU, 1 thread, batch size 64",
        "{siftune:,.0f}",
        "DataLoader and ToTensor: {plain:,.0f}",
        "{ratio:.1f}",
    ),
    (
        "accuracy",
        "Accuracy on MNIST's test set in per cent, 5 seeds, 2 epochs of 10,000 images, on the CPU",
        "{siftune:.2f} ± {siftune_sd:.2f}",
        "DataLoader and ToTensor: {plain:.2f} ± {plain_sd:.2f}",
        "",
    ),
    (
        "gpu",
        "MNIST samples per second on a GPU, trials of 3 epochs, batch size 64",
        "{siftune:,.0f}",
        "DataLoader and ToTensor: {plain:,.0f}",
        "{ratio:.0f}",
    ),
    (
        "gpu",
        "",
        "",
        "with {workers:.0f} workers: {plain_workers:,.0f}",
        "{ratio_workers:.0f}",
    ),
    (
        "gpu",
        "Training time on a GPU to 99 % accuracy on the validation set, in seconds, 5 seeds, after "
        "a first run in the same process",
        "{to_99_s:.2f}, at most {to_99_longest_s:.2f}",
        "",
        "",
    ),
    (
        "gpu",
        "Accuracy on MNIST's test set in per cent, 5 seeds, 3 epochs of 50,000 images, on a GPU",
        "{siftune_accuracy:.2f} ± {siftune_accuracy_sd:.2f}",
        "DataLoader and ToTensor: {plain_accuracy:.2f} ± {plain_accuracy_sd:.2f}",
        "",
    ),
    (
        "packing",
        "MNIST trials per hour on a GPU, 3 epochs, batch size 64",
        "8 processes side by side: {beside:,.0f}",
        "one at a time: {alone:,.0f}",
        "{ratio:.1f}",
    ),
]

FAST_ROWS: list[Row] = [
    (
        "overhead",
        "Overhead per trial, each in a new process",
        "{siftune_s:.3f} s",
        "Ray Tune, an actor per trial: {ray_s:.2f} s",
        "{ray_ratio:.0f}",
    ),
    (
        "start",
        "From the start of a job to its first epoch, 4 nodes, trials that import torch",
        "{torch_siftune_s:.1f} s",
        "the launch script in Ray's documentation: {torch_recipe_s:.1f} s",
        "{torch_ratio:.1f}",
    ),
    (
        "page",
        "The 8-trial study from CALMIP's Turpan page, as one job",
        "{siftune_s:.0f} s",
        "the page's own script and batch file (which run 32 trials): at least {page_s:,.0f} s",
        "at least {ratio:.1f}",
    ),
    (
        "training",
        "MNIST samples per second on the CPU, 1 thread, batch size 64",
        "{siftune:,.0f}",
        "DataLoader and ToTensor: {plain:,.0f}",
        "{ratio:.1f}",
    ),
    (
        "search",
        "Share of the run time for which 8 slots wait for HEBO's proposals",
        "{hebo:.1%}",
        "Ray Tune's HEBOSearch: {ray_hebo:.0%}",
        "",
    ),
]

SLOTS = (8, 80, 800)
SCALE = (
    "| {slots} | {reports:.1f} | {delay:.3f} | {p99:.3f} | {cpus:.2f} | {mib:,.0f} | {files:,.0f} |"
)


def table() -> list[str]:
    """Returns the full table and, below it, the machines and dates, as lines of Markdown."""
    results = _results()
    lines = HEADER + _lines(ROWS, results)
    if "scale" in results:
        lines += ["", *_scale(results["scale"]["figures"])]
    return [*lines, "", *_machines(results)]


def fast_table() -> list[str]:
    """Returns the README's five rows and, below them, the machines and dates."""
    results = _results()
    machines = _machines_of_rows(results)
    if not any(name in results for name in NEEDS_GPU):
        machines.append("Not yet measured on a GPU.")
    return [*HEADER, *_lines(FAST_ROWS, results), "", *machines]


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _lines(rows: list[Row], results: dict[str, Any]) -> list[str]:
    """Returns the rows as lines of Markdown. A row without measurements says so."""
    lines = []
    for name, what, *cells in rows:
        try:
            rest = [cell.format(**results.get(name, {}).get("figures", {})) for cell in cells]
        except KeyError:
            if not what:  # it continues the row above
                continue
            rest = [f"Not yet measured{' on a GPU' if name in NEEDS_GPU else ''}", "", ""]
        lines.append(f"| {what} | {' | '.join(rest)} |")
    return lines


def _scale(figures: dict[str, float]) -> list[str]:
    lines = [
        "Many slots, simulated: the driver, Ray and all calls are real. The trials, with epochs of "
        "about 10 s, share a few processes. 800 slots are 200 nodes with 4 GPUs each.",
        "",
        "| slots | reports per second | seconds to a decision: median | 99th percentile "
        "| CPUs of the driver | MiB of the driver "
        "| file operations per minute in the study directory |",
        "|---|---|---|---|---|---|---|",
    ]
    for slots in SLOTS:
        names = {"reports": "reports_per_s", "delay": "delay_s", "p99": "delay_p99_s"}
        names |= {"cpus": "driver_cpus", "mib": "driver_mib", "files": "file_operations_per_minute"}
        row = {short: figures.get(f"{name}_{slots}", math.nan) for short, name in names.items()}
        lines.append(SCALE.format(slots=slots, **row).replace("nan", "not yet measured"))
    return lines


def _machines(results: dict[str, Any]) -> list[str]:
    """Returns a line for each machine and date, with the benchmarks measured there."""
    benchmarks: dict[str, list[str]] = {}
    for name, result in results.items():
        benchmarks.setdefault(f"{_machine(result)}, {result['date']}", []).append(name)
    return [f"Measured on {at}: {', '.join(sorted(names))}." for at, names in benchmarks.items()]


def _machines_of_rows(results: dict[str, Any]) -> list[str]:
    """Returns a line for each machine and date, with the numbers of the README's rows."""
    rows: dict[str, list[str]] = {}
    for number, (name, *_) in enumerate(FAST_ROWS, 1):
        if name in results:
            at = f"on {results[name]['date']} on {_machine(results[name])}"
            rows.setdefault(at, []).append(str(number))
    lines = []
    for at, (*others, last) in rows.items():
        numbers = f"Rows {', '.join(others)} and {last} were" if others else f"Row {last} was"
        lines.append(f"{numbers} measured {at}.")
    return lines


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    gpu = "no GPU" if machine["gpu"] == "none" else machine["gpu"]
    return f"{machine['cpu']}, {machine['memory_gib']} GiB, {gpu}"
