"""summary.json: figures about a study, added up across interruptions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune.machine.gpus import Usage, Usages
from siftune.record import journal
from siftune.record.journal import Event

NAME = "summary.json"


def read(directory: Path) -> dict[str, Any]:
    """Returns the summary of a study directory; {} if it is not written yet."""
    return journal.read_json(directory / NAME)


def unseen_s(directory: Path, events: Sequence[Event]) -> float:
    """Returns how long a killed study ran after its last summary, in s."""
    if not events or not (summary := directory / NAME).exists():
        return 0.0
    return max(0.0, events[-1]["time"] - summary.stat().st_mtime)


def gpu_entries(before: Mapping[str, Any], now: Usages) -> dict[str, Any]:
    """Returns the entries for GPU utilisation: the mean over all GPUs and all time, and the mean
    of each node. `before`: an earlier summary, whose samples are added."""
    earlier = _usages(before)
    usages = {
        node: earlier.get(node, Usage()) + now.get(node, Usage()) for node in {**earlier, **now}
    }
    return {
        "gpu_utilisation": sum(usages.values(), Usage()).utilisation,
        "gpu_nodes": {
            node: {"samples": usage.samples, "utilisation": usage.utilisation}
            for node, usage in sorted(usages.items())
            if usage.samples
        },
    }


def _usages(content: Mapping[str, Any]) -> Usages:
    return {
        node: Usage(entry["samples"], 100 * entry["utilisation"] * entry["samples"])
        for node, entry in content.get("gpu_nodes", {}).items()
    }
