"""How libraries are imported, and what to do where one is not there."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: what imports make stays, and to look for garbage in it takes a fifth
    of their time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_container() -> bool:
    return not {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"}.isdisjoint(os.environ)


def how_to_have(path: Path) -> str:
    """What to do where the user's file needs a package that is not there."""
    listed = path.with_name("requirements.txt")
    if not listed.is_file():
        return f": list its package in {listed}"
    if not in_container():
        return f": install what {listed} lists"
    return f": make overlay REQUIREMENTS={listed}, and start it with apptainer run --overlay"
