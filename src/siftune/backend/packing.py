"""Decides how many trials share a GPU, and which GPU, if --gpus-per-trial is a fraction.

At first each GPU runs one trial, which may use all of its memory. The memory that a trial uses in
its first epoch determines how many trials fit. From then on each trial may use an equal share. If
a trial exceeds its share, only that trial runs out of memory, and it is retried with a GPU to
itself. Shares are sized for the largest trial so far. If they grow later, a GPU loses slots as the
trials in them end.

Memory is in MiB. This module uses neither Ray nor torch.
"""

from dataclasses import dataclass, field

from siftune.trial.gpu_memory import fitting

# The rest of a GPU's memory is for the driver and for fragmentation.
_USABLE = 0.95


Gpu = tuple[str, str]  # node id, and the GPU's name on that node


@dataclass(slots=True)
class _Gpu:
    slots: set[int] = field(default_factory=set)
    alone: int | None = None  # the slot whose trial may use the whole GPU
    emptying: bool = False  # takes no new slots, until a trial gets the whole GPU


class Packing:
    """The GPUs of a study and the slots on them. A slot exists as long as its trial runs."""

    def __init__(self, *, gpu_mib: float, most: int) -> None:
        """`gpu_mib`: the memory of a GPU. `most`: the maximum number of trials per GPU, given
        --gpus-per-trial and the CPUs."""
        self.most = most
        self.usable_mib = _USABLE * gpu_mib
        self.largest_mib: float | None = None  # the most that a trial has used so far
        self._gpu_mib = gpu_mib
        self._known = False  # whether a trial was measured, or cannot be
        self._gpus: dict[Gpu, _Gpu] = {}

    # ── Queries ─────────────────────────────────────────────────────────────────────────────────

    @property
    def share(self) -> int:
        """The number of trials that may share a GPU."""
        if not self._known:
            return 1
        if self.largest_mib is None:
            return self.most
        return fitting(self.usable_mib, self.largest_mib, self.most)

    @property
    def slots(self) -> int:
        """The number of trials that may run at once, including one that waits for a whole GPU."""
        return sum(
            len(gpu.slots) + 1 if gpu.emptying else 1 if gpu.alone is not None else self.share
            for gpu in self._gpus.values()
        )

    @property
    def gpus(self) -> tuple[int, int]:
        """The number of GPUs, and the number of those in use."""
        return len(self._gpus), sum(bool(gpu.slots) for gpu in self._gpus.values())

    def emptiest(self) -> Gpu | None:
        """Returns the GPU with the fewest slots; None if no GPU can take another slot."""
        free = [
            (len(gpu.slots), number)
            for number, gpu in self._gpus.items()
            if gpu.alone is None and not gpu.emptying and len(gpu.slots) < self.share
        ]
        return min(free)[1] if free else None

    def empty_a_gpu(self) -> Gpu | None:
        """Returns a GPU without slots.

        If there is none, returns None, and one of the GPUs takes no new slots from now on.
        """
        counted = [(len(gpu.slots), n) for n, gpu in self._gpus.items()]
        if counted and min(counted)[0] == 0:
            return min(counted)[1]
        if counted and not any(gpu.emptying for gpu in self._gpus.values()):
            self._gpus[min(counted)[1]].emptying = True
        return None

    def limit_mib(self, slot: int) -> float | None:
        """Returns the memory that the trial in the slot may use; None means the whole GPU."""
        gpu = self._gpu_of(slot)
        if gpu is None or gpu.alone == slot or self.largest_mib is None:
            return None
        # While a GPU has more slots than `share`, its memory is divided among all of them.
        return self.usable_mib / max(self.share, len(gpu.slots))

    def sentence(self) -> str:
        """Returns what is known about the memory of trials, as a sentence for the user."""
        if not self._known:
            return (
                f"up to {self.most} trials share a GPU: each GPU starts with one trial, to measure "
                "how much memory a trial uses"
            )
        if self.largest_mib is None:
            return (
                f"the GPU memory of a trial cannot be measured: {self.most} trials share a GPU, as "
                "given by --gpus-per-trial"
            )
        share, all_fit = self.share, self.share == self.most
        trials = f"{share} trial{'s' * (share != 1)}"
        fit = f"{trials} at a time" if all_fit else f"{trials} at a time, not {self.most}"
        return (
            f"a trial uses {self.largest_mib / 1024:.1f} of a GPU's {self._gpu_mib / 1024:.0f} "
            f"GiB, so a GPU can run {fit}"
        )

    # ── Events ──────────────────────────────────────────────────────────────────────────────────

    def there_are(self, gpus: set[Gpu]) -> None:
        """Sets the GPUs of the study, which come and go with their nodes."""
        self._gpus = {number: self._gpus.get(number, _Gpu()) for number in gpus}

    def place(self, slot: int, gpu: Gpu, *, alone: bool = False) -> None:
        """Adds a slot to a GPU that can take one. `alone`: its trial keeps the GPU to itself."""
        chosen = self._gpus[gpu]
        chosen.slots.add(slot)
        if alone or not self._known:
            chosen.alone, chosen.emptying = slot, False

    def leave(self, slot: int) -> None:
        """Removes the slot from its GPU, if the GPU is still there."""
        if gpu := self._gpu_of(slot):
            gpu.slots.discard(slot)
            gpu.alone = None if gpu.alone == slot else gpu.alone

    def report(self, slot: int, mib: float | None, *, alone: bool = False) -> str | None:
        """Records the peak memory of the trial in the slot; None if it cannot be measured.

        `alone`: the trial keeps its GPU to itself. Returns a sentence for the user if there is
        something new.
        """
        gpu = self._gpu_of(slot)
        if gpu is not None and gpu.alone == slot and not alone:
            gpu.alone = None
        return self.know(mib)

    def know(self, mib: float | None) -> str | None:
        """Records the memory of a trial that is not on a GPU now.

        Otherwise the same as `report`.
        """
        before = self._known, self.largest_mib is None, self.share
        self._known = True
        if mib is not None:
            self.largest_mib = max(mib, self.largest_mib or 0.0)
        return self.sentence() if before != (True, self.largest_mib is None, self.share) else None

    def _gpu_of(self, slot: int) -> _Gpu | None:
        return next((gpu for gpu in self._gpus.values() if slot in gpu.slots), None)
