"""The key-value store through which the processes of one trial find each other.

torch's own store would listen on a port that every account on the node can reach. This store is
held by the worker of rank 0 and reached through Ray's connections, which require the job's keys.
"""

import threading
from typing import Any


class Board:
    """A thread-safe key-value store. No method blocks."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def call(self, method: str, key: str, *arguments: Any) -> Any:
        """Calls a method below by its name without the underscore."""
        with self._lock:
            return getattr(self, f"_{method}")(key, *arguments)

    def forget(self, run: str) -> None:
        """Deletes the keys of a finished run. They begin with its name and a slash."""
        with self._lock:
            for key in [key for key in self._values if key.startswith(f"{run}/")]:
                del self._values[key]

    def _set(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def _get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def _add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key, b"0")) + amount
        self._values[key] = str(total).encode()
        return total

    def _compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        now = self._values.get(key)
        if now == expected or (now is None and not expected):
            self._values[key] = desired
            return desired
        return expected if now is None else now

    def _delete(self, key: str) -> bool:
        return self._values.pop(key, None) is not None
