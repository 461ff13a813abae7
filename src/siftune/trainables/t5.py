"""The trainable `t5`: T5 of any size, on the bytes of any text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers reads it at import

import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import T5Config, T5ForConditionalGeneration

from siftune.space import Config, Space
from siftune.trainables.base import BuiltIn, Metrics, Save
from siftune.trainables.datasets import DataError
from siftune.trainables.datasets import text as corpus
from siftune.trainables.training import parallel, shards
from siftune.trainables.training.loop import (
    Training,
    default_device,
    plain,
    reproducible,
    run_epochs,
)

# The default space. The number of heads need not divide the width: as in T5, each head has 64
# values, whatever the width is.
SPACE: dict[str, Any] = {
    "hidden_size": tune.choice([512, 768, 1024]),
    "num_heads": tune.choice([8, 12, 16]),
    "num_layers": tune.choice([4, 8, 12]),  # in the encoder, and the same number in the decoder
    "d_ff": tune.choice([1024, 2048, 4096]),
    "dropout": tune.uniform(0.0, 0.2),
    "lr": tune.loguniform(1e-4, 3e-3),
    "warmup": tune.uniform(0.01, 0.2),  # fraction of the training in which lr rises
    "weight_decay": tune.loguniform(1e-4, 1e-1),
    "batch_size": tune.choice([32, 64, 128]),
    "accumulation": 1,  # parts in which a batch is computed, to save memory
    "recompute": False,  # activations in the backward pass, to save memory
    "epochs": 5,
}

# What differs on a machine without a GPU: a toy, whose first epoch takes seconds on one CPU core.
CPU_SPACE: dict[str, Any] = {
    "hidden_size": tune.choice([32, 64]),
    "num_heads": tune.choice([1, 2, 4]),
    "num_layers": tune.choice([1, 2]),
    "d_ff": tune.choice([64, 128, 256]),
    "batch_size": tune.choice([16, 32]),
}
CPU_OPTIONS: dict[str, Any] = {"length": 128, "windows": 600}

HEAD = 64
_HEAP_BLOCK = 32 * 2**20  # bytes; glibc maps larger blocks, and returns them when they are freed
VALIDATION_BATCH = 64


class T5(BuiltIn):
    """T5 of any size, which learns to restore spans that were removed from a text."""

    name = "t5"
    space = SPACE
    cpu_space = CPU_SPACE
    cpu_options = CPU_OPTIONS
    metric = ("bits_per_byte", "min")

    def __init__(
        self,
        *,
        data: Path,
        seed: int,
        text: str = "",
        length: int = 256,
        windows: int | None = None,
        model: str = "",
    ) -> None:
        """Sets the text and the model to start from.

        `text`: a file or a folder [Python's standard library]. It is cut into windows of `length`
        tokens, and `windows` of them are used [all]. `model`: a directory with a Hugging Face T5
        model to start from, and its tokenizer. The config's sizes are then ignored.
        Without a GPU the commands have the defaults in `CPU_OPTIONS`.
        """
        super().__init__(data=data, seed=seed)
        self._text = text
        self._length = length
        self._windows = windows
        self._model = model

    def prepare(self) -> None:
        """Checks the text and the model. Raises DataError if one is missing or too small."""
        if self._model and not (Path(self._model) / "config.json").is_file():
            raise DataError(
                f"there is no Hugging Face model in {self._model}: config.json is missing"
            )
        self._load(torch.device("cpu"), seed=0)
        corpus.load.cache_clear()  # the driver does not need the text while the study runs

    def unneeded(self) -> tuple[str, ...]:
        """Returns the sizes if there is a `model`, which determines them."""
        return ("hidden_size", "num_heads", "num_layers", "d_ff") if self._model else ()

    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics and a function that saves the state.

        Metrics: `loss` (nats per token), `val_loss`, `bits_per_byte` (of the spans removed for
        validation), `epoch`, `samples_per_s` (windows). See `run_epochs` for `start` and saving.
        """
        config = plain(config)
        device = default_device()
        text = self._load(device, self.seed)
        with reproducible(self.seed, 0, device):
            network: Any = _build(config, self._model)
        if config["recompute"]:
            network.activation_checkpointing_enable({"use_reentrant": False})
        # Moved block by block, so that no GPU ever holds the whole model.
        parallel.shard(network, blocks(network))
        network.to(device)
        # fused=True updates all parameters in one kernel, on the CPU too.
        optimizer = AdamW(
            network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=True
        )

        def batch_loss(batch: Tensor) -> Tensor:
            corrupted = corpus.corrupt(text.train[batch], text.vocabulary)
            return _nats(network, *corrupted) / target_length

        target_length = text.val_targets.shape[1]
        training = Training(
            config=config,
            model=network,
            optimizer=optimizer,
            batch_loss=batch_loss,
            validate=partial(_score, network, text),
            schedule=partial(schedule, config),
            samples=len(text.train),
            batch_size=config["batch_size"],
            epochs=config["epochs"],
            device=device,
            accumulation=config["accumulation"],
            sharded=True,
        )
        yield from run_epochs(training, start=start, seed=self.seed)

    def evaluate(self, directory: Path) -> Metrics:
        """Returns `val_loss` and `bits_per_byte` of the weights in `directory`."""
        device = default_device()
        text = self._load(device, self.seed)
        network: Any = _build(shards.info(directory)["config"], self._model)
        network.to(device)
        shards.load(directory, network, None)
        return _score(network, text)

    def memory_gib(self, space: Space, processes: int, *, gpu: bool) -> float | None:
        """Returns the estimate for a GPU or a CPU, or None if `model` determines the sizes."""
        if self._model:
            return None
        if gpu:
            return estimate_gib(space, processes, length=self._length)
        text_bytes = sum(path.stat().st_size for path in corpus.files(self._text))
        return cpu_estimate_gib(space, processes, length=self._length, text_bytes=text_bytes)

    def _load(self, device: torch.device, seed: int) -> corpus.Text:
        has_tokenizer = self._model and any(Path(self._model).glob("*tokenizer*"))
        return corpus.load(
            self._text,
            length=self._length,
            windows=self._windows,
            seed=seed,
            device=device,
            tokenizer=self._model if has_tokenizer else "",  # without one, tokens are bytes
        )


def build(config: dict[str, Any], vocabulary: corpus.Vocabulary) -> T5ForConditionalGeneration:
    """Returns the network. Its `blocks` are the units of sharding."""
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
    """Returns a schedule: lr rises during `warmup` and follows a cosine down to a tenth."""

    def factor(step: int) -> float:
        share = (step + 1) / steps
        return min(1.0, share / config["warmup"]) * (0.55 + 0.45 * math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def estimate_gib(space: Space, processes: int, *, length: int) -> float:
    """Returns an upper estimate of the memory in GiB that each GPU needs for the largest config.

    It is the sum of:

    - weights, gradients and two moments: 16 bytes per parameter, divided among the GPUs
    - weights in bf16: two whole blocks, or the whole model if there is one process
    - activations of each layer, per token: 8 times the width, 4 times the heads' values and 4 times
      d_ff in bf16, and 9 bytes per attention score. With `recompute`: the activations of one
      layer only, plus, for every layer, one bf16 value per unit of width
    - CUDA: 1 GiB
    """
    config = {name: space.bounds(name)[1] for name in SPACE}
    with torch.device("meta"):
        network = build(config, corpus.Vocabulary())
    parameters = sum(p.numel() for p in network.parameters())
    largest_block = max(sum(p.numel() for p in b.parameters()) for b in blocks(network))
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
    whole = 4 * largest_block if processes > 1 else 2 * parameters
    return (16 * parameters / processes + whole + activations) / 2**30 + 1


def cpu_estimate_gib(space: Space, processes: int, *, length: int, text_bytes: int) -> float:
    """Returns an upper estimate of the memory in GiB of each process of a trial without a GPU.

    It is for the largest config, and the sum of:

    - the process with its libraries: 0.55 GiB
    - reading the text: 5 bytes per byte
    - weights, gradients and two moments: 16 bytes per parameter, divided among the processes
    - activations in float32: the bytes that torch saves for the backward pass, counted per token
      of a layer, with 10% for those in use. Tensors below 32 MiB count 1.9 times, because glibc
      keeps them in its heap, which becomes fragmented. Both factors are measured
    """
    config = {name: space.bounds(name)[1] for name in SPACE}
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(config, corpus.Vocabulary()).parameters())
    encoder, decoder = corpus.lengths(length)
    rows = math.ceil(config["batch_size"] / processes / space.bounds("accumulation")[0])
    hidden, heads, inner = config["hidden_size"], config["num_heads"], HEAD * config["num_heads"]

    def held(values: float, of: int) -> float:
        """Returns the memory of tensors with `of` values per row and `values` bytes in all."""
        return rows * values * (1.9 if rows * 4 * of < _HEAP_BLOCK else 1.1)

    kinds = []
    for tokens, attended, width, score in (
        (encoder, encoder, 30, 11),
        (decoder, encoder + decoder, 62, 19),
    ):
        kinds += [
            held(width * tokens * hidden, tokens * hidden),
            held(24 * tokens * inner, tokens * inner),
            held(33 * tokens * config["d_ff"], tokens * config["d_ff"]),
            held(score * tokens * attended * heads, tokens * attended * heads),
        ]
    layers = 1 if space.bounds("recompute")[0] else config["num_layers"]
    kept = held(8 * config["num_layers"] * (encoder + decoder) * hidden, encoder * hidden)
    ends = held(21 * (encoder + decoder) * hidden, encoder * hidden)
    ends += held(12 * decoder * corpus.Vocabulary().size, decoder * corpus.Vocabulary().size)
    activations = layers * sum(kinds) + ends + (kept if layers < config["num_layers"] else 0)
    return (16 * parameters / processes + activations + 5 * text_bytes) / 2**30 + 0.55


def _build(config: dict[str, Any], model: str) -> T5ForConditionalGeneration:
    if not model:
        return build(config, corpus.Vocabulary())
    return T5ForConditionalGeneration.from_pretrained(
        model, local_files_only=True, dropout_rate=config["dropout"], dtype=torch.float32
    )


def _nats(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the loss, summed over all tokens of the targets."""
    # With several processes, FSDP2 computes in bf16.
    alone_on_gpu = inputs.is_cuda and parallel.processes() == 1
    with torch.autocast("cuda", torch.bfloat16) if alone_on_gpu else nullcontext():
        logits = network(input_ids=inputs, labels=targets).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
    )


def _score(network: nn.Module, text: corpus.Text) -> Metrics:
    network.eval()
    nats = torch.zeros((), device=text.train.device)
    inputs, targets = parallel.part(text.val_inputs), parallel.part(text.val_targets)
    with torch.no_grad():
        for batch, truth in zip(
            inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH), strict=True
        ):
            nats += _nats(network, batch, truth)
    total = parallel.total(nats).item()
    return {
        "val_loss": total / text.val_targets.numel(),
        "bits_per_byte": corpus.bits_per_byte(total, text),
    }
