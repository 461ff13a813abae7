"""Why a trial failed, and whether it helps to try again."""

import enum
import errno
import os
import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError


class Cause(enum.StrEnum):
    LOST = "lost"  # its node went, or Ray there: not the trial's doing
    REPLACED = "replaced"  # the warm process that it was given was unfit, and a new one is made
    CRASH = "crash"  # its process ended: a segmentation fault, a kill
    HANG = "hang"  # no report for too long
    MEMORY = "memory"  # of the device or of the host
    CHECKPOINT = "checkpoint"  # what it was to go on from cannot be read
    STORAGE = "storage"  # no trial could save anything: a full disk
    ERROR = "error"  # an exception of the trainable: it would be the same again


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_STORAGE_TEXT = re.compile(
    "|".join(rf"\[Errno {n}\]|{re.escape(os.strerror(n))}" for n in _STORAGE)
)
_MEMORY_TEXT = re.compile(r"^(torch\S*\.OutOfMemoryError|MemoryError\b|.*CUDA out of memory)", re.M)


class RankEndedError(RuntimeError):
    """Raised in a trial of several processes when one of them has ended by itself."""


class Unfit(RuntimeError):
    """Raised in a warm process that holds on to memory: the trial is to get a new one."""


def cause(failure: BaseException | None) -> Cause:
    """The cause of what Ray Tune was told of a failed trial."""
    text = str(failure)
    if isinstance(failure, OutOfMemoryError):
        return Cause.MEMORY
    if isinstance(failure, RayActorError):
        gone = isinstance(failure, ActorUnavailableError) or "its node has died" in text
        # preempted: Ray there was told to end, as by scancel.
        return Cause.LOST if gone or failure.preempted else Cause.CRASH
    if isinstance(failure, RayTaskError):
        if isinstance(failure.cause, Unfit) or f"{Unfit.__name__}: " in text:
            return Cause.REPLACED
        if f"{RankEndedError.__name__}: " in text:
            return Cause.LOST if "its node has died" in text else Cause.CRASH
        if _MEMORY_TEXT.search(text):
            return Cause.MEMORY
        if _STORAGE_TEXT.search(text):
            return Cause.STORAGE
        return Cause.ERROR
    return Cause.LOST  # Ray could not place or start it


def sentence(why: Cause, failure: BaseException | None, *, hang_s: float) -> str:
    """What is written of a failure in which no line of the user's took part."""
    raised = " ".join(str(failure).rpartition(f"{RankEndedError.__name__}: ")[2].split())
    sentences = {
        Cause.LOST: "its node was lost",
        Cause.REPLACED: "its process held on to memory",
        Cause.CRASH: "its process ended by itself: a segmentation fault, a kill, or the host's "
        f"memory. Ray says: {raised}",
        Cause.HANG: f"no report for {hang_s:.0f} s: raise --report-timeout if epochs take longer",
    }
    return sentences.get(why, raised)
