"""Loads a Python file of the user's as a module."""

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from siftune.errors import UsageError
from siftune.machine.packages import how_to_install, without_gc

_loaded: set[str] = set()  # names of the modules that are files of the user's


def load_file(path: Path) -> ModuleType:
    """The module in a Python file of the user's, loaded once per process, under the file's name.

    Its directory is put on the path, as Python does for a script: it finds its neighbours, and
    other processes find it. Raises UsageError if the file is not there, fails on import, or has
    the name of a module that is in use.
    """
    path = path.absolute()
    name = path.stem
    there = sys.modules.get(name)
    if there is not None and _same(there, path):
        return there
    if there is not None and name not in _loaded:
        raise UsageError(
            f"{path} has the name of a module of Python's or of a library, {name!r}, and hides it: "
            "rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not _is_file(path):
        raise UsageError(f"{path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    _loaded.add(name)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with without_gc():
            spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        said = f"{path} fails when imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            said += how_to_install(path)
        raise UsageError(said) from error
    return loaded


def _same(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).absolute() == path


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return path.is_file()
    return False
