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

HEAD = 64
VALIDATION_BATCH = 64


class T5(BuiltIn):
    """T5 of any size, which learns to guess pieces that were taken out of a text."""

    name = "t5"
    space = SPACE
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
        """`text`: a file or a folder; [Python's standard library]. It is cut into windows of
        `length` tokens, of which `windows` are used; [all]. `model`: a directory with a T5 of
        Hugging Face's to begin from, and its tokenizer; the config's sizes are then ignored."""
        super().__init__(data=data, seed=seed)
        self._text = text
        self._length = length
        self._windows = windows
        self._model = model

    def prepare(self) -> None:
        """Looks for text and model. Raises DataError where there is none, or too little."""
        if self._model and not (Path(self._model) / "config.json").is_file():
            raise DataError(
                f"there is no model of Hugging Face's in {self._model}: it has no config.json"
            )
        self._load(torch.device("cpu"), seed=0)
        corpus.load.cache_clear()  # the driver needs none of it while the study runs

    def unneeded(self) -> tuple[str, ...]:
        """A given model has its own sizes."""
        return ("hidden_size", "num_heads", "num_layers", "d_ff") if self._model else ()

    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Metrics: `loss` (nats per token), `val_loss`, `bits_per_byte` (of the pieces taken out
        for validation), `epoch`, `samples_per_s` (windows). See `run_epochs` for `start`."""
        config = plain(config)
        device = default_device()
        text = self._load(device, self.seed)
        with reproducible(self.seed, 0, device):
            network: Any = _build(config, self._model)
        if config["recompute"]:
            network.activation_checkpointing_enable({"use_reentrant": False})
        parallel.shard(network, blocks(network))  # block by block: no GPU ever holds the whole
        network.to(device)
        # torch's fused=True is one kernel for all parameters, on the CPU too.
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
        """`val_loss` and `bits_per_byte` of the weights in `directory`."""
        device = default_device()
        text = self._load(device, self.seed)
        network: Any = _build(shards.info(directory)["config"], self._model)
        network.to(device)
        shards.load(directory, network, None)
        return _score(network, text)

    def memory_gib(self, space: Space, processes: int) -> float | None:
        """See `estimate_gib`. None if a given model has its own size."""
        return None if self._model else estimate_gib(space, processes, length=self._length)

    def _load(self, device: torch.device, seed: int) -> corpus.Text:
        has_tokenizer = self._model and any(Path(self._model).glob("*tokenizer*"))
        return corpus.load(
            self._text,
            length=self._length,
            windows=self._windows,
            seed=seed,
            device=device,
            tokenizer=self._model if has_tokenizer else "",  # else it reads bytes
        )


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


def estimate_gib(space: Space, processes: int, *, length: int) -> float:
    """Returns an upper estimate of the memory that each GPU needs for the largest config.

    Weights, their gradients and two moments are 16 bytes a parameter, divided among the GPUs. Two
    blocks are whole at a time, in bf16. Of a layer's activations are kept: 8 times the width, 4
    times the heads' values, 4 times d_ff, in bf16, and the scores of its attention, in all 9 bytes;
    where they are computed again, those of one layer, and the width of all. And 1 GiB for CUDA.
    """
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
