"""Classifies the exception that ended a run of a trial, inside its process."""

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
# Traceback frames in these files are not the user's code.
_OWN_FILES = tuple(
    str(Path(__file__).parents[1] / name)
    for name in ("trial", "trainables/__init__.py", "trainables/user")
)


def end_of(error: BaseException, study: Path) -> End:
    """Classifies an exception that the trainable raised. `study` is the study directory."""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        return End(cause=Cause.ERROR, error=f"the trial exited with {_exit(error)}", kind=kind)
    text = _text(error)
    if isinstance(error, EOFError) and "EOF when reading a line" in text:
        text += ": a trial has no standard input, so input() cannot be used"
    last_line = text.rpartition("\n")[2]
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or _MEMORY_TEXT in last_line:
        return End(cause=Cause.MEMORY, error=text, kind=kind)
    if _is_unreadable(error, study):
        return End(cause=Cause.CRASH, error=text, kind=kind)
    if _is_storage(error, last_line):
        cause, path = _unwritable(error, study)
        return End(cause=cause, error=text, kind=kind, path=path)
    return End(cause=Cause.ERROR, error=text, kind=kind)


def _exit(error: SystemExit) -> str:
    if isinstance(error.code, int):
        return f"exit code {error.code}"
    return f"sys.exit({str(error.code)!r})"


def _text(error: BaseException) -> str:
    """Returns the traceback, starting at the first frame of the user's code. An error that says
    what the user's script did, raised outside of it, has no traceback."""
    trace = error.__traceback__
    while trace is not None and _is_own_frame(trace) and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and _is_own_frame(trace) and isinstance(error, RuntimeError)
    try:
        if ours:
            lines = traceback.format_exception_only(type(error), error)
        else:
            lines = traceback.format_exception(type(error), error, trace)
    except Exception:  # the error's own `__str__` may raise anything
        lines = [f"{type(error).__name__} (its message cannot be read)"]
    return "".join(lines).strip().encode(errors="backslashreplace").decode()


def _is_own_frame(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith((*_OWN_FILES, "<frozen runpy>"))


def _is_unreadable(error: BaseException, study: Path) -> bool:
    """Returns whether a file system of the user's data does not answer, which another try may
    find mended."""
    if not isinstance(error, OSError) or error.errno not in (errno.EIO, errno.ESTALE):
        return False
    named = error.filename
    if not isinstance(named, str | bytes):
        return False
    path = Path(os.fsdecode(named)).absolute()
    return not any(path.is_relative_to(own) for own in (study, Path(tempfile.gettempdir())))


def _is_storage(error: BaseException, last_line: str) -> bool:
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return True
    # torch's own file writer raises RuntimeError.
    return _STORAGE_TEXT.search(last_line) is not None


def _unwritable(error: BaseException, study: Path) -> tuple[Cause, str]:
    """Returns which disk cannot be written, and the path.

    Cause.NODE is the node's own disk, Cause.STORAGE any other.
    """
    scratch = Path(tempfile.gettempdir())
    named = getattr(error, "filename", None)
    if isinstance(named, str | bytes):
        path = Path(os.fsdecode(named)).absolute()
        if path.is_relative_to(scratch) and not path.is_relative_to(study):
            return Cause.NODE, str(path)
        return Cause.STORAGE, str(path)
    # The error names no file. Blame the disk that cannot be written or has less free space.
    spaces = (_space(study), _space(scratch))
    return (Cause.NODE, str(scratch)) if spaces[1] < spaces[0] else (Cause.STORAGE, str(study))


def _space(directory: Path) -> int:
    """Returns the free bytes of a directory's file system, or 0 if it cannot be written."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
