"""Hyper-parameter search on a Slurm cluster, from one image."""

__version__ = "0.1.0"

__all__ = [
    "BayesOptSearch",
    "Result",
    "StudyError",
    "TuneBOHB",
    "UsageError",
    "ask_and_tell",
    "load",
    "parallel",
    "tune",
    "when",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, because importing torch takes seconds."""
    if name == "parallel":
        from siftune.trainables.training import parallel

        return parallel
    if name == "when":
        from siftune.space import when

        return when
    if name == "UsageError":
        from siftune.errors import UsageError

        return UsageError
    if name in ("Result", "load"):
        from siftune.api import result

        return getattr(result, name)
    if name in ("StudyError", "tune"):
        from siftune.api import tune

        return getattr(tune, name)
    if name == "ask_and_tell":
        from siftune.api import ask

        return ask.ask_and_tell
    if name in ("BayesOptSearch", "TuneBOHB"):
        from siftune.backend import search

        return getattr(search, name)
    raise AttributeError(f"module 'siftune' has no attribute {name!r}")
