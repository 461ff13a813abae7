"""Hyper-parameter search on a Slurm cluster, from one image."""

__version__ = "0.1.0"

__all__ = ["parallel", "when"]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, because importing torch takes seconds."""
    if name == "parallel":
        from siftune.trainables.training import parallel

        return parallel
    if name == "when":
        from siftune.space import when

        return when
    raise AttributeError(f"module 'siftune' has no attribute {name!r}")
