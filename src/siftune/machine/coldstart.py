"""Starts of Python in the image with nothing cached.

Each file that is opened there, and each page of a library that is missing, is a question to the
process that unpacks the image, and importing PyTorch and Ray Tune asks 28,000. So the bytecode that
it takes is in one file more, and another process reads beforehand what will be missing of the
libraries. `python -m siftune.machine.coldstart` makes both files as the image is built; a line in
siftune.pth, beside the packages, has every Python call `install`.
"""

# pathlib would be imported at every start:
# ruff: noqa: PTH113, PTH116, PTH123

import marshal
import mmap
import os
import sys
from collections.abc import Iterator
from importlib import machinery
from types import CodeType

# Whose bytecode and libraries: what a driver, a node's Ray and a trial import.
MODULES = ["torch", "ray.tune", "ray.scripts.scripts", "siftune.driver.launch"]
MODULES += ["siftune.driver.loop", "siftune.trial.process", "siftune.trainables.mnist"]
BYTECODE, LIBRARIES = f"{sys.prefix}/bytecode.bin", f"{sys.prefix}/libraries.bin"
BLOCK = 1 << 17  # of mksquashfs, which is unpacked as a whole

_content: mmap.mmap
places: dict[str, tuple[int, int]] = {}  # of bytecode, by its path: from and to


class Loader(machinery.SourceFileLoader):
    """Python's own, which takes bytecode only if it is of the source's time and size, from that
    file: a source that was changed, or is another one by an overlay or a bind, is compiled."""

    def get_data(self, path: str) -> bytes:
        if place := places.get(path):
            return _content[slice(*place)]
        return super().get_data(path)

    def get_code(self, fullname: str) -> CodeType | None:
        if fullname == "torch":
            _start_reader()
        return super().get_code(fullname)


def install() -> None:
    """The path is searched as before and in the same order; only modules are loaded by Loader."""
    global _content
    try:
        with open(BYTECODE, "rb") as file:
            _content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except OSError:
        return
    first = 8 + int.from_bytes(_content[:8], "big")
    places.update((path, (first + a, first + b)) for path, a, b in marshal.loads(_content[8:first]))
    hook = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (Loader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()


def _start_reader() -> None:
    """A process that is no child of this one, which may wait for its own, and no fork of it, which
    may have threads."""
    words = (sys.executable, __file__, LIBRARIES, str(os.getpid()))
    shell = ("/bin/sh", "-c", '"$0" -IS "$@" </dev/null >/dev/null 2>&1 &', *words)
    try:
        os.waitpid(os.posix_spawn(shell[0], shell, os.environ), 0)
    except OSError:
        return  # it takes longer


def read(libraries: str, pid: int) -> None:
    """Reads them while that process is there, in two processes: to unpack is most of it. Of each
    mounted image one pair at a time."""
    import fcntl

    buffer = bytearray(BLOCK)
    with open(libraries, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sources, runs = marshal.load(file)
        second = os.fork() == 0
        for source in sources if second else ():
            os.kill(pid, 0)
            os.stat(source)  # which is compared with the bytecode's
        for path, start, end in runs[second::2]:
            with open(path, "rb", buffering=0) as library:
                for offset in range(start, end, BLOCK):
                    os.kill(pid, 0)
                    os.preadv(library.fileno(), [buffer], offset)


# ── As the image is built ────────────────────────────────────────────────────────────────────────


def write() -> None:
    """Both files, of what importing the modules loads and touches here."""
    from importlib import import_module

    blocks: dict[str, set[int]] = {}
    for name in MODULES:
        import_module(name)
        try:
            for path, block in _touched():
                blocks.setdefault(path, set()).add(block)
        except OSError as error:
            print(f"no library is read beforehand: {error}")  # /proc is not all there
        blocks.setdefault(BYTECODE, set())  # which is wanted after PyTorch's libraries
    sources, index, contents, end = [], [], [], 0
    for module in list(sys.modules.values()):
        spec: machinery.ModuleSpec | None = getattr(module, "__spec__", None)
        if spec and (compiled := spec.cached) and os.path.isfile(compiled):
            with open(compiled, "rb") as file:
                contents.append(file.read())
            sources.append(spec.origin)
            index.append((compiled, end, end := end + len(contents[-1])))
    head = marshal.dumps(index)
    with open(BYTECODE, "wb") as file:
        file.writelines((len(head).to_bytes(8, "big"), head, *contents))
        blocks[BYTECODE].update(range(file.tell() // BLOCK + 1))
    with open(LIBRARIES, "wb") as file:
        runs = [(path, *run) for path in blocks for run in _runs(blocks[path])]
        marshal.dump((sources, runs), file)
    print(f"bytecode of {len(index)} modules, {sum(map(len, blocks.values())) // 8} MiB to read")


def _touched() -> Iterator[tuple[str, int]]:
    """Blocks of mapped files that have a page in this process."""
    from array import array

    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", 0) as pagemap:
        for line in reversed(maps.readlines()):  # those that were mapped first
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            if not path or not os.path.isfile(name := path[0].rstrip()):
                continue
            first, last = (int(word, 16) // mmap.PAGESIZE for word in addresses.split("-"))
            pagemap.seek(8 * first)
            for page, entry in enumerate(array("Q", pagemap.read(8 * (last - first)))):
                if entry >> 63:
                    yield name, (int(offset, 16) + page * mmap.PAGESIZE) // BLOCK


def _runs(blocks: set[int]) -> Iterator[tuple[int, int]]:
    """Of blocks in a row: from and to, in bytes."""
    for first in sorted(block for block in blocks if block - 1 not in blocks):
        last = first
        while last in blocks:
            last += 1
        yield first * BLOCK, last * BLOCK


if __name__ == "__main__":
    if sys.argv[1:]:
        read(sys.argv[1], int(sys.argv[2]))
    else:
        write()
