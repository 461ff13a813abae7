"""How many trials share a GPU where --gpus-per-trial is a fraction, and which: as memory allows.

At first nothing is known, and a GPU has one trial, which may use all of it. The memory that its
first epoch used says how many fit. Then each has an equal part, and runs out of memory by itself
where it would use more: such a trial is retried with a GPU to itself. The largest trial so far
counts: the parts may grow later, and a GPU then loses slots as their trials end. No Ray and no
torch in here; memory is in MiB.
"""

from dataclasses import dataclass, field

from siftune.trial.gpu_memory import fitting

# The rest of a GPU's memory is for the driver, and for what does not go into whole blocks.
_USABLE = 0.95


Gpu = tuple[str, str]  # node and number there


@dataclass(slots=True)
class _Gpu:
    slots: set[int] = field(default_factory=set)
    alone: int | None = None  # the slot that may use all of it
    emptying: bool = False  # for a trial that needs all of it


class Packing:
    """The GPUs of a study, and the slots there: a slot is there as long as its trial runs."""

    def __init__(self, *, gpu_mib: float, most: int) -> None:
        """`most`: trials on a GPU at once, as the user's fraction and the CPUs have it."""
        self.most = most
        self.usable_mib = _USABLE * gpu_mib
        self.largest_mib: float | None = None  # that a trial took so far
        self._gpu_mib = gpu_mib
        self._known = False  # whether a trial has shown what it takes, or that it cannot be told
        self._gpus: dict[Gpu, _Gpu] = {}

    # ── Questions ───────────────────────────────────────────────────────────────────────────────

    @property
    def share(self) -> int:
        """Trials on a GPU at once."""
        if not self._known:
            return 1
        if self.largest_mib is None:
            return self.most
        return fitting(self.usable_mib, self.largest_mib, self.most)

    @property
    def slots(self) -> int:
        """Trials that may run at once. One that waits for a GPU of its own is among them."""
        return sum(
            len(gpu.slots) + 1 if gpu.emptying else 1 if gpu.alone is not None else self.share
            for gpu in self._gpus.values()
        )

    @property
    def gpus(self) -> tuple[int, int]:
        """How many there are, and how many of them have a slot."""
        return len(self._gpus), sum(bool(gpu.slots) for gpu in self._gpus.values())

    def emptiest(self) -> Gpu | None:
        """The GPU for one more slot: that with the fewest. None: all are full."""
        free = [
            (len(gpu.slots), number)
            for number, gpu in self._gpus.items()
            if gpu.alone is None and not gpu.emptying and len(gpu.slots) < self.share
        ]
        return min(free)[1] if free else None

    def empty_a_gpu(self) -> Gpu | None:
        """A GPU without slots. If there is none, one gets no new slots from here on."""
        counted = [(len(gpu.slots), n) for n, gpu in self._gpus.items()]
        if counted and min(counted)[0] == 0:
            return min(counted)[1]
        if counted and not any(gpu.emptying for gpu in self._gpus.values()):
            self._gpus[min(counted)[1]].emptying = True
        return None

    def limit_mib(self, slot: int) -> float | None:
        """The memory that a trial in the slot may use. None: all of its GPU."""
        gpu = self._of(slot)
        if gpu is None or gpu.alone == slot or self.largest_mib is None:
            return None
        # Where there are more slots than there should be, the parts are still theirs.
        return self.usable_mib / max(self.share, len(gpu.slots))

    def sentence(self) -> str:
        """What is known, in words."""
        if not self._known:
            return (
                f"up to {self.most} trials share a GPU: each begins with one, whose first epoch "
                "shows what a trial takes of its memory"
            )
        if self.largest_mib is None:
            return (
                f"what a trial takes of its GPU cannot be measured: {self.most} share one, as "
                "--gpus-per-trial has it"
            )
        share, all_fit = self.share, self.share == self.most
        fit = f"{share} share a GPU" if all_fit else f"{share} of the {self.most} fit on a GPU"
        return (
            f"a trial takes {self.largest_mib / 1024:.1f} GiB of {self._gpu_mib / 1024:.0f}: {fit}"
        )

    # ── Events ──────────────────────────────────────────────────────────────────────────────────

    def there_are(self, gpus: set[Gpu]) -> None:
        """These GPUs, and no others: they come and go with their nodes."""
        self._gpus = {number: self._gpus.get(number, _Gpu()) for number in gpus}

    def place(self, slot: int, gpu: Gpu, *, alone: bool = False) -> None:
        """A new slot on a GPU that can take one; `alone`: to the end of its trial."""
        found = self._gpus[gpu]
        found.slots.add(slot)
        if alone or not self._known:
            found.alone, found.emptying = slot, False

    def leave(self, slot: int) -> None:
        """The slot is closed, or its GPU has gone."""
        if gpu := self._of(slot):
            gpu.slots.discard(slot)
            gpu.alone = None if gpu.alone == slot else gpu.alone

    def report(self, slot: int, mib: float | None, *, alone: bool = False) -> str | None:
        """The trial in the slot has used so much so far; None if that cannot be measured. `alone`:
        it keeps its GPU to itself. Returns a sentence if something new is known."""
        gpu = self._of(slot)
        if gpu is not None and gpu.alone == slot and not alone:
            gpu.alone = None
        return self.know(mib)

    def know(self, mib: float | None) -> str | None:
        """As `report`, of a trial that is on no GPU now."""
        before = self._known, self.largest_mib is None, self.share
        self._known = True
        if mib is not None:
            self.largest_mib = max(mib, self.largest_mib or 0.0)
        return self.sentence() if before != (True, self.largest_mib is None, self.share) else None

    def _of(self, slot: int) -> _Gpu | None:
        found = (gpu for gpu in self._gpus.values() if slot in gpu.slots)
        return next(found, None)
