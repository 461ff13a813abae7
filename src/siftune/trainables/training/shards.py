"""A training's state in files of which each process writes its part, and any number reads all.

The files are safetensors: to read one runs nothing. (torch's own format has a pickle.)
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

_dcp: Any = torch.distributed.checkpoint  # its types name neither save nor load
INFO_FILE = "state.json"
_MODEL, _OPTIMIZER = "model.", "optimizer."
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save(directory: Path, model: nn.Module, optimizer: Optimizer, said: dict[str, Any]) -> None:
    """Writes weights and moments; called in all processes, with the same directory. `said`, what
    JSON can hold, is given back by `info`."""
    directory.mkdir(parents=True, exist_ok=True)
    with _alone():
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        _dcp.save(_state(model, _moments(model, optimizer)), storage_writer=writer)
    if parallel.rank() == 0:
        (directory / INFO_FILE).write_text(json.dumps(said))


def load(directory: Path, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Reads what `save` wrote, into the model and the optimizer, if there is one; the info."""
    moments = _moments(model, optimizer) if optimizer else {}
    state = _state(model, moments)
    with _alone():
        _dcp.load(state, storage_reader=HuggingFaceStorageReader(str(directory)))
    set_model_state_dict(model, _under(_MODEL, state), options=StateDictOptions(strict=False))
    if optimizer:
        moments |= _under(_OPTIMIZER, state)
        set_optimizer_state_dict(model, optimizer, moments, options=_FLAT)
    return info(directory)


def info(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / INFO_FILE).read_text())
    return found


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return dict(get_optimizer_state_dict(model, optimizer, options=_FLAT))


def _state(model: nn.Module, moments: dict[str, Any]) -> dict[str, Any]:
    """Tensors alone, rates are the config's; each once, however many names it has."""
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = get_model_state_dict(model)
    state = {_MODEL + name: value for name, value in weights.items() if name in once}
    return state | {
        _OPTIMIZER + name: value for name, value in moments.items() if name.startswith("state.")
    }


def _under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _alone() -> warnings.catch_warnings[Any]:
    """Without torch's warning that there is one process."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
