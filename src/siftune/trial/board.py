"""The keys and values by which the processes of one trial find each other.

torch's own store would listen on a port that every account on the node can reach. This one is kept
by the worker of rank 0, and asked over Ray's connections, which need the job's keys.
"""

import threading
from typing import Any


class Board:
    """Keys and values. No method waits, and any thread may call."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def call(self, method: str, key: str, *words: Any) -> Any:
        """One of the methods below, by its name."""
        with self._lock:
            return getattr(self, f"_{method}")(key, *words)

    def forget(self, run: str) -> None:
        """The run is over: its keys begin with its name and a slash."""
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
