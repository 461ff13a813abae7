"""Translates Ray's exceptions from a worker into the reason why its trials ended."""

import time
from collections.abc import Iterable

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from siftune.trial.messages import Cause, End

_MOST_CHARACTERS = 240  # of a message of Ray, which may be pages long
_SETTLED_S = 1.0  # Ray may report the loss of a worker before the loss of its node


def end_of(error: Exception, node_id: str | None) -> End:
    """Returns how a trial ended when its worker, on the Ray node `node_id`, failed with `error`."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
    if isinstance(error, OutOfMemoryError):
        return End(cause=Cause.MEMORY, error=f"the node has run out of memory. Ray reports: {text}")
    if isinstance(error, RayTaskError):  # a bug in siftune
        return End(cause=Cause.CRASH, error=str(error))
    lost = End(cause=Cause.LOST, error="its node was lost")
    if not isinstance(error, RayActorError) or isinstance(error, ActorUnavailableError):
        return lost
    if error.actor_init_failed or (node_id and not error.preempted and _is_alive(node_id)):
        return End(cause=Cause.CRASH, error=f"its worker process ended. Ray reports: {text}")
    return lost


def _is_alive(node_id: str) -> bool:
    """Returns whether the node is still alive after _SETTLED_S."""
    deadline = time.monotonic() + _SETTLED_S
    while time.monotonic() < deadline:
        if node_id not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            return False
        time.sleep(0.1)
    return True


# Exceptions of a process if another process of its trial has ended.
_FOLLOW = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")


def first(ends: Iterable[End]) -> End:
    """Returns the first failure of a trial's processes, which caused the others to end.

    `ends` are in the order of arrival. An end that was caused by another process is returned only
    if all ends are of this kind.
    """
    in_order = list(ends)
    failed = [end for end in in_order if end.cause is not None and not end.killed]
    causes = [end for end in failed if end.kind not in _FOLLOW]
    return next(iter(causes or failed or in_order))
