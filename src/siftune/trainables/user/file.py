"""Loads a user's Python file as a module."""

import difflib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from siftune.errors import UsageError
from siftune.machine.packages import how_to_install, without_gc

_loaded: set[str] = set()  # names of the modules loaded from users' files


def load_file(path: Path) -> ModuleType:
    """Loads a user's Python file as a module named after the file, once per process.

    Its directory is added to sys.path, as Python does for a script. The file can then import its
    neighbours, and other processes can import the file. Raises UsageError if the file does not
    exist, fails on import, or has the name of another module that is already imported.
    """
    path = path.absolute()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and _same(loaded, path):
        return loaded
    if loaded is not None and name not in _loaded:
        raise UsageError(
            f"{path} has the name of another module, {name!r}, and would shadow it: rename the file"
        )
    if not _is_file(path):
        raise UsageError(f"{path} does not exist{_similar(path)}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _loaded.add(name)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with without_gc():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        message = f"{path} fails when imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            message += how_to_install(path)
        raise UsageError(message) from error
    return module


def _similar(path: Path) -> str:
    """Returns a file beside it that may be meant, as the end of a message."""
    with suppress(OSError):
        names = [other.name for other in path.parent.glob("*.py")]
        if close := difflib.get_close_matches(path.name, names, n=1):
            return f"; there is {path.with_name(close[0])}"
    return ""


def _same(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).absolute() == path


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # the name may be too long
        return path.is_file()
    return False
