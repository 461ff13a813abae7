"""Trials that share a GPU never use more memory than it has, whatever they need."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siftune.backend.packing import Packing, fitting
from siftune.driver import checks
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.machine import gpus
from siftune.machine.resources import Node
from siftune.record import journal
from siftune.study.reading import read_saved
from siftune.trial import gpu_memory

GIB = 1024.0
STAND_INS = Path(__file__).parents[1] / "stand_ins"


def packing(most: int = 8, gpus: int = 2) -> Packing:
    made = Packing(gpu_mib=80 * GIB, most=most)
    made.there_are(set(range(gpus)))
    return made


def start(packer: Packing, process: int, *, alone: bool = False) -> int | None:
    gpu = packer.empty_a_gpu() if alone else packer.emptiest()
    if gpu is not None:
        packer.place(process, gpu, alone=alone)
    return gpu


def uses(gib: str, trials: str) -> str:
    return f"a trial uses {gib} of a GPU's 80 GiB, so a GPU can run {trials}"


def test_each_gpu_begins_with_one_and_the_first_epoch_opens_the_rest() -> None:
    packer = packing()
    assert [start(packer, i) for i in range(3)] == [0, 1, None]
    assert packer.slots == 2
    assert packer.limit_mib(0) is None
    assert packer.report(0, 9.1 * GIB) == uses("9.1", "8 trials at a time")
    # The other GPU's trial may still need all of it.
    assert packer.slots == 8 + 1
    assert [start(packer, i) for i in range(2, 10)] == [0] * 7 + [None]
    assert packer.limit_mib(2) == 0.95 * 80 * GIB / 8
    assert packer.report(1, 9.0 * GIB) is None
    assert packer.slots == 16
    assert start(packer, 10) == 1


def test_fewer_fit_than_were_asked_for() -> None:
    packer = packing()
    start(packer, 0)
    assert packer.report(0, 14.2 * GIB) == uses("14.2", "5 trials at a time, not 8")
    assert [start(packer, i) for i in range(1, 6)] == [1, 0, 1, 0, 1]
    assert packer.report(2, 100 * GIB) == uses("100.0", "1 trial at a time, not 8")


def test_what_cannot_be_measured_is_as_the_user_says() -> None:
    packer = packing()
    start(packer, 0)
    assert "cannot be measured: 8 trials share a GPU" in (packer.report(0, None) or "")
    assert packer.slots == 16
    assert packer.limit_mib(0) is None


def test_new_trials_are_spread() -> None:
    packer = packing(gpus=3)
    packer.know(1.0)
    assert [start(packer, i) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_gpu_takes_fewer_trials_when_a_larger_one_was_seen() -> None:
    packer = packing(gpus=1)
    packer.know(9 * GIB)
    for i in range(8):
        start(packer, i)
    packer.report(0, 20 * GIB)
    for i in range(5):
        packer.leave(i)
        assert start(packer, 8) is None
    packer.leave(5)
    assert start(packer, 8) == 0


def test_a_gpu_is_emptied_for_a_trial_that_needs_all_of_it_and_kept_to_its_end() -> None:
    packer = packing(most=2)
    packer.know(9 * GIB)
    assert [start(packer, i) for i in range(3)] == [0, 1, 0]
    assert start(packer, 3, alone=True) is None
    assert start(packer, 3, alone=True) is None
    assert start(packer, 4) is None  # not on the GPU that is being emptied
    assert packer.slots == 2 + 2
    packer.leave(1)
    assert start(packer, 3, alone=True) == 1
    assert packer.slots == 2 + 1
    packer.report(3, 10 * GIB, alone=True)
    assert start(packer, 5) is None
    assert packer.limit_mib(3) is None
    packer.leave(3)
    assert start(packer, 5) == 1


def test_gpus_come_and_go() -> None:
    packer = packing(most=2)
    packer.know(9 * GIB)
    start(packer, 0)
    start(packer, 1)
    packer.there_are({1, 2})
    assert packer.slots == 4
    packer.leave(0)
    assert start(packer, 2) == 2


@settings(max_examples=300, deadline=None)
@given(
    most=st.integers(1, 10),
    gpus=st.integers(1, 3),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["start", "alone", "report", "end"]),
            st.integers(0, 30),
            st.floats(0.1, 100.0),
        ),
        max_size=120,
    ),
)
def test_the_trials_on_a_gpu_may_never_take_more_than_it_has(
    most: int, gpus: int, steps: list[tuple[str, int, float]]
) -> None:
    """Each trial uses at most its limit, as in siftune.driver.loop.

    The limit is set at its start. If it was the whole GPU, the first epoch lowers it.
    """
    packer, numbers = packing(most, gpus), itertools.count()
    limits: dict[int, tuple[int, float, bool]] = {}  # by process: GPU, limit, has it alone
    for what, which, gib in steps:
        if what in ("start", "alone"):
            process = next(numbers)
            gpu = start(packer, process, alone=what == "alone")
            if gpu is not None:
                limit = packer.limit_mib(process)
                limits[process] = (gpu, limit or packer.usable_mib, what == "alone")
        elif limits:
            process = sorted(limits)[which % len(limits)]
            gpu, limit, alone = limits[process]
            if what == "report":
                mib = min(gib * GIB, limit)
                if not alone and limit == packer.usable_mib:
                    limit = packer.usable_mib / fitting(packer.usable_mib, mib, most)
                limits[process] = gpu, limit, alone
                packer.report(process, mib, alone=alone)
            else:
                packer.leave(process)
                del limits[process]
        for number in range(gpus):
            taken = sum(limit for gpu, limit, _ in limits.values() if gpu == number)
            assert taken <= packer.usable_mib * (1 + 1e-9)


# ── Measuring in a process, and resuming after an interruption ───────────────────────────────────


def test_without_cuda_nothing_is_measured_and_a_limit_is_no_error() -> None:
    gpu_memory.limit(1000.0)
    gpu_memory.forget()
    assert gpu_memory.used_mib() is None


@pytest.mark.parametrize(
    ("apps", "held"),
    [
        ("1, 512\nOWN, 9318\n", 9318.0),
        ("OWN, [N/A]\n", None),
        ("1, 512\n", None),  # in its own PID namespace
        ("", None),
    ],
)
def test_the_drivers_part_is_asked_for(
    apps: str, held: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{STAND_INS}:{os.environ['PATH']}")
    monkeypatch.setenv("APPS", apps.replace("OWN", str(os.getpid())))
    assert gpus.process_mib(os.getpid()) == held
    monkeypatch.setattr(gpu_memory, "_context_mib", None)
    assert gpu_memory._driver_mib(9000.0) == (318.0 if held else gpu_memory._CONTEXT_MIB)


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
def test_a_process_is_held_to_its_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu_memory.limit(4096.0)
    torch.empty(2**30, dtype=torch.uint8, device="cuda")
    taken = gpu_memory.used_mib()
    assert taken is not None
    assert 1024 < taken < 1024 + 1000
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(2**32, dtype=torch.uint8, device="cuda")
    gpu_memory.forget()
    assert (gpu_memory.used_mib() or 0) < 1024
    gpu_memory.limit(None)
    torch.empty(2**32, dtype=torch.uint8, device="cuda")


NODES = [Node(cpus=40, gpus=2)]


def resumed(written: Callable[..., Any], **layer: Any) -> Packing | None:
    study = written(gpus_per_trial=0.125, trials=8, **layer)
    name = study.start()
    study.epoch(name, 1, 1.0, gpu_mib=9 * GIB)
    study.epoch(name, 2, 1.0, gpu_mib=10 * GIB)
    saved = read_saved(study.directory)
    proposals = Proposals(saved, saved.build_searcher())
    progress = Progress(
        saved, proposals, saved.build_scheduler(), slots=1, write=lambda event: None
    )
    progress.replay(journal.events(study.directory))
    return checks.packing_of(saved, NODES, progress)


def test_what_was_measured_before_an_interruption_is_known(
    written: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "memory_gib", lambda: 80.0)
    packer = resumed(written)
    assert packer
    assert packer.sentence() == uses("10.0", "7 trials at a time, not 8")
    few = resumed(lambda **layer: written("few", **layer), cpus_per_trial=5)
    assert few
    assert few.most == 4  # limited by the CPUs


def test_without_a_gpu_nothing_is_packed(
    written: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "memory_gib", lambda: None)
    assert resumed(written) is None


@pytest.mark.parametrize(
    ("devices", "visible", "says"),
    [
        (0, None, "no GPU found: trials run on the CPU"),
        (2, "", "no GPU found: trials run on the CPU"),  # the user wants none
        (2, None, "torch can use none of the 2 NVIDIA GPUs here, so trials run on the CPU: "),
    ],
)
def test_gpus_that_torch_cannot_use_are_told_from_none(
    written: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    devices: int,
    visible: str | None,
    says: str,
) -> None:
    monkeypatch.setattr(gpus, "nvidia_devices", lambda: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    study = read_saved(written().directory)
    assert next(checks.notes(study, [Node(cpus=4, gpus=0)], 4)).startswith(says)


def test_a_trial_that_ran_out_of_memory_has_a_gpu_of_its_own_after_an_interruption_too(
    written: Callable[..., Any],
) -> None:
    study = written()
    first, second = study.start(), study.start(lr=0.2)
    study.event("restart", first, epoch=0, cause="memory")
    study.event("restart", second, epoch=0, cause="crash")
    trials: dict[str, journal.Trial] = {}
    for event in journal.events(study.directory):
        journal.fold(trials, event)
    assert (trials[first].needs_whole_gpu, trials[second].needs_whole_gpu) == (True, False)
