"""idle.py as most trainables are: it imports torch."""

from typing import Any

import idle
import torch  # noqa: F401

SPACE = idle.SPACE


def train(config: dict[str, Any]) -> None:  # of this module, which a worker then imports
    idle.train(config)
