"""A container registry on this machine: Debian's docker-registry, and images pushed to it."""

import gzip
import hashlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def program(directory: Path) -> Path:
    """Returns docker-registry, unpacked from Debian's package: installing it would start it."""
    if installed := shutil.which("docker-registry"):
        return Path(installed)
    download = ["apt-get", "download", "-qq", "docker-registry"]
    if subprocess.run(download, cwd=directory, capture_output=True).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(download, cwd=directory, check=True)
    (package,) = directory.glob("docker-registry_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
    return directory / "usr" / "bin" / "docker-registry"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.port = port

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> dict[str, str]:
        """Sends a request that must succeed, and returns the headers of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status < 300, f"{method} {path}: {answer.status} {content!r}"
        return dict(answer.getheaders())

    def push_blob(self, name: str, kind: str, content: bytes) -> dict[str, Any]:
        """Pushes a blob and returns its descriptor."""
        upload = self.call("POST", f"/v2/{name}/blobs/uploads/")["Location"]
        upload = upload.removeprefix(f"http://127.0.0.1:{self.port}")
        digest = digest_of(content)
        separator = "&" if "?" in upload else "?"
        self.call(
            "PUT",
            f"{upload}{separator}digest={digest}",
            content,
            Content_Type="application/octet-stream",
        )
        return {"mediaType": f"{OCI}.{kind}", "digest": digest, "size": len(content)}

    def push_manifest(self, name: str, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Pushes a manifest and returns its descriptor."""
        kind = f"{OCI}.{kind}"
        content = json.dumps({"schemaVersion": 2, "mediaType": kind} | manifest).encode()
        digest = digest_of(content)
        self.call("PUT", f"/v2/{name}/manifests/{digest}", content, Content_Type=kind)
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def push(self, name: str, layers: dict[str, bytes]) -> str:
        """Pushes an image with one layer (a tar) per architecture; returns its index's digest."""
        manifests = []
        for architecture, layer in layers.items():
            platform = {"os": "linux", "architecture": architecture}
            config = platform | {"rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
            packed = gzip.compress(layer, compresslevel=1, mtime=0)
            manifest = {
                "config": self.push_blob(name, "config.v1+json", json.dumps(config).encode()),
                "layers": [self.push_blob(name, "layer.v1.tar+gzip", packed)],
            }
            pushed = self.push_manifest(name, "manifest.v1+json", manifest)
            manifests.append(pushed | {"platform": platform})
        index = self.push_manifest(name, "index.v1+json", {"manifests": manifests})
        return str(index["digest"])

    def spoil_layers(self) -> None:
        """Changes a byte in each layer, so that the layers no longer match their digests."""
        layers = [p for p in self.root.rglob("data") if p.read_bytes().startswith(b"\x1f\x8b")]
        assert layers
        for layer in layers:
            content = bytearray(layer.read_bytes())
            content[len(content) // 2] ^= 1
            layer.write_bytes(content)


@contextmanager
def serving(docker_registry: Path, directory: Path) -> Iterator[Registry]:
    """Runs the registry; everything that it writes goes to `directory`."""
    registry = Registry(directory / "blobs", free_port())
    config = directory / "config.yml"
    config.write_text(CONFIG.format(root=registry.root, port=registry.port))
    with (directory / "log").open("wb") as log:
        command = [docker_registry, "serve", config]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                registry.call("GET", "/v2/")
                break
            except OSError:
                text = (directory / "log").read_text()
                assert process.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.05)
        yield registry
    finally:
        process.kill()
        process.wait()


def layer(*programs: str, **files: str) -> bytes:
    """Returns a tar with programs of this machine, their libraries, and text files."""
    files_to_pack = set(programs)
    for program in programs:
        printed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
        files_to_pack |= {word for word in printed.stdout.split() if word.startswith("/")}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", dereference=True) as tar:
        for path in sorted(files_to_pack):
            tar.add(Path(path).resolve(), path)
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
        # Apptainer does not create these directories in every image.
        for name in ("etc", "mnt", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    return content.getvalue()
