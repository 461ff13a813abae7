"""The trainable `t5`: real text, every size, and its memory."""

import json
import math
import multiprocessing
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_parallel import Pool, pool, run  # noqa: F401  a fixture

from siftune.cli import flags, tune
from siftune.space import Space
from siftune.study.presets import PRESETS
from siftune.study.reading import read
from siftune.trainables import t5
from siftune.trainables.datasets import text as corpus
from siftune.trainables.datasets.mnist import DataError
from siftune.trainables.training.loop import Metrics

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "hidden_size": 40,  # not divisible by 3 heads
    "num_heads": 3,
    "num_layers": 2,
    "d_ff": 64,
    "dropout": 0.0,
    "lr": 3e-3,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "batch_size": 16,
    "accumulation": 1,
    "recompute": False,
    "epochs": 2,
}
OPTIONS: dict[str, Any] = {"length": 96, "windows": 340}
VOCABULARY = corpus.Vocabulary()


def train(directory: Path, start: Path | None, config: dict[str, Any], **options: Any) -> list[Any]:
    """Returns each epoch's metrics without its speed, and leaves the last state in `directory`."""
    metrics: list[Metrics] = []
    options = OPTIONS | options
    for epoch, save in t5.T5(seed=1, data=directory, **options).epochs(
        CONFIG | config, start=start
    ):
        save(directory)
        metrics.append({k: v for k, v in epoch.items() if k != "samples_per_s"})
    return metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Metrics], Path]:
    directory = tmp_path_factory.mktemp("whole")
    return train(directory, None, {}), directory


def test_it_learns_from_the_standard_library(whole: tuple[list[Metrics], Path]) -> None:
    first, second = whole[0]
    assert 0 < second["bits_per_byte"] < first["bits_per_byte"] < 8
    assert second["loss"] < first["loss"] < math.log(384)
    assert t5.T5(seed=1, data=whole[1], **OPTIONS).evaluate(whole[1]) == pytest.approx(
        {name: second[name] for name in ("val_loss", "bits_per_byte")}, rel=1e-6
    )


@pytest.mark.parametrize("change", [{"accumulation": 3}, {"recompute": True}])
def test_what_saves_memory_changes_nothing_else(
    whole: tuple[list[Metrics], Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    for expected, same in zip(whole[0], train(tmp_path, None, change), strict=True):
        assert expected == pytest.approx(same, rel=1e-3)


def test_two_processes_have_half_of_it_each_and_train_the_same(
    pool: Pool,  # noqa: F811
    whole: tuple[list[Metrics], Path],
    tmp_path: Path,
) -> None:
    first, second = run(pool, _sharded, 2, tmp_path / "m", tmp_path / "state")
    assert first[0] == second[0]
    for expected, same in zip(whole[0], first[0], strict=True):
        assert expected == pytest.approx(same, rel=1e-3)
    parameters = sum(p.numel() for p in t5.build(CONFIG, VOCABULARY).parameters())
    assert first[1] + second[1] == parameters
    assert abs(first[1] - second[1]) < 0.1 * parameters


def _sharded(directory: Path) -> tuple[list[Metrics], int]:
    """Returns the metrics, and how many of the parameters this process holds after the training."""
    import gc

    from torch.distributed.tensor import DTensor

    metrics = train(directory, None, {})
    kept = [o for o in gc.get_objects() if isinstance(o, DTensor) and o.requires_grad]
    return metrics, sum(tensor.to_local().numel() for tensor in kept)


@pytest.mark.parametrize(("saved_by", "read_by"), [(1, 2), (2, 1), (2, 3)])
def test_a_checkpoint_goes_on_in_another_number_of_processes(
    pool: Pool,  # noqa: F811
    whole: tuple[list[Metrics], Path],
    tmp_path: Path,
    saved_by: int,
    read_by: int,
) -> None:
    state, rest = tmp_path / "state", tmp_path / "rest"
    if saved_by == 1:
        _one_epoch(state)
    else:
        run(pool, _one_epoch, saved_by, tmp_path / "m1", state)
    if read_by == 1:
        (second,) = train(rest, state, {})
    else:
        ((second,), *_) = run(pool, train, read_by, tmp_path / "m2", rest, state, {})
    assert second == pytest.approx(whole[0][1], rel=1e-3)


def _one_epoch(directory: Path) -> None:
    _, save = next(t5.T5(seed=1, data=directory, **OPTIONS).epochs(CONFIG, start=None))
    save(directory)


def test_what_is_taken_out_can_be_put_back() -> None:
    windows = torch.randint(3, 259, (50, 300))
    inputs, targets = corpus.corrupt(windows, VOCABULARY)
    assert (inputs.shape[1], targets.shape[1]) == corpus.lengths(300)
    for window, kept, taken in zip(
        windows.tolist(), inputs.tolist(), targets.tolist(), strict=True
    ):
        assert (kept.pop(), taken.pop()) == (VOCABULARY.eos, VOCABULARY.eos)
        pieces: dict[int, list[int]] = {}
        for token in taken:
            if token >= 259:
                pieces[token] = []
                last = pieces[token]
            else:
                last.append(token)
        assert list(pieces) == [383, 382]
        assert all(pieces.values())
        put_back = [t for token in kept for t in pieces.get(token, [token])]
        assert put_back == window


def test_a_model_and_a_data_set_of_hugging_faces(tmp_path: Path) -> None:
    t5.build(CONFIG, VOCABULARY).save_pretrained(tmp_path / "model")
    frame = pd.DataFrame({"text": ["a sentence that is not too short. " * 40] * 10})
    (tmp_path / "set").mkdir()
    frame.to_parquet(tmp_path / "set" / "train.parquet")
    options = {"model": str(tmp_path / "model"), "text": str(tmp_path / "set"), "windows": 100}
    t5.T5(data=tmp_path, seed=0, **OPTIONS | options).prepare()
    config = {"num_layers": 7}  # ignored: the model's own sizes apply
    first, second = train(tmp_path / "state", None, config, **options)
    assert second["bits_per_byte"] < first["bits_per_byte"]
    frame.rename(columns={"text": "content"}).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(DataError, match="no column 'text'; it has: content"):
        t5.T5(data=tmp_path, seed=0, **OPTIONS | options | {"windows": 99}).prepare()


def test_what_is_not_there_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text in"):
        t5.T5(data=tmp_path, seed=0, text=str(tmp_path)).prepare()
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="are too few"):
        t5.T5(data=tmp_path, seed=0, text=str(tmp_path)).prepare()
    with pytest.raises(DataError, match=r"no Hugging Face model in .*config\.json"):
        t5.T5(data=tmp_path, seed=0, model=str(tmp_path)).prepare()


def test_the_preset_of_five_billion_parameters() -> None:
    study = read([PRESETS["t5-5b"]], {})
    with torch.device("meta"):
        network = t5.build({name: study.space.bounds(name)[1] for name in t5.SPACE}, VOCABULARY)
    assert 4.5e9 < sum(p.numel() for p in network.parameters()) < 5.5e9
    one, two, four = (
        t5.estimate_gib(study.space, processes, length=256) for processes in (1, 2, 4)
    )
    assert one
    assert two
    assert four
    assert one > 79 > two > 4.9e9 * 16 / 2 / 2**30  # an A100 has 79 GiB
    assert two > four


def test_the_estimate_grows_with_what_costs_memory() -> None:
    def needed(**changed: Any) -> float:
        gib = t5.estimate_gib(Space.read(t5.SPACE | changed), 1, length=256)
        assert gib
        return gib

    assert needed() < 79
    assert needed(batch_size=256) > needed() > needed(accumulation=4) > needed(recompute=True)
    given = t5.T5(data=Path(), seed=0, model="given")
    assert given.memory_gib(Space.read(t5.SPACE), 1, gpu=True) is None


CPU_LARGEST: dict[str, Any] = CONFIG | {"dropout": 0.1}
CPU_LARGEST |= {name: max(domain.categories) for name, domain in t5.CPU_SPACE.items()}


MEASURED: list[tuple[dict[str, Any], int]] = [
    (CPU_LARGEST, t5.CPU_OPTIONS["length"]),
    (CPU_LARGEST | {"d_ff": 1024, "batch_size": 128, "num_layers": 1}, 256),
]


# How much less the imported libraries take on some machines: their pages count once they are read.
IMPORTS_GIB = 0.2


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Returns the figures that `measure` prints. Its interpreter has no other fork server."""
    command = [sys.executable, "-c", "import test_t5; test_t5.measure()"]
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure() -> None:
    """Prints the peaks and the time, of processes that are forked from a server that has imported
    torch, as those of trials are."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["siftune.trainables.t5", "ray.tune"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
        peaks = [executor.submit(_peak_gib, *case).result() for case in MEASURED]
        print(json.dumps({"gib": peaks, "epoch_s": executor.submit(_epoch_cpu_s).result()}))


def _peak_gib(config: dict[str, Any], length: int) -> float:
    """Returns the peak memory of a process that trains four batches."""
    torch.set_num_threads(1)
    windows = math.ceil(4 * config["batch_size"] / 0.95) + 20
    trainable = t5.T5(data=Path(), seed=0, length=length, windows=windows)
    next(trainable.epochs(config | {"epochs": 1}, start=None))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _epoch_cpu_s() -> float:
    """Returns the processor time of the first epoch of the largest default config."""
    torch.set_num_threads(1)
    before = time.process_time()
    next(t5.T5(data=Path(), seed=0, **t5.CPU_OPTIONS).epochs(CPU_LARGEST, start=None))
    return time.process_time() - before


def test_without_a_gpu_the_first_epoch_comes_in_seconds(
    alone: dict[str, Any], record_property: Any
) -> None:
    record_property("figures", f"{alone['epoch_s']:.1f} s of processor time for the first epoch")
    assert alone["epoch_s"] < 30


@pytest.mark.parametrize("case", range(len(MEASURED)))
def test_the_estimate_without_a_gpu_holds(
    alone: dict[str, Any], case: int, record_property: Any
) -> None:
    config, length = MEASURED[case]
    used = alone["gib"][case]
    space = Space.read(t5.SPACE | config)
    estimated = t5.T5(data=Path(), seed=0, length=length).memory_gib(space, 1, gpu=False)
    record_property("figures", f"{used:.2f} GiB used, {estimated:.2f} GiB estimated")
    assert estimated
    assert used <= estimated <= 1.25 * used + IMPORTS_GIB


@pytest.mark.parametrize(
    ("words", "windows", "batch_size"),
    [
        (["--gpus-per-trial", "0"], 600, 32),
        (["--gpus-per-trial", "0", "--trainable-arg", "windows=40"], 40, 32),
        (["--gpus-per-trial", "1"], None, 128),
    ],
)
def test_the_commands_have_smaller_defaults_without_a_gpu(
    words: list[str], windows: int | None, batch_size: int
) -> None:
    arguments = flags.parse(tune.parser(), ["--trainable", "t5", *words])
    request, _ = flags.read_study(vars(arguments))
    assert request.trainable_options.get("windows") == windows
    assert request.space.bounds("batch_size")[1] == batch_size


def test_the_state_is_read_without_running_it(whole: tuple[list[Metrics], Path]) -> None:
    files = sorted(path.suffix for path in whole[1].iterdir())
    assert files == [".json", ".safetensors"]
    assert json.loads((whole[1] / "state.json").read_text())["epoch"] == 2
