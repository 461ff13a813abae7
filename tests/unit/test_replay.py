"""Steps that are recorded on a GPU train what they would train unrecorded.

What is recorded is the same on the CPU, but for the recording: there it is run, and compared with
the loop that all else trains in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from test_mnist import CONFIG, SEED

from siftune.trainables import loop, mnist, replay, resnet18
from siftune.trainables.loop import STATE_FILE, Metrics
from siftune.trainables.update import Rates, set_rates, step_at

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 1200  # of which 1000 are trained on: 15 full batches of 64, and one of 40
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
Trained = tuple[list[Metrics], dict[str, Any]]


class Trainer:
    """Trains mnist on a few images, with its steps in the form that is recorded, or without."""

    def __init__(self, data: Path, states: Path, patch: pytest.MonkeyPatch) -> None:
        self._data, self._states, self._patch = data, states, patch

    def train(self, recorded: bool, start: Path | None = None, **changed: Any) -> Trained:
        """Each epoch's metrics, and the state after the last."""
        self._patch.setattr(loop, "_worth_recording", lambda *_: recorded)
        seen = []
        for metrics, save in mnist.epochs(
            CONFIG | changed, start=start, seed=SEED, data=self._data, images=IMAGES
        ):
            save(self.state(metrics["epoch"]))
            seen.append({name: value for name, value in metrics.items() if "per_s" not in name})
        return seen, torch.load(self.state(seen[-1]["epoch"]) / STATE_FILE, weights_only=True)

    def state(self, epoch: float) -> Path:
        return self._states / f"{epoch:.0f}"


@pytest.fixture
def trainer(mnist_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(replay, "_say", pytest.fail)  # on a GPU, if nothing was recorded
    return Trainer(mnist_directory, tmp_path, monkeypatch)


def assert_equal(one: Trained, other: Trained) -> None:
    assert one[0] == other[0]
    for name in ("model", "moments"):
        torch.testing.assert_close(one[1][name], other[1][name], rtol=0, atol=0)


def assert_close(one: Trained, other: Trained) -> None:
    """As close as rounding leaves them: Adam makes whole steps of a gradient that is 0, but for
    rounding, as that of a bias before batch normalisation."""
    assert len(one[0]) == len(other[0])
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=5e-2)


OPTIMIZERS = pytest.mark.parametrize("optimizer", list(mnist.OPTIMIZERS))
SCHEDULERS = pytest.mark.parametrize("scheduler", ["none", "cosine", "step", "onecycle"])


@OPTIMIZERS
@SCHEDULERS
def test_steps_by_number_train_what_the_plain_loop_does(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, optimizer: str, scheduler: str
) -> None:
    def in_float32(*words: Any) -> Rates:
        lr, momentum = rates(*words)
        return torch.tensor(lr).item(), momentum

    rates = mnist.rates
    monkeypatch.setattr(mnist, "rates", in_float32)
    changed = {"optimizer": optimizer, "scheduler": scheduler, "epochs": 2}
    plain, by_number = (trainer.train(recorded, **changed) for recorded in (False, True))
    compare = assert_close if scheduler == "onecycle" else assert_equal
    compare(by_number, plain)


@pytest.mark.parametrize("scheduler", ["cosine", "onecycle"])
def test_steps_by_number_go_on_from_a_saved_state(trainer: Trainer, scheduler: str) -> None:
    whole, state = trainer.train(True, scheduler=scheduler)
    rest = trainer.train(True, start=trainer.state(1), scheduler=scheduler)
    assert_equal(rest, (whole[1:], state))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize(
    "make", {**mnist.OPTIMIZERS, "nesterov": resnet18.OPTIMIZERS["sgd"]}.values()
)
def test_rates_on_the_device_are_those_as_numbers(make: Any, changing: bool, decay: float) -> None:
    torch.manual_seed(0)  # in float64, so that what is not rounding shows
    shapes = ((3, 4), (5,), ())
    theirs = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    mine = [value.detach().clone().requires_grad_() for value in theirs]
    reference, optimizer = (make(values, lr=1.0, weight_decay=decay) for values in (theirs, mine))
    for step in range(8):
        for value, same in zip(theirs, mine, strict=True):
            value.grad = torch.randn_like(value)
            same.grad = value.grad.clone()
        lr, momentum = 0.1 / (step + 1), 0.85 + step / 70 if changing else None
        set_rates(reference, lr, momentum)
        reference.step()
        given = None if momentum is None else torch.tensor(momentum, dtype=torch.double)
        step_at(optimizer, torch.tensor(lr, dtype=torch.double), given)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    states = [o.state_dict()["state"] for o in (optimizer, reference)]
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-9)


def test_only_one_gpu_alone_records_and_only_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(done: int = 0, device: str = "cuda", **changed: Any) -> bool:
        fields: dict[str, Any] = {"samples": 6450, "batch_size": 64, "epochs": 2, "config": {}}
        fields |= {"model": None, "optimizer": None, "batch_loss": None, "validate": None}
        fields |= {"rates": None, "device": torch.device(device), "recordable": True} | changed
        return loop._worth_recording(loop.Training(**fields), done)

    assert worth()
    assert worth(done=1)
    assert not worth(done=1, batch_size=65)  # 99 steps
    assert not worth(device="cpu")
    assert not worth(accumulation=2)
    assert not worth(recordable=False)
    monkeypatch.setattr(loop.parallel, "processes", lambda: 2)
    assert not worth()


@pytest.mark.parametrize("fails", [False, True])
def test_work_is_run_recorded_and_replayed_in_turn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    """What is asked of CUDA, in its place: the tests below ask CUDA itself."""
    done: list[str] = []

    @contextmanager
    def recording(graph: Any, stream: Any) -> Iterator[None]:
        done.append("record")
        yield
        done.pop()  # to record is not to run
        if fails:
            raise torch.AcceleratorError("operation not permitted\nwhen stream is capturing")

    cuda = MagicMock(graph=recording)
    cuda.CUDAGraph.return_value.replay = lambda: done.append("replay")
    monkeypatch.setattr(torch, "cuda", cuda)
    replay._say.cache_clear()
    for _ in range(2):
        done.clear()
        runs = replay.Replay()
        for _ in range(replay.WARM_UPS + 3):
            runs(lambda: done.append("run"))
        rest = ["record", *["run" if fails else "replay"] * 3]
        assert done == ["run"] * replay.WARM_UPS + rest
        assert runs.recorded == (not fails)
    said = "trains without a CUDA graph, which could not be recorded: operation not permitted\n"
    assert capfd.readouterr().err == (said if fails else "")


@needs_gpu
@OPTIMIZERS
@SCHEDULERS
def test_recorded_steps_train_what_unrecorded_do(
    trainer: Trainer, optimizer: str, scheduler: str
) -> None:
    changed = {"optimizer": optimizer, "scheduler": scheduler, "epochs": 2}
    plain, recorded = (trainer.train(recorded, **changed) for recorded in (False, True))
    assert_close(recorded, plain)


@needs_gpu
def test_recorded_training_is_reproducible_and_resumable(trainer: Trainer) -> None:
    before = torch.cuda.get_rng_state()
    whole, state = trainer.train(True, scheduler="onecycle")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.rand(3, device="cuda")  # the process is used by other trials between the two
    assert_equal(trainer.train(True, scheduler="onecycle"), (whole, state))
    rest = trainer.train(True, start=trainer.state(1), scheduler="onecycle")
    assert_equal(rest, (whole[1:], state))


@needs_gpu
def test_replays_draw_the_random_numbers_that_the_work_would() -> None:
    drawn = torch.zeros(1000, device="cuda")

    def work() -> None:
        drawn.copy_(torch.nn.functional.dropout(torch.ones_like(drawn)))

    replayed = replay.Replay()
    seen = []
    for run in (replayed, lambda work: work()):
        torch.manual_seed(5)
        for _ in range(replay.WARM_UPS + 3):
            run(work)
            seen.append(drawn.tolist())
    assert replayed.recorded
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert seen[-1] != seen[-2]


@needs_gpu
def test_work_that_waits_for_the_gpu_is_run_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    counter = torch.zeros((), device="cuda")

    def work() -> None:
        counter.add_(torch.nn.functional.dropout(torch.ones_like(counter), 0.0))
        counter.item()

    replay._say.cache_clear()
    runs = replay.Replay()
    for _ in range(replay.WARM_UPS + 4):
        runs(work)
        torch.rand(3, device="cuda")  # the generator is not left waiting
    assert not runs.recorded
    assert counter.item() == replay.WARM_UPS + 4
    assert capfd.readouterr().err.count("trains without a CUDA graph") == 1
