"""The trainable `t5`: T5 of any size, on bytes of any text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported

import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import T5Config, T5ForConditionalGeneration

from siftune.space import Space
from siftune.trainables.datasets import text as corpus
from siftune.trainables.datasets.mnist import DataError
from siftune.trainables.training import parallel, shards
from siftune.trainables.training.loop import (
    Metrics,
    Save,
    Training,
    default_device,
    plain,
    reproducible,
    run_epochs,
)

# The space of a study that names no other. Heads need not divide the width: as in T5, each has 64
# values whatever that is.
SPACE: dict[str, Any] = {
    "hidden_size": tune.choice([512, 768, 1024]),
    "num_heads": tune.choice([8, 12, 16]),
    "num_layers": tune.choice([4, 8, 12]),  # of the encoder, and as many of the decoder
    "d_ff": tune.choice([1024, 2048, 4096]),
    "dropout": tune.uniform(0.0, 0.2),
    "lr": tune.loguniform(1e-4, 3e-3),
    "warmup": tune.uniform(0.01, 0.2),  # part of the training in which lr rises
    "weight_decay": tune.loguniform(1e-4, 1e-1),
    "batch_size": tune.choice([32, 64, 128]),
    "accumulation": 1,  # parts in which a batch is computed, for the memory's sake
    "recompute": False,  # activations in the backward pass, for the memory's sake
    "epochs": 5,
}
METRIC = ("bits_per_byte", "min")

HEAD = 64
VALIDATION_BATCH = 64


def prepare(data: Path, **options: Any) -> None:
    """Looks for text and model, before any trial. Raises DataError where there is none, or too
    little."""
    if (model := options.get("model")) and not (Path(model) / "config.json").is_file():
        raise DataError(f"there is no model of Hugging Face's in {model}: it has no config.json")
    _load(torch.device("cpu"), 0, **options)
    corpus.load.cache_clear()  # not for the driver to hold as long as the study runs


def needless(*, model: str = "", **_: Any) -> tuple[str, ...]:
    """A given model has its sizes."""
    return ("hidden_size", "num_heads", "num_layers", "d_ff") if model else ()


def epochs(
    config: dict[str, Any],
    *,
    start: Path | None,
    seed: int,
    data: Path,
    text: str = "",
    length: int = 256,
    windows: int | None = None,
    model: str = "",
) -> Iterator[tuple[Metrics, Save]]:
    """Trains on the text of a file or a folder, by default Python's standard library, in windows of
    `length` bytes of which pieces are to be guessed.

    `model`: a directory with a T5 of Hugging Face's to begin from, and its tokenizer; the sizes of
    the config are not asked for then. Metrics: `loss` (nats per token), `val_loss`, `bits_per_byte`
    (of the validation's pieces), `epoch`, `samples_per_s` (windows). See `run_epochs` for `start`
    and saving.
    """
    config = plain(config)
    device = default_device()
    found = _load(device, seed, text=text, length=length, windows=windows, model=model)
    with reproducible(seed, 0, device):
        network: Any = _build(config, model)
    if config["recompute"]:
        network.activation_checkpointing_enable({"use_reentrant": False})
    parallel.shard(network, blocks(network))  # block by block: no GPU ever holds the whole
    network.to(device)
    # torch's fused=True is one kernel for all parameters, on the CPU too.
    optimizer = AdamW(
        network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=True
    )

    def batch_loss(batch: Tensor) -> Tensor:
        corrupted = corpus.corrupt(found.train[batch], found.vocabulary)
        return _nats(network, *corrupted) / target_length

    target_length = found.val_targets.shape[1]
    training = Training(
        config=config,
        model=network,
        optimizer=optimizer,
        batch_loss=batch_loss,
        validate=partial(_score, network, found),
        schedule=partial(schedule, config),
        samples=len(found.train),
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        device=device,
        accumulation=config["accumulation"],
        sharded=True,
    )
    yield from run_epochs(training, start=start, seed=seed)


def evaluate(directory: Path, *, seed: int, data: Path, **options: Any) -> dict[str, float]:
    """`val_loss` and `bits_per_byte` of the weights in `directory`; options as for `epochs`."""
    device = default_device()
    found = _load(device, seed, **options)
    config = shards.info(directory)["config"]
    network: Any = _build(config, options.get("model", ""))
    network.to(device)
    shards.load(directory, network, None)
    return _score(network, found)


def build(config: dict[str, Any], vocabulary: corpus.Vocabulary) -> T5ForConditionalGeneration:
    """The network; its parts, `blocks`, are what is sharded."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary.size,
        "d_model": config["hidden_size"],
        "d_kv": HEAD,
        "num_heads": config["num_heads"],
        "num_layers": config["num_layers"],
        "d_ff": config["d_ff"],
        "dropout_rate": config["dropout"],
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": vocabulary.pad,
        "eos_token_id": vocabulary.eos,
        "decoder_start_token_id": vocabulary.pad,
        "use_cache": False,
    }
    return T5ForConditionalGeneration(T5Config(**shape))


def blocks(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ == "T5Block"]


def schedule(config: dict[str, Any], optimizer: Optimizer, steps: int) -> LRScheduler:
    """lr rises during `warmup`, and falls as a cosine to a tenth."""

    def factor(step: int) -> float:
        share = (step + 1) / steps
        return min(1.0, share / config["warmup"]) * (0.55 + 0.45 * math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def memory_gib(space: Space, processes: int, *, length: int = 256, **options: Any) -> float | None:
    """An upper estimate of the memory that each GPU of a trial needs, for the largest of the space;
    None where a given model says its size.

    Weights, their gradients and two moments are 16 bytes a parameter, divided among the GPUs. Two
    blocks are whole at a time, in bf16. Of a layer's activations are kept: 8 times the width, 4
    times the heads' values, 4 times d_ff, in bf16, and the scores of its attention, in all 9 bytes;
    where they are computed again, those of one layer, and the width of all. And 1 GiB for CUDA.
    """
    if options.get("model"):
        return None
    config = {name: space.bounds(name)[1] for name in SPACE}
    with torch.device("meta"):
        network = build(config, corpus.Vocabulary())
    parameters = sum(p.numel() for p in network.parameters())
    block = max(sum(p.numel() for p in one.parameters()) for one in blocks(network))
    encoder, decoder = corpus.lengths(length)
    rows = math.ceil(config["batch_size"] / processes / space.bounds("accumulation")[0])
    inner = HEAD * config["num_heads"]
    values = 8 * config["hidden_size"] + 4 * inner + 4 * config["d_ff"]
    layers = []
    for tokens, attended in ((encoder, encoder), (decoder, encoder + decoder)):
        layers.append(rows * tokens * (2 * values + 9 * config["num_heads"] * attended))
    activations = config["num_layers"] * sum(layers)
    if space.bounds("recompute")[0]:
        kept = 2 * config["num_layers"] * rows * (encoder + decoder) * config["hidden_size"]
        activations = max(layers) + kept
    whole = 4 * block if processes > 1 else 2 * parameters
    return (16 * parameters / processes + whole + activations) / 2**30 + 1


def _build(config: dict[str, Any], model: str) -> T5ForConditionalGeneration:
    if not model:
        return build(config, corpus.Vocabulary())
    return T5ForConditionalGeneration.from_pretrained(
        model, local_files_only=True, dropout_rate=config["dropout"], dtype=torch.float32
    )


def _load(
    device: torch.device,
    seed: int,
    *,
    text: str = "",
    length: int = 256,
    windows: int | None = None,
    model: str = "",
) -> corpus.Text:
    return corpus.load(
        text, length=length, windows=windows, seed=seed, device=device, tokenizer=_tokenizer(model)
    )


def _tokenizer(model: str) -> str:
    """The directory, if the model there reads something else than bytes."""
    return model if model and any(Path(model).glob("*tokenizer*")) else ""


def _nats(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, summed over all tokens of the targets."""
    # Of several processes it is the sharding that computes in bf16.
    alone_on_gpu = inputs.is_cuda and parallel.processes() == 1
    with torch.autocast("cuda", torch.bfloat16) if alone_on_gpu else nullcontext():
        logits = network(input_ids=inputs, labels=targets).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
    )


def _score(network: nn.Module, found: corpus.Text) -> Metrics:
    network.eval()
    nats = torch.zeros((), device=found.train.device)
    inputs, targets = parallel.part(found.val_inputs), parallel.part(found.val_targets)
    with torch.no_grad():
        for some, truth in zip(
            inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH), strict=True
        ):
            nats += _nats(network, some, truth)
    total = parallel.total(nats).item()
    return {
        "val_loss": total / found.val_targets.numel(),
        "bits_per_byte": corpus.bits_per_byte(total, found),
    }
