"""Cuts text into windows of tokens and applies T5's span corruption to them."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siftune.trainables.datasets import DataError

NOISE, SPAN = 0.15, 20  # fraction of a window that is removed, and mean span length
_HELD_OUT = 20  # one window in 20 is for validation


@dataclass(frozen=True)
class Vocabulary:
    """Token ids. The sentinels, which stand for removed spans, count down from `sentinel`."""

    size: int = 384  # as in ByT5: 256 bytes, 3 special tokens, 125 sentinels
    pad: int = 0
    eos: int = 1
    sentinel: int = 383
    first_byte: int = 3  # the id of byte 0; not used with a tokenizer


@dataclass(frozen=True)
class Text:
    """Training windows, int32 [N, length], and corrupted inputs and targets for validation.

    All tensors are on one device.
    """

    train: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    val_bytes: float  # bytes removed from all validation windows
    vocabulary: Vocabulary


@lru_cache(maxsize=1)
def load(
    text: str,
    *,
    length: int,
    windows: int | None,
    seed: int,
    device: torch.device,
    tokenizer: str = "",
) -> Text:
    """Reads the text in a file or a folder and cuts it into windows of `length` tokens.

    The default text is Python's standard library. `windows`: how many windows to use [all].
    `tokenizer`: a directory with a Hugging Face tokenizer. Without one, tokens are bytes.

    Raises DataError if there is too little text.
    """
    vocabulary, tokens, bytes_each = _tokens(text, tokenizer)
    count = len(tokens) // length
    cut = tokens[: count * length].view(count, length)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:windows]
    held_out = len(order) // _HELD_OUT
    if not held_out:
        raise DataError(
            f"{text or 'standard library'}: {len(order)} windows of {length} tokens are too few, "
            f"at least {_HELD_OUT} are needed: give more text or a smaller length"
        )
    val, train = cut[order[:held_out]].int(), cut[order[held_out:]].int()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs, targets = corrupt(val, vocabulary)
    return Text(
        train=train.to(device),
        val_inputs=inputs.to(device),
        val_targets=targets.to(device),
        val_bytes=held_out * _noise(length)[0] * bytes_each,
        vocabulary=vocabulary,
    )


def files(text: str) -> list[Path]:
    """Returns the files that hold the text. Raises DataError if there are none."""
    if not text:
        folder = Path(sysconfig.get_path("stdlib"))
        paths = [p for p in folder.rglob("*.py") if "site-packages" not in p.parts]
    elif (folder := Path(text)).is_file():
        paths = [folder]
    else:
        paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if not paths:
        raise DataError(f"there is no text in {folder}")
    return sorted(paths)


def corrupt(windows: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Removes random spans from each window [B, L]. Returns the inputs and the targets, int64.

    In the inputs a sentinel stands for each removed span. The targets are the removed spans, each
    after its sentinel. Both end with an end token. Every window gives the same lengths, so nothing
    is padded. Source: T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4), with spans of 20
    bytes on average, as in ByT5 (arXiv:2105.13626).
    """
    rows, length = windows.shape
    noise, spans = _noise(length)
    kept = _split(rows, length - noise, spans, windows.device)
    taken = _split(rows, noise, spans, windows.device)
    starts = torch.stack([kept, taken], 2).view(rows, 2 * spans).cumsum(1)[:, :-1]
    segment = torch.zeros(rows, length + 1, dtype=torch.int64, device=windows.device)
    segment.scatter_(1, starts, 1)
    segment = segment.cumsum(1)  # even: kept, odd: taken
    segment[:, -1] = 2 * spans
    before, segment, after = segment.roll(1, 1)[:, :-1], segment[:, :-1], segment[:, 1:]
    is_taken = segment % 2 == 1
    sentinel = vocabulary.sentinel - segment // 2
    first_taken = is_taken & (before != segment)
    last_kept = ~is_taken & (after != segment)
    inputs = torch.where(first_taken, sentinel, windows)
    targets = torch.where(last_kept, sentinel, windows)
    end = torch.full((rows, 1), vocabulary.eos, device=windows.device)
    return (
        torch.cat([_select(inputs, ~is_taken | first_taken, length - noise + spans), end], 1),
        torch.cat([_select(targets, is_taken | last_kept, noise + spans), end], 1),
    )


def lengths(length: int) -> tuple[int, int]:
    """Returns the lengths of the inputs and the targets of a window."""
    noise, spans = _noise(length)
    return length - noise + spans + 1, noise + spans + 1


def _noise(length: int) -> tuple[int, int]:
    """Returns how many tokens are removed from a window, and in how many spans."""
    noise = max(1, round(length * NOISE))
    return noise, max(1, round(noise / SPAN))


def _split(rows: int, total: int, parts: int, device: torch.device) -> Tensor:
    """Splits `total` at random into `parts` integers of at least 1: [rows, parts]."""
    cuts = torch.rand(rows, total - 1, device=device).argsort(1)[:, : parts - 1].sort(1).values + 1
    edges = torch.nn.functional.pad(cuts, (1, 0), value=0)
    return torch.nn.functional.pad(edges, (0, 1), value=total).diff(dim=1)


def _select(values: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Returns the chosen values of each row in order. Every row has `count` of them.

    A boolean mask would force a GPU synchronisation to count the selected values.
    """
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return values.gather(1, order).long()


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


def _tokens(text: str, tokenizer: str) -> tuple[Vocabulary, Tensor, float]:
    """Returns the vocabulary, the tokens, integers [N], and the mean number of bytes per token."""
    if not tokenizer:
        vocabulary = Vocabulary()
        whole = b"\n".join(content.encode() for content in _contents(text))
        # Two bytes per token: only the windows that are used are widened.
        numbers = torch.frombuffer(bytearray(whole), dtype=torch.uint8).to(torch.int16)
        return vocabulary, numbers.add_(vocabulary.first_byte), 1.0
    from transformers import AutoTokenizer

    reader: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    contents = list(_contents(text))
    lists = reader(contents, add_special_tokens=False)["input_ids"]
    numbers = torch.tensor([number for tokens in lists for number in tokens], dtype=torch.int32)
    vocabulary = Vocabulary(
        size=len(reader),
        pad=reader.pad_token_id,
        eos=reader.eos_token_id,
        sentinel=reader.convert_tokens_to_ids("<extra_id_0>"),
    )
    size = sum(len(content.encode()) for content in contents)
    return vocabulary, numbers, size / max(1, len(numbers))


def _contents(text: str) -> Iterator[str]:
    for path in files(text):
        if path.suffix in (".parquet", ".arrow"):
            yield from _column(path)
        elif path.suffix not in (".json", ".lock"):  # Hugging Face writes these next to the data
            yield path.read_text(errors="replace")


def _column(path: Path) -> Iterator[str]:
    """Yields the values of the column `text` in a Parquet or Arrow file of Hugging Face."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        with pyarrow.memory_map(str(path)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    if "text" not in table.column_names:
        raise DataError(f"{path} has no column 'text'; it has: {', '.join(table.column_names)}")
    yield from (str(value) for value in table["text"].to_pylist() if value)


def bits_per_byte(nats: float, text: Text) -> float:
    """Returns the bits per byte of the spans removed for validation, from the loss in nats."""
    return nats / math.log(2) / text.val_bytes
