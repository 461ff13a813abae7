"""Text as windows of tokens, and T5's span corruption of them."""

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

NOISE, SPAN = 0.15, 20  # part of a window that is taken out, and mean length of a piece
_HELD_OUT = 20  # one window of so many is for validation


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of tokens. Sentinels, which stand for pieces, count down from `sentinel`."""

    size: int = 384  # as ByT5: 256 bytes, three special ones, 125 sentinels
    pad: int = 0
    eos: int = 1
    sentinel: int = 383
    first_byte: int = 3  # the byte 0; no matter where there is a tokenizer


@dataclass(frozen=True)
class Text:
    """Windows, int32 [N, length], for training; and for validation, corrupted already, inputs and
    targets. All on one device."""

    train: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    val_bytes: float  # that were taken out, of all windows
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
    """The text in a file or a folder, by default Python's own standard library, cut into windows of
    `length` tokens; `windows` of them, or all. Tokens are bytes unless there is a tokenizer, a
    directory of Hugging Face's.

    Raises DataError where there is too little text.
    """
    vocabulary, tokens, bytes_each = _tokens(text, tokenizer)
    count = len(tokens) // length
    cut = tokens[: count * length].view(count, length)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:windows]
    held_out = len(order) // _HELD_OUT
    if not held_out:
        raise DataError(
            f"{text or 'the standard library'}: {len(order)} windows of {length} are too few, "
            f"{_HELD_OUT} are needed: give more text, or a smaller length"
        )
    val, train = cut[order[:held_out]], cut[order[held_out:]]
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
    """Where the text is. Raises DataError if there is none."""
    if not text:
        folder = Path(sysconfig.get_path("stdlib"))
        found = [p for p in folder.rglob("*.py") if "site-packages" not in p.parts]
    elif (folder := Path(text)).is_file():
        found = [folder]
    else:
        found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if not found:
        raise DataError(f"there is no text in {folder}")
    return sorted(found)


def corrupt(windows: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Takes random pieces out of each window, as T5 is trained (Raffel et al. 2020,
    arXiv:1910.10683, section 3.1.4; pieces of 20, as for bytes in ByT5, arXiv:2105.13626).

    [B, L] to inputs, in which a sentinel stands for each piece, and targets, the pieces, each after
    its sentinel; int64, both with an end. As long for each window, so that nothing is padded.
    """
    rows, length = windows.shape
    noise, pieces = _noise(length)
    kept = _split(rows, length - noise, pieces, windows.device)
    taken = _split(rows, noise, pieces, windows.device)
    starts = torch.stack([kept, taken], 2).view(rows, 2 * pieces).cumsum(1)[:, :-1]
    segment = torch.zeros(rows, length + 1, dtype=torch.int64, device=windows.device)
    segment.scatter_(1, starts, 1)
    segment = segment.cumsum(1)  # even: kept, odd: taken
    segment[:, -1] = 2 * pieces
    before, segment, after = segment.roll(1, 1)[:, :-1], segment[:, :-1], segment[:, 1:]
    is_taken = segment % 2 == 1
    sentinel = vocabulary.sentinel - segment // 2
    first_taken = is_taken & (before != segment)
    last_kept = ~is_taken & (after != segment)
    inputs = torch.where(first_taken, sentinel, windows)
    targets = torch.where(last_kept, sentinel, windows)
    end = torch.full((rows, 1), vocabulary.eos, device=windows.device)
    return (
        torch.cat([_where(inputs, ~is_taken | first_taken, length - noise + pieces), end], 1),
        torch.cat([_where(targets, is_taken | last_kept, noise + pieces), end], 1),
    )


def lengths(length: int) -> tuple[int, int]:
    """Of inputs and targets of a window."""
    noise, pieces = _noise(length)
    return length - noise + pieces + 1, noise + pieces + 1


def _noise(length: int) -> tuple[int, int]:
    """Tokens that are taken out of a window, and in how many pieces."""
    noise = max(1, round(length * NOISE))
    return noise, max(1, round(noise / SPAN))


def _split(rows: int, total: int, parts: int, device: torch.device) -> Tensor:
    """[rows, parts]: `total` as the sum of so many, at least 1 each, at random."""
    cuts = torch.rand(rows, total - 1, device=device).argsort(1)[:, : parts - 1].sort(1).values + 1
    edges = torch.nn.functional.pad(cuts, (1, 0), value=0)
    return torch.nn.functional.pad(edges, (0, 1), value=total).diff(dim=1)


def _where(values: Tensor, chosen: Tensor, count: int) -> Tensor:
    """The chosen of each row, `count` in all of them, in their order. (A mask as an index would
    wait for the GPU to count them.)"""
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return values.gather(1, order).long()


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


def _tokens(text: str, tokenizer: str) -> tuple[Vocabulary, Tensor, float]:
    """Tokens, int32 [N], and the bytes that one stands for on average."""
    if not tokenizer:
        vocabulary = Vocabulary()
        whole = b"\n".join(content.encode() for content in _contents(text))
        found = torch.frombuffer(bytearray(whole), dtype=torch.uint8).to(torch.int32)
        return vocabulary, found + vocabulary.first_byte, 1.0
    from transformers import AutoTokenizer

    reader: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    contents = list(_contents(text))
    lists = reader(contents, add_special_tokens=False)["input_ids"]
    numbers = torch.tensor([number for one in lists for number in one], dtype=torch.int32)
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
        elif path.suffix not in (".json", ".lock"):  # what Hugging Face puts beside the data
            yield path.read_text(errors="replace")


def _column(path: Path) -> Iterator[str]:
    """The column `text` of a data set's file, as Hugging Face's libraries write it."""
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
    """Of the pieces that were taken out for validation."""
    return nats / math.log(2) / text.val_bytes
