"""Writes best.json as soon as an epoch is the best of the study."""

from typing import Any

from siftune.driver.progress import Progress
from siftune.record.journal import Event, Journal


class BestWriter:
    """An event sink that keeps best.json up to date."""

    def __init__(self, log: Journal) -> None:
        self._log = log

    def __call__(self, event: Event, progress: Progress) -> None:
        best = progress.best
        if best and best.is_of(event["trial"], event.get("epoch", 0)):
            write_best(self._log, progress)


def write_best(log: Journal, progress: Progress) -> None:
    """Writes best.json, if the study has a best epoch."""
    if (best := progress.best) is None:
        return
    content: dict[str, Any] = {"trial": best.trial, "config": best.config}
    content |= {"metrics": best.metrics, "epoch": best.epoch, "checkpoint": None}
    if best.checkpoint:
        files = sorted((log.directory / best.checkpoint).glob("*"))
        # If the checkpoint is a single file, the path of that file.
        path = files[0] if len(files) == 1 else log.directory / best.checkpoint
        content["checkpoint"] = str(path.relative_to(log.directory))
    log.sync()  # otherwise a power cut could remove the best epoch from the journal alone
    log.write("best.json", content)
