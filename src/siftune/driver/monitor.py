"""The periodic work of the driver while trials run: limits, slots, summary.json."""

import sys
import time
from collections.abc import Callable

from siftune.backend.packing import Packing
from siftune.driver.progress import Progress
from siftune.machine import resources
from siftune.machine.gpus import Usages
from siftune.machine.resources import Node
from siftune.record import journal, summary
from siftune.record.journal import Journal
from siftune.record.lease import Lease
from siftune.study.study import Study

_WRITE_S = 5.0  # between two writes of summary.json


def count_slots(study: Study, nodes: list[Node]) -> int:
    """Returns how many trials run at once on these nodes; 0 if none fits."""
    slots = resources.slots(
        nodes,
        cpus_per_trial=study.cpus_per_trial,
        gpus_per_trial=study.gpus_per_trial,
        processes=study.processes,
    )
    return min(slots, study.concurrent or sys.maxsize)


class Monitor:
    """Decides when the study must stop, counts its slots, and writes its summary."""

    def __init__(
        self,
        progress: Progress,
        log: Journal,
        lease: Lease,
        *,
        signals: list[int],
        packing: Packing | None = None,
        nodes_now: Callable[[], list[Node]] = list,
        usage: Callable[[], Usages] = dict,
        look: Callable[[], None] = lambda: None,
        unseen_s: float = 0.0,
    ) -> None:
        """`signals`: those received so far, a list that grows. `usage`: returns the utilisation of
        the GPUs since the start. `look`: other work, called often. `unseen_s`:
        earlier run time that is missing in summary.json."""
        self._progress = progress
        self._log = log
        self._lease = lease
        self._signals = signals
        self._packing = packing
        self._nodes_now = nodes_now
        self._usage = usage
        self._look = look
        self._start = self._written = self._counted = time.monotonic()
        self._packed = -1  # the slots of the packing when last counted
        self._slot_s = unseen_s * progress.slots
        self._before = summary.read(log.directory)
        self._wall_s = self._before.get("wall_s", 0.0) + unseen_s

    def look(self) -> bool:
        """Does the work that is due. Returns whether the study must stop."""
        now = time.monotonic()
        self._look()
        if self._packing and self._packing.slots != self._packed:
            self._count_slots()
        if now - self._written > _WRITE_S:
            self._written = now
            self._log.sync()
            self._count_slots()
            self.write_summary()
            self._lease.check()
        limit_s = self._progress.study.time_limit_s
        return bool(self._signals) or (limit_s is not None and now - self._start > limit_s)

    def _count_slots(self) -> None:
        """Updates the number of slots: nodes may be lost, or added by another job."""
        now, study = time.monotonic(), self._progress.study
        self._slot_s += (now - self._counted) * self._progress.slots
        self._counted = now
        if self._packing:
            self._packed = self._packing.slots
            slots = min(self._packed, study.concurrent or sys.maxsize)
        else:
            slots = count_slots(study, self._nodes_now())
        self._progress.slots = max(1, slots)

    def write_summary(self) -> None:
        """Writes summary.json. Raises StorageError."""
        progress, before = self._progress, self._before
        trials = progress.trials.values()
        per_trial = progress.study.gpus_per_trial
        gpus, busy = progress.slots * per_trial, progress.by_state()["running"] * per_trial
        if self._packing:
            gpus, busy = self._packing.gpus
        now = time.monotonic()
        trial_s = sum(trial.seconds for trial in trials)
        ended = sum(trial.state in journal.STATES for trial in trials)
        slot_s = self._slot_s + (now - self._counted) * progress.slots
        slot_s += before.get("slot_s", 0.0)
        content = {
            "trials": progress.by_state(),
            "wall_s": now - self._start + self._wall_s,
            "trial_s": trial_s,
            "slots": progress.slots,
            "gpus": gpus,
            "gpus_busy": busy,
            "slot_s": slot_s,
            "busy_fraction": trial_s / slot_s if slot_s else 0.0,
            "overhead_s_per_trial": max(0.0, slot_s - trial_s) / max(1, ended),
            "suggest_s": progress.proposals.spent_s + before.get("suggest_s", 0.0),
            "suggest_wait_s": progress.suggest_wait_s + before.get("suggest_wait_s", 0.0),
            "restarts": sum(trial.restarts for trial in trials),
        }
        content |= summary.gpu_entries(before, self._usage())
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in content.items()}
        self._log.write(summary.NAME, rounded)
