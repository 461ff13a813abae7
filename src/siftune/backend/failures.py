"""Translates Ray's exceptions about a worker into the end of its trials."""

import time
from collections.abc import Iterable

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from siftune.trial.messages import Cause, End

_MOST_WORDS = 240  # characters of Ray's, which may be pages
_SETTLED_S = 1.0  # Ray may say of a worker that it has ended before it says so of its node


def end_of(error: Exception, node_id: str | None) -> End:
    """Returns how a trial ended whose worker, on that node of Ray's, answered with `error`."""
    said = " ".join(str(error).split())
    said = said if len(said) <= _MOST_WORDS else f"{said[:_MOST_WORDS]} …"
    if isinstance(error, OutOfMemoryError):
        return End(cause=Cause.MEMORY, error=f"the node has run out of memory. Ray says: {said}")
    if isinstance(error, RayTaskError):  # a mistake of ours
        return End(cause=Cause.CRASH, error=str(error))
    lost = End(cause=Cause.LOST, error="its node was lost")
    if not isinstance(error, RayActorError) or isinstance(error, ActorUnavailableError):
        return lost
    if error.actor_init_failed or (node_id and not error.preempted and _is_alive(node_id)):
        return End(cause=Cause.CRASH, error=f"its worker ended by itself. Ray says: {said}")
    return lost


def _is_alive(node_id: str) -> bool:
    deadline = time.monotonic() + _SETTLED_S
    while time.monotonic() < deadline:
        if node_id not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            return False
        time.sleep(0.1)
    return True


# What a process raises when another one of its trial has ended.
_FOLLOW = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")


def first(ends: Iterable[End]) -> End:
    """Returns the end that caused the others, in a trial of several processes. `ends` come in the
    order they were heard; one that follows from another counts only where there is nothing else."""
    found = list(ends)
    failed = [end for end in found if end.cause is not None and not end.killed]
    own = [end for end in failed if end.kind not in _FOLLOW]
    return next(iter(own or failed or found))
