"""Replaces files atomically: a reader sees the old content or the new, never a part."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target`, and renames that file to `target` at the end.

    The temporary name is unique, so several processes may write the same file at once. If the block
    raises, `target` is unchanged and the temporary file is removed. `durable`: the content is
    flushed to the disk before the rename, so that a power cut cannot leave an empty file.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
