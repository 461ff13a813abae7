"""How many trials share a GPU where --gpus-per-trial is a fraction, and which: as memory allows.

At first nothing is known, and a GPU has one trial, which may take all of it. What its first epoch
took says how many fit; then each of them has an equal part, and runs out of memory by itself
where it would take more. Such a trial is tried again with a GPU of its own, to its end.
The largest trial so far counts: the parts may grow later, and a GPU then loses processes as
their trials end. No Ray and no torch in here; memory is in MiB.
"""

from dataclasses import dataclass, field

# The rest of a GPU's memory is for the driver, and for what does not go into whole blocks.
_USABLE = 0.95


def fitting(usable_mib: float, trial_mib: float, most: int) -> int:
    """How many such trials share a GPU, at most `most`; one that is too large is alone."""
    return max(1, min(most, int(usable_mib / max(1.0, trial_mib))))


@dataclass(slots=True)
class _Gpu:
    processes: set[int] = field(default_factory=set)
    alone: int | None = None  # the process that may take all of it
    emptying: bool = False  # for a trial that needs all of it


class Packing:
    """The GPUs of a study, and the processes that train trials there, by numbers."""

    def __init__(self, *, gpu_mib: float, most: int) -> None:
        """`most`: trials on a GPU at once, as the user's fraction and the CPUs have it."""
        self.most = most
        self.usable_mib = _USABLE * gpu_mib
        self.largest_mib: float | None = None  # that a trial took so far
        self._gpu_mib = gpu_mib
        self._known = False  # whether a trial has shown what it takes, or that it cannot be told
        self._gpus: dict[int, _Gpu] = {}

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
            len(gpu.processes) + 1 if gpu.emptying else 1 if gpu.alone is not None else self.share
            for gpu in self._gpus.values()
        )

    @property
    def gpus(self) -> tuple[int, int]:
        """How many there are, and on how many of them is a process."""
        return len(self._gpus), sum(bool(gpu.processes) for gpu in self._gpus.values())

    def room(self) -> int | None:
        """The GPU for one more process: the emptiest."""
        free = [
            (len(gpu.processes), number)
            for number, gpu in self._gpus.items()
            if gpu.alone is None and not gpu.emptying and len(gpu.processes) < self.share
        ]
        return min(free)[1] if free else None

    def room_alone(self) -> int | None:
        """A GPU without processes. If there is none, one gets no new ones from here on."""
        counted = [(len(gpu.processes), n) for n, gpu in self._gpus.items()]
        if counted and min(counted)[0] == 0:
            return min(counted)[1]
        if counted and not any(gpu.emptying for gpu in self._gpus.values()):
            self._gpus[min(counted)[1]].emptying = True
        return None

    def keeps(self, process: int) -> bool:
        """Whether the process, whose trial has ended, may train another one."""
        gpu = self._of(process)
        if gpu is None or gpu.emptying or (gpu.alone is not None and self._known):
            return False
        return len(gpu.processes) <= self.share

    def limit_mib(self, process: int) -> float | None:
        """What a trial that begins in the process may take; None: all of its GPU."""
        gpu = self._of(process)
        if gpu is None or gpu.alone == process or self.largest_mib is None:
            return None
        # Where there are more processes than there should be, the parts are still theirs.
        return self.usable_mib / max(self.share, len(gpu.processes))

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

    def there_are(self, gpus: set[int]) -> None:
        """These GPUs, and no others: they come and go with their nodes."""
        self._gpus = {number: self._gpus.get(number, _Gpu()) for number in gpus}

    def place(self, process: int, gpu: int, *, alone: bool = False) -> None:
        """A new process on a GPU that was found to have room; `alone`: to the end of its trial."""
        found = self._gpus[gpu]
        found.processes.add(process)
        if alone or not self._known:
            found.alone, found.emptying = process, False

    def leave(self, process: int) -> None:
        """The process has ended, or its GPU has gone."""
        if gpu := self._of(process):
            gpu.processes.discard(process)
            gpu.alone = None if gpu.alone == process else gpu.alone

    def report(self, process: int, mib: float | None, *, alone: bool = False) -> str | None:
        """The trial in the process has taken so much so far; None if that cannot be told. `alone`:
        it keeps its GPU to itself. The answer is a sentence if something is known anew."""
        gpu = self._of(process)
        if gpu is not None and gpu.alone == process and not alone:
            gpu.alone = None
        return self.know(mib)

    def know(self, mib: float | None) -> str | None:
        """As `report`, of a trial that is on no GPU now."""
        before = self._known, self.largest_mib is None, self.share
        self._known = True
        if mib is not None:
            self.largest_mib = max(mib, self.largest_mib or 0.0)
        return self.sentence() if before != (True, self.largest_mib is None, self.share) else None

    def _of(self, process: int) -> _Gpu | None:
        found = (gpu for gpu in self._gpus.values() if process in gpu.processes)
        return next(found, None)
