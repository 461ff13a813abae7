"""Makes a trainable of a function that is no function in a file: one of a notebook, or a closure.

Trials run in fresh processes, on any node. They import a small file in the study directory, which
loads the function. The study can therefore be resumed without the notebook.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from siftune.errors import UsageError

_FILE = '''"""Loads the function of a study that was started from Python. siftune wrote this."""

import pickle
import sys
from pathlib import Path

# Where the function's own imports are found.
sys.path += [path for path in {paths!r} if path not in sys.path]
train = pickle.loads(Path(__file__).with_suffix(".pkl").read_bytes())
'''


def trainable(function: Callable[..., Any], directory: Path) -> str:
    """Returns the trainable FILE.py:FUNC of a function. If it is not simply one of a file, writes
    function.py and function.pkl to `directory`, which is created.

    Raises UsageError if the function refers to something that cannot be pickled.
    """
    if named := _in_file(function):
        return named
    try:
        pickled = cloudpickle.dumps(function)
    except Exception as error:  # of the object's own class
        raise UsageError(
            f"the function cannot be sent to the trials' processes: {type(error).__name__}: "
            f"{error}. Create inside the function what it refers to, such as an open file or a lock"
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(path or ".").absolute()) for path in sys.path]
    (directory / "function.pkl").write_bytes(pickled)
    (directory / "function.py").write_text(_FILE.format(paths=paths))
    return f"{directory.absolute() / 'function.py'}:train"


def _in_file(function: Callable[..., Any]) -> str | None:
    """Returns FILE.py:FUNC if a module other than the main one has this function. (Importing a main
    script again would run it.)"""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    loaded = sys.modules.get(module or "")
    file = getattr(loaded, "__file__", None)
    if module == "__main__" or not file or not file.endswith(".py"):
        return None
    return f"{Path(file).absolute()}:{name}" if getattr(loaded, name, None) is function else None
