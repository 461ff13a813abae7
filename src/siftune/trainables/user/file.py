"""The user's own file: a function, or a script with flags."""

import ast
import functools
import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from siftune.errors import UsageError
from siftune.machine import imports
from siftune.space import Config
from siftune.trainables.user import script

Report = Callable[..., None]

# What a script may import before any trial: these keep no state of one, and take seconds.
_HEAVY = {"lightgbm", "lightning", "numpy", "pandas", "pytorch_lightning", "scipy", "sklearn"}
_HEAVY |= {"torch", "torchvision", "transformers", "xgboost"}

_loaded: set[str] = set()  # names of modules that are files of the user's


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
        with imports.uncollected():
            spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        said = f"{path} fails when imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            said += imports.how_to_have(path)
        raise UsageError(said) from error
    return loaded


def _same(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).absolute() == path


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return path.is_file()
    return False


def is_function(name: str) -> bool:
    """Whether `--trainable NAME` names a function in a file."""
    file, colon, attribute = name.rpartition(":")
    return bool(colon and attribute) and file.endswith(".py")


def split(name: str) -> tuple[Path, str]:
    """File and function of FILE.py:FUNC."""
    file, _, attribute = name.rpartition(":")
    return Path(file), attribute


def absolute(name: str) -> str:
    """The same trainable, from whatever directory it is asked for."""
    if is_function(name):
        path, attribute = split(name)
        return f"{path.absolute()}:{attribute}"
    return str(Path(name).absolute()) if script.is_script(name) else name


def function(name: str) -> Callable[[Config], Any]:
    """The function FILE.py:FUNC. Raises UsageError if there is none."""
    path, attribute = split(name)
    loaded = load_file(path)
    found = getattr(loaded, attribute, None)
    if not callable(found):
        names = [n for n, v in vars(loaded).items() if inspect.isfunction(v)]
        raise UsageError(f"{path} has no function {attribute!r}; it has: {', '.join(names)}")
    return found


def needed(name: str) -> list[str]:
    """Modules that every trial of the user's file imports, besides the file."""
    if is_function(name):
        return ["ray.tune"]
    return ["ray.tune", *_heavy_imports(Path(name))]


@functools.cache
def _heavy_imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return [name for name in sorted(_HEAVY & names) if importlib.util.find_spec(name)]


def run(name: str, config: Config, *, seed: int, report: Report) -> None:
    """Runs the user's script, or calls the user's function, whose reports go to `report`: what it
    hands to tune.report, yields, or returns, and the lines of JSON that a script prints."""
    if script.is_script(name):
        seed_everything(seed)
        script.run(Path(name), config, report)
        return
    train = function(name)
    seed_everything(seed)  # last: importing the user's file may draw numbers
    output: Any = train(dict(config))
    if hasattr(output, "__next__"):
        for metrics in output:
            report(metrics)
    elif isinstance(output, Mapping):
        report(output)


def seed_everything(seed: int) -> None:
    """One seed for every generator that a trainable may draw from without saying so."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
