"""Trainables to start from: `new` writes one beside your own files."""

import shutil
from pathlib import Path

from siftune.errors import UsageError

KINDS = {
    "function": {"function.py": "my_train.py"},
    "generator": {"generator.py": "my_train.py"},
    "script": {"script.py": "my_train.py", "space.yaml": "my_space.yaml"},
}


def write(kind: str, directory: Path) -> list[Path]:
    """Copies the example of that kind to the directory. Raises UsageError rather than overwrite."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    files = {directory / name: Path(__file__).with_name(of) for of, name in KINDS[kind].items()}
    if there := [str(path) for path in files if path.exists()]:
        raise UsageError(f"{', '.join(there)} is there already, and not overwritten")
    for path, source in files.items():
        shutil.copyfile(source, path)
    return list(files)
