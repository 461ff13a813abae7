"""Why the run of a trial failed, seen from inside its process."""

import errno
import os
import re
import shutil
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from siftune.trial.messages import Cause, End

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_STORAGE_TEXT = re.compile(
    "|".join(rf"\[Errno {n}\]|{re.escape(os.strerror(n))}" for n in _STORAGE)
)
_MEMORY_TEXT = "CUDA out of memory"
# Frames of these say nothing about the user's code.
_OURS = tuple(
    str(Path(__file__).parents[1] / name)
    for name in ("trial", "trainables/__init__.py", "trainables/user")
)


def end_of(error: BaseException, study: Path) -> End:
    """Classifies an exception of the trainable. `study` is the study's directory."""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        return End(cause=Cause.ERROR, error=f"the trial ended itself: {_exit(error)}", kind=kind)
    text = _text(error)
    said = text.rpartition("\n")[2]
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or _MEMORY_TEXT in said:
        return End(cause=Cause.MEMORY, error=text, kind=kind)
    if _is_storage(error, said):
        cause, path = _place(error, study)
        return End(cause=cause, error=text, kind=kind, path=path)
    return End(cause=Cause.ERROR, error=text, kind=kind)


def _exit(error: SystemExit) -> str:
    if isinstance(error.code, int):
        return f"exit status {error.code}"
    return f"sys.exit({str(error.code)!r})"


def _text(error: BaseException) -> str:
    """The traceback, from the first frame of the user's code on."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace) and trace.tb_next is not None:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except Exception:  # whatever somebody's `__str__` raises
        lines = [f"{type(error).__name__}, whose message cannot be had"]
    return "".join(lines).strip().encode(errors="backslashreplace").decode()


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith((*_OURS, "<frozen runpy>"))


def _is_storage(error: BaseException, said: str) -> bool:
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return True
    # torch's own file writer raises RuntimeError.
    return _STORAGE_TEXT.search(said) is not None


def _place(error: BaseException, study: Path) -> tuple[Cause, str]:
    """Whether the study's directory or the node's own disk cannot be written, and the path."""
    scratch = Path(tempfile.gettempdir())
    named = getattr(error, "filename", None)
    if isinstance(named, str | bytes):
        path = Path(os.fsdecode(named)).absolute()
        if path.is_relative_to(scratch) and not path.is_relative_to(study):
            return Cause.NODE, str(path)
        return Cause.STORAGE, str(path)
    # The error names no file: the disk that cannot be written, or that has less space.
    spaces = (_space(study), _space(scratch))
    return (Cause.NODE, str(scratch)) if spaces[1] < spaces[0] else (Cause.STORAGE, str(study))


def _space(directory: Path) -> int:
    """Free bytes of a directory's file system, 0 where it cannot be written at all."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
