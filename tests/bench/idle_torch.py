"""Like idle.py, but imports torch, as most trainables do."""

from typing import Any

import idle
import torch  # noqa: F401

SPACE = idle.SPACE


def train(config: dict[str, Any]) -> None:  # defined here, so that a worker imports this module
    idle.train(config)
