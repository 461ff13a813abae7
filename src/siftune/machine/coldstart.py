"""Makes Python start faster in an image that is not cached in memory.

In such an image, opening a file or reading a page of a library that is not in memory is a request
to the process that decompresses the image. Importing PyTorch and Ray Tune makes 28,000 requests.
Therefore one additional file holds the bytecode that these imports need, and a separate process
reads the pages of the libraries ahead. `python -m siftune.machine.coldstart` writes the bytecode
and the list of pages when the image is built. A line in siftune.pth, beside the packages, makes
every Python process call `install`.
"""

# pathlib is not used, because it would be imported at every start:
# ruff: noqa: PTH113, PTH116, PTH123

import marshal
import mmap
import os
import sys
from collections.abc import Iterator
from importlib import machinery
from types import CodeType

# Modules that a driver, a node's Ray and a trial import.
MODULES = ["torch", "ray.tune", "ray.scripts.scripts", "siftune.driver.launch"]
MODULES += ["siftune.driver.loop", "siftune.trial.process", "siftune.trainables.mnist"]
BYTECODE, LIBRARIES = f"{sys.prefix}/bytecode.bin", f"{sys.prefix}/libraries.bin"
BLOCK = 1 << 17  # of mksquashfs, which is decompressed as a whole

_content: mmap.mmap
places: dict[str, tuple[int, int]] = {}  # start and end of each bytecode, by its path


class Loader(machinery.SourceFileLoader):
    """Python's source loader, which reads the bytecode from the file BYTECODE.

    As usual, it uses bytecode only if that matches the time and size of the source. So a source
    that was changed, or replaced by an overlay or a bind mount, is compiled.
    """

    def get_data(self, path: str) -> bytes:
        if place := places.get(path):
            return _content[slice(*place)]
        return super().get_data(path)

    def get_code(self, fullname: str) -> CodeType | None:
        if fullname == "torch":
            _start_reader()
        return super().get_code(fullname)


def install() -> None:
    """Makes Python load modules with Loader. The search path and its order do not change."""
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
    """Starts a process that reads the libraries ahead.

    It is not a child of this process, which may wait for all its children. It is not a fork of it
    either, because this process may have threads.
    """
    words = (sys.executable, __file__, LIBRARIES, str(os.getpid()))
    shell = ("/bin/sh", "-c", '"$0" -IS "$@" </dev/null >/dev/null 2>&1 &', *words)
    try:
        os.waitpid(os.posix_spawn(shell[0], shell, os.environ), 0)
    except OSError:
        return  # the start only takes longer


def read(libraries: str, pid: int) -> None:
    """Reads the blocks listed in the file `libraries`, as long as the process `pid` exists.

    Two processes share the work, because most of it is decompression. Only one such pair runs at a
    time for each mounted image.
    """
    import fcntl

    buffer = bytearray(BLOCK)
    with open(libraries, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sources, runs = marshal.load(file)
        second = os.fork() == 0
        for source in sources if second else ():
            os.kill(pid, 0)
            os.stat(source)  # an import compares its time and size with the bytecode's
        for path, start, end in runs[second::2]:
            with open(path, "rb", buffering=0) as library:
                for offset in range(start, end, BLOCK):
                    os.kill(pid, 0)
                    os.preadv(library.fileno(), [buffer], offset)


# ── Building the image ──────────────────────────────────────────────────────────────────────────


def write() -> None:
    """Imports the modules in this process, and writes the bytecode and the list of pages that this
    loaded to BYTECODE and LIBRARIES."""
    from importlib import import_module

    blocks: dict[str, set[int]] = {}
    for name in MODULES:
        import_module(name)
        try:
            for path, block in _touched():
                blocks.setdefault(path, set()).add(block)
        except OSError as error:
            print(f"libraries will not be read ahead: {error}")  # /proc is incomplete
        blocks.setdefault(BYTECODE, set())  # needed after PyTorch's libraries
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
    print(
        f"bytecode of {len(index)} modules, {sum(map(len, blocks.values())) // 8} MiB to read ahead"
    )


def _touched() -> Iterator[tuple[str, int]]:
    """Yields the file's path and the block's number for each block of a mapped file that has at
    least one page in memory."""
    from array import array

    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", 0) as pagemap:
        for line in reversed(maps.readlines()):  # the first mapping first
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            if not path or not os.path.isfile(name := path[0].rstrip()):
                continue
            first, last = (int(word, 16) // mmap.PAGESIZE for word in addresses.split("-"))
            pagemap.seek(8 * first)
            for page, entry in enumerate(array("Q", pagemap.read(8 * (last - first)))):
                if entry >> 63:
                    yield name, (int(offset, 16) + page * mmap.PAGESIZE) // BLOCK


def _runs(blocks: set[int]) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each run of consecutive blocks, in bytes."""
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
