"""Sharded checkpoints: each process writes its part, and any number of processes can read them.

The files are safetensors, so reading them executes no code. (torch's own format contains pickles.)
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint
from torch import nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from siftune.trainables.training import parallel

_dcp: Any = torch.distributed.checkpoint  # its type hints lack save and load
INFO_FILE = "state.json"
_MODEL, _OPTIMIZER = "model.", "optimizer."
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save(directory: Path, model: nn.Module, optimizer: Optimizer, metadata: dict[str, Any]) -> None:
    """Writes weights and moments. Must be called in all processes, with the same directory.

    `metadata`: JSON values, which `info` returns.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _quiet():
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        _dcp.save(_state(model, _moments(model, optimizer)), storage_writer=writer)
    if parallel.rank() == 0:
        (directory / INFO_FILE).write_text(json.dumps(metadata))


def load(directory: Path, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Loads a saved state into the model and, if given, the optimizer. Returns the metadata."""
    moments = _moments(model, optimizer) if optimizer else {}
    state = _state(model, moments)
    with _quiet():
        _dcp.load(state, storage_reader=HuggingFaceStorageReader(str(directory)))
    set_model_state_dict(model, _entries(_MODEL, state), options=StateDictOptions(strict=False))
    if optimizer:
        moments |= _entries(_OPTIMIZER, state)
        set_optimizer_state_dict(model, optimizer, moments, options=_FLAT)
    return info(directory)


def info(directory: Path) -> dict[str, Any]:
    """Returns the metadata that `save` wrote."""
    metadata: dict[str, Any] = json.loads((directory / INFO_FILE).read_text())
    return metadata


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return dict(get_optimizer_state_dict(model, optimizer, options=_FLAT))


def _state(model: nn.Module, moments: dict[str, Any]) -> dict[str, Any]:
    """Returns the tensors to save. Learning rates are not among them: they come from the config.

    A tensor with several names is included once.
    """
    unique = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = get_model_state_dict(model)
    state = {_MODEL + name: value for name, value in weights.items() if name in unique}
    return state | {
        _OPTIMIZER + name: value for name, value in moments.items() if name.startswith("state.")
    }


def _entries(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _quiet() -> warnings.catch_warnings[Any]:
    """Suppresses torch's warning that there is only one process."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
