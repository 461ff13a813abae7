"""The README's table of what `make bench` measured, made from results.json."""

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")

# Benchmark, what is measured, siftune's figure, what is beside it, the ratio; {figure:format}.
ROWS: list[tuple[str, str, str, str, str]] = [
    (
        "overhead",
        "seconds that a trial costs beyond its training, a fresh process for each: 256 trials that "
        "import torch and train nothing, 2 slots",
        "{siftune_s:.3f}",
        "Ray Tune, an actor per trial: {ray_s:.2f}",
        "{ray_ratio:.0f}",
    ),
    ("overhead", "", "", "Optuna, a process per trial: {optuna_s:.2f}", "{optuna_ratio:.0f}"),
    ("overhead", "", "", "Syne Tune, local: {syne_tune_s:.2f}", "{syne_tune_ratio:.0f}"),
    (
        "overhead",
        "the same without the start of the worker",
        "{siftune_warm_s:.4f}",
        "",
        "",
    ),
    (
        "overhead",
        "the same with processes that are reused",
        "{siftune_reuse_warm_s:.4f}",
        "Ray Tune, actors reused: {ray_reuse_warm_s:.4f}",
        "{warm:.1f}",
    ),
    (
        "growth",
        "the same of the 2,000th trial, and of the 200th, with Optuna's TPE",
        "{trial_2000_s:.3f}",
        "{trial_200_s:.3f}",
        "{ratio:.2f}",
    ),
    (
        "search",
        "part of the time that 8 slots wait for a proposal: 48 trials of 1 to 10 epochs of 2 s",
        "HEBO: {hebo:.3f}, Optuna's GP: {optuna_gp:.3f}, BOHB: {bohb:.5f}",
        "Ray Tune's HEBOSearch: {ray_hebo:.2f}",
        "",
    ),
    (
        "start",
        "seconds from a job's start to its first epoch, 4 nodes with 2 GPUs each",
        "{siftune_s:.1f}",
        "the launch script of Ray's documentation: {recipe_s:.1f}",
        "{ratio:.1f}",
    ),
    (
        "start",
        "the same of trials that import torch",
        "{torch_siftune_s:.1f}",
        "the launch script of Ray's documentation: {torch_recipe_s:.1f}",
        "{torch_ratio:.1f}",
    ),
    (
        "cold",
        "seconds that `import torch, ray.tune` takes in the image, nothing cached",
        "{image_s:.1f}",
        "the same files unpacked: {unpacked_s:.1f}",
        "{ratio:.2f}",
    ),
    (
        "scaling",
        "8 trials that sleep on 8 GPUs, against 1 on 1: part of the ideal",
        "{efficiency:.2f}",
        "",
        "",
    ),
    (
        "page",
        "seconds of a job with the 8 trials of the Turpan page's study, 4 nodes with 2 GPUs each",
        "{siftune_s:.0f}",
        "the page's script and batch file, which run 32: at least {page_s:,.0f}",
        "at least {ratio:.1f}",
    ),
    (
        "training",
        "MNIST samples per second on the CPU, 1 thread, batch 64",
        "{siftune:,.0f}",
        "DataLoader + ToTensor: {plain:,.0f}",
        "{ratio:.1f}",
    ),
    (
        "accuracy",
        "accuracy on MNIST's test set in per cent, 5 seeds, 2 epochs of 10,000 images, on the CPU",
        "{siftune:.2f} ± {siftune_sd:.2f}",
        "DataLoader + ToTensor: {plain:.2f} ± {plain_sd:.2f}",
        "",
    ),
    (
        "gpu",
        "MNIST samples per second on a GPU, trials of 3 epochs, batch 64",
        "{siftune:,.0f}",
        "DataLoader + ToTensor: {plain:,.0f}",
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
        "seconds of training on it to 99 % of the validation set, 5 seeds, once warm",
        "{to_99_s:.2f}, at most {to_99_longest_s:.2f}",
        "",
        "",
    ),
    (
        "gpu",
        "accuracy on MNIST's test set in per cent, 5 seeds, 3 epochs of 50,000 images",
        "{siftune_accuracy:.2f} ± {siftune_accuracy_sd:.2f}",
        "DataLoader + ToTensor: {plain_accuracy:.2f} ± {plain_accuracy_sd:.2f}",
        "",
    ),
    (
        "packing",
        "trials per hour of MNIST on a GPU, 3 epochs, batch 64",
        "8 processes side by side: {beside:,.0f}",
        "one at a time: {alone:,.0f}",
        "{ratio:.1f}",
    ),
]
SLOTS = (8, 80, 800)
SCALE = (
    "| {slots} | {reports:.1f} | {delay:.3f} | {p99:.3f} | {cpus:.2f} | {mib:,.0f} | {files:,.0f} |"
)


def table() -> list[str]:
    """Lines of Markdown. What has not been measured says so."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    lines = ["| | siftune | beside it | ratio |", "|---|---|---|---|"]
    for name, what, *cells in ROWS:
        try:
            rest = [cell.format(**results.get(name, {}).get("figures", {})) for cell in cells]
        except KeyError:
            if not what:  # it belongs to the row above
                continue
            why = ": no GPU was at hand" if name in ("gpu", "packing") else ""
            rest = [f"not measured{why}", "", ""]
        lines.append(f"| {what} | {' | '.join(rest)} |")
    if "scale" in results:
        lines += ["", *_scale(results["scale"]["figures"])]
    return [*lines, "", *_machines(results)]


def _scale(figures: dict[str, float]) -> list[str]:
    lines = [
        "Many slots, simulated: the driver, Ray and all calls are real, and trials, with epochs of "
        "about 10 s, share a few processes. 800 slots are 200 nodes with 4 GPUs each.",
        "",
        "| slots | reports a second | seconds to a decision: median | 99 % | driver's CPUs "
        "| its MiB | file operations a minute in the study's directory |",
        "|---|---|---|---|---|---|---|",
    ]
    for slots in SLOTS:
        names = {"reports": "reports_per_s", "delay": "delay_s", "p99": "delay_p99_s"}
        names |= {"cpus": "driver_cpus", "mib": "driver_mib", "files": "file_operations_per_minute"}
        row = {short: figures.get(f"{name}_{slots}", math.nan) for short, name in names.items()}
        lines.append(SCALE.format(slots=slots, **row).replace("nan", "not measured"))
    return lines


def _machines(results: dict[str, Any]) -> list[str]:
    """On what, and when."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        machine = result["machine"]
        gpu = "no GPU" if machine["gpu"] == "none" else machine["gpu"]
        where = f"{machine['cpu']}, {machine['memory_gib']} GiB, {gpu}, {result['date']}"
        found.setdefault(where, []).append(name)
    return [f"Measured on {where}: {', '.join(sorted(names))}." for where, names in found.items()]
