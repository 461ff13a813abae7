"""Tries to access a study in every way, inside the image, and prints the results as JSON.

    knock.py grpc|http|process|file TOKEN TLS WORD…

TOKEN is a file, or - for none. TLS is a list separated by commas: plain (no TLS), - (TLS without a
certificate), or NAME for the files NAME.crt and NAME.key. gRPC is implemented here, because the
image has no package for it.
"""

import ctypes
import importlib.util
import json
import os
import re
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# ── A minimal gRPC client ───────────────────────────────────────────────────────────────────────

SILENT, CLOSED = -1, -2  # used in place of a gRPC status
_HEADERS, _DATA, _RESET, _SETTINGS, _PING, _GOAWAY = 1, 0, 3, 4, 6, 7


def methods() -> list[str]:
    """Returns every gRPC method whose name Ray's programs contain, whether they serve it or not."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    core = Path(spec.origin).parent
    programs = [core / "core/src/ray/gcs/gcs_server", core / "core/src/ray/raylet/raylet"]
    programs += core.glob("_raylet*.so")
    names: set[bytes] = set()
    for program in programs:
        names |= set(re.findall(rb"/(?:ray|grpc|envoy|xds)\.[\w.]+/[A-Z]\w+", program.read_bytes()))
    return sorted(name.decode() for name in names)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _request(stream: int, path: str, token: str | None) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "ray")]
    fields += [("te", "trailers"), ("content-type", "application/grpc")]
    fields += [("authorization", f"Bearer {token}")] if token else []
    block = b""
    for name, value in fields:  # literal, never indexed, without Huffman coding
        length = len(value)
        coded = bytes([length]) if length < 127 else bytes([127, length - 127])
        block += b"\x10" + bytes([len(name)]) + name.encode() + coded + value.encode()
    empty = b"\0\0\0\0\0"  # a message without fields
    return _frame(_HEADERS, 4, stream, block) + _frame(_DATA, 1, stream, empty)


class Server:
    """One connection to a gRPC server."""

    def __init__(self, host: str, port: int, tls: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=2)
        if tls != "plain":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            if tls != "-":
                context.load_cert_chain(f"{tls}.crt", f"{tls}.key")
            self._socket = context.wrap_socket(self._socket)
        # Disables the header table, so that the server sends headers that need none to be read.
        settings = struct.pack(">HI", 1, 0)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings)
        )
        self._stream = -1

    def status(self, path: str, token: str | None) -> int:
        """Returns the gRPC status of a call with an empty message."""
        self._stream += 2
        deadline = time.monotonic() + 2
        try:
            self._socket.sendall(_request(self._stream, path, token))
            for kind, stream, payload in self._frames():
                if kind == _GOAWAY:
                    return CLOSED
                if time.monotonic() > deadline:
                    return SILENT
                if stream == self._stream and kind == _RESET:
                    return CLOSED
                match = re.search(rb"grpc-status[\x01\x02](\d+)", payload)
                if stream == self._stream and kind == _HEADERS and match:
                    return int(match[1])
        except TimeoutError:
            return SILENT
        except OSError:
            return CLOSED
        return CLOSED

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        while head := self._exactly(9):
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big")
            payload = self._exactly(length)
            if kind in (_SETTINGS, _PING) and not flags & 1:
                answer = payload if kind == _PING else b""
                self._socket.sendall(_frame(kind, 1, 0, answer))
            yield kind, stream, payload

    def _exactly(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            if not (part := self._socket.recv(length - len(received))):
                return b""
            received += part
        return received


def grpc(token: str | None, tls: str, host: str, *words: str) -> dict[str, dict[str, int]]:
    """Returns the status by port and by method. A word is a port, a method, or -METHOD to skip."""
    paths = [word for word in words if word.startswith("/")]
    paths = paths or [path for path in methods() if f"-{path}" not in words]
    results: dict[str, dict[str, int]] = {}
    for port in (word for word in words if word.isdecimal()):
        results[port] = {}
        for kind in tls.split(","):
            statuses = _statuses(token, kind, host, int(port), paths)
            results[port] |= {f"{path} {kind}": status for path, status in statuses.items()}
    return results


def _statuses(
    token: str | None, tls: str, host: str, port: int, paths: list[str]
) -> dict[str, int]:
    results: dict[str, int] = {}
    server = None
    for path in paths:
        try:
            server = server or Server(host, port, tls)
            results[path] = server.status(path, token)
        except OSError:
            results[path] = CLOSED
        if results[path] in (SILENT, CLOSED):
            server = None
    return results


# ── HTTP, processes and files ───────────────────────────────────────────────────────────────────


def http(token: str | None, _: str, host: str, *words: str) -> dict[str, int]:
    """Returns the status of an empty POST by port and path (PORT/PATH); 0 if it is not HTTP."""
    results = {}
    for word in words:
        port, _, path = word.partition("/")
        lines = [f"POST /{path} HTTP/1.1", f"Host: {host}", "Content-Length: 0"]
        lines += ["Connection: close"] + ([f"Authorization: Bearer {token}"] if token else [])
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            try:
                answer = connection.recv(4096)
            except OSError:
                answer = b""
        status = re.match(rb"HTTP/1.1 (\d+)", answer)
        results[word] = int(status[1]) if status else 0
    return results


def outcome(attempt: Callable[[], object]) -> str:
    try:
        return f"OPEN {attempt()!r}"[:200]
    except OSError as error:
        return type(error).__name__


def process(_token: str | None, _tls: str, *pids: str) -> dict[str, str]:
    """Returns the result of each attempt on a process: `OPEN …`, or the name of the error."""
    libc = ctypes.CDLL(None, use_errno=True)

    def trace(pid: int) -> str:
        if libc.ptrace(16, pid, None, None) == 0:  # PTRACE_ATTACH
            os.waitpid(pid, 0)
            libc.ptrace(17, pid, None, None)
            return "attached"
        raise OSError(ctypes.get_errno(), "ptrace")

    results = {}
    for pid in map(int, pids):
        at = Path(f"/proc/{pid}")
        attempts: dict[str, Callable[[], object]] = {
            "signal": lambda pid=pid: os.kill(pid, 0),  # type: ignore[misc]
            "ptrace": lambda pid=pid: trace(pid),  # type: ignore[misc]
            "environ": (at / "environ").read_bytes,
            "mem": lambda at=at: (at / "mem").open("rb"),  # type: ignore[misc]
            "maps": (at / "maps").read_text,
            "fd": lambda at=at: list((at / "fd").iterdir()),  # type: ignore[misc]
            "root": lambda at=at: list((at / "root").iterdir()),  # type: ignore[misc]
            "cwd": lambda at=at: list((at / "cwd").iterdir()),  # type: ignore[misc]
        }
        results |= {f"{pid} {name}": outcome(attempt) for name, attempt in attempts.items()}
    return results


def file(_token: str | None, _tls: str, *names: str) -> dict[str, str]:
    """Returns the result of each attempt on a file, directory or socket, as `process` does."""

    def read(path: Path) -> object:
        return list(path.iterdir()) if path.is_dir() else path.read_bytes()[:20]

    def connect(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))

    def write(path: Path) -> None:
        if path.is_dir():
            (path / "knock").touch()
        else:
            path.open("ab").close()

    results = {}
    for name in names:
        path = Path(name)
        results[f"{name} read"] = outcome(lambda path=path: read(path))  # type: ignore[misc]
        results[f"{name} write"] = outcome(lambda path=path: write(path))  # type: ignore[misc]
        results[f"{name} connect"] = outcome(lambda path=path: connect(path))  # type: ignore[misc]
    return results


if __name__ == "__main__":
    what, token, tls, *rest = sys.argv[1:]
    secret = None if token == "-" else Path(token).read_text().strip()
    doors = {"grpc": grpc, "http": http, "process": process, "file": file}
    print(json.dumps(doors[what](secret, tls, *rest)))
