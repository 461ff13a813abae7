"""Helpers for imports: faster ones, and advice about a missing package."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_gc() -> Iterator[None]:
    """Pauses garbage collection while libraries are imported.

    The objects that imports create stay alive, and searching them for garbage takes a fifth of the
    import time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_container() -> bool:
    """Returns whether this process runs in an Apptainer or Singularity container."""
    return not {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"}.isdisjoint(os.environ)


def how_to_install(path: Path) -> str:
    """Returns the end of an error message: how to add a package that the user's file imports."""
    listed = path.with_name("requirements.txt")
    if not listed.is_file():
        return f": list its package in {listed}"
    if not in_container():
        return f": install the packages in {listed}"
    return f": make overlay REQUIREMENTS={listed}, then use apptainer run --overlay"
