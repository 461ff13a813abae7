"""torch.distributed's store for the processes of one trial, on a board held by a worker."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

_POLL_S = 0.01
_TIMEOUT = timedelta(days=1)  # long, because the driver detects a trial that hangs


class BoardStore(dist.Store):  # type: ignore[name-defined]
    """Accesses the keys of one run through a pipe. Thread-safe, because torch uses threads."""

    def __init__(self, connection: Connection, run: str) -> None:
        super().__init__()
        self._connection = connection
        self._run = run
        self._lock = threading.Lock()

    def _ask(self, method: str, key: str, *arguments: Any) -> Any:
        with self._lock:
            self._connection.send((method, f"{self._run}/{key}", *arguments))
            return self._connection.recv()

    def set(self, key: str, value: Any) -> None:
        self._ask("set", key, _bytes(value))

    def get(self, key: str) -> bytes:
        return self._wait_for(key, _TIMEOUT)

    def add(self, key: str, value: int) -> int:
        return self._ask("add", key, value)

    def compare_set(self, key: str, expected_value: Any, desired_value: Any) -> bytes:
        return self._ask("compare_set", key, _bytes(expected_value), _bytes(desired_value))

    def delete_key(self, key: str) -> bool:
        return self._ask("delete", key)

    def check(self, keys: list[str]) -> bool:
        return all(self._ask("get", key) is not None for key in keys)

    def wait(self, keys: list[str], timeout: timedelta = _TIMEOUT) -> None:
        for key in keys:
            self._wait_for(key, timeout)

    def _wait_for(self, key: str, timeout: timedelta) -> bytes:
        deadline = time.monotonic() + timeout.total_seconds()
        while (value := self._ask("get", key)) is None:
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"{key} was not set within {timeout}")
            time.sleep(_POLL_S)
        return value


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
