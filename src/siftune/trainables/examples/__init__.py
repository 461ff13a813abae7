"""Example trainables. The command `new` writes one next to the user's files."""

import shutil
from pathlib import Path

from siftune.errors import UsageError

KINDS = {
    "function": {"function.py": "my_train.py"},
    "generator": {"generator.py": "my_train.py"},
    "script": {"script.py": "my_train.py", "space.yaml": "my_space.yaml"},
}


def write(kind: str, directory: Path) -> list[Path]:
    """Copies the example of that kind to the directory. Raises UsageError if a file exists."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    files = {directory / name: Path(__file__).with_name(of) for of, name in KINDS[kind].items()}
    if existing := [str(path) for path in files if path.exists()]:
        raise UsageError(f"cannot overwrite {', '.join(existing)}: rename or remove it first")
    for path, source in files.items():
        shutil.copyfile(source, path)
    return list(files)
