"""Seeds the global random generators that a trainable may use."""

import random
import sys


def seed_everything(seed: int) -> None:
    """Seeds Python's generator, and those of NumPy and torch if they are imported."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
