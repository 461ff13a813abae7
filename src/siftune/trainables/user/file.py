"""Loads a user's Python file as a module."""

import ast
import difflib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from siftune.errors import UsageError
from siftune.machine.packages import how_to_install, without_gc
from siftune.space.drawn import named

_loaded: set[str] = set()  # names of the modules loaded from users' files


def load_file(path: Path) -> ModuleType:
    """Loads a user's Python file as a module named after the file, once per process.

    Its directory is added to sys.path, as Python does for a script. The file can then import its
    neighbours, and other processes can import the file. Raises UsageError if the file does not
    exist, fails on import, or has the name of another module that is already imported.
    """
    path = path.absolute()
    root, name = as_module(path) or (path.parent, path.stem)
    loaded = sys.modules.get(name)
    if loaded is not None and _same(loaded, path):
        return loaded
    if loaded is not None and name not in _loaded:
        raise UsageError(
            f"{path} has the name of another module, {name!r}, and would shadow it: rename the file"
        )
    require_file(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _loaded.add(name)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
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


def load_space(path: Path, name: str) -> dict[str, Any]:
    """Returns the dictionary `name` of a user's file. Raises UsageError if there is none."""
    module = load_file(path)
    space = getattr(module, name, None)
    if isinstance(space, dict):
        return named(space, f"{path.absolute()}:{name}")
    names = [n for n, v in vars(module).items() if isinstance(v, dict) and n[0] != "_"]
    raise UsageError(f"{path} has no dictionary {name!r}; it has: {', '.join(names) or 'none'}")


def as_module(path: Path) -> tuple[Path, str] | None:
    """Returns the directory from which `python -m NAME` runs a file, and NAME, if the file imports
    from its own package: `from .model import Net`, `from package.model import Net`. Else None."""
    path = path.absolute()
    levels, packages = _imports(path)
    root, depth = path.parent, 0
    while depth < levels or (root / "__init__.py").is_file():
        root, depth = root.parent, depth + 1
    parts = path.with_suffix("").relative_to(root).parts
    own = levels > 0 or (depth > 0 and parts[0] in packages)
    return (root, ".".join(parts)) if own else None


def _imports(path: Path) -> tuple[int, set[str]]:
    """Returns the most dots of a file's relative imports, and the packages of the others."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return 0, set()
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [node.module or "" for node in froms if not node.level]
    names += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    levels = max((node.level for node in froms), default=0)
    return levels, {name.partition(".")[0] for name in names}


def require_file(path: Path) -> None:
    """Raises UsageError if there is no such file. It names a file beside it that may be meant."""
    similar = ""
    with suppress(OSError):  # the name may be too long
        if path.is_file():
            return
        names = [other.name for other in path.parent.glob("*.py")]
        if close := difflib.get_close_matches(path.name, names, n=1):
            similar = f"; there is {path.with_name(close[0])}"
    raise UsageError(f"{path} does not exist{similar}")


def _same(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).absolute() == path
