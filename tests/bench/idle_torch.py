"""idle.py as most trainables are: torch is imported."""

import torch  # noqa: F401
from idle import SPACE, train

__all__ = ["SPACE", "train"]
