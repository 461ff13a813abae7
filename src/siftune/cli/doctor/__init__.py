"""Checks what this machine can do and which image flavour fits it. Prints a line per check."""

import argparse
import contextlib
import fcntl
import os
import re
import resource
import shutil
import site
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from siftune.cli import flags
from siftune.cli.doctor import gpus as gpu
from siftune.cli.doctor.finding import Finding, Place, fail, ok, warn
from siftune.machine import gpus as gpu_facts
from siftune.machine import resources
from siftune.machine.packages import in_container
from siftune.machine.slurm import describe_job
from siftune.trainables.datasets import mnist

_GIB = 1024**3


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="doctor",
        description=__doc__,
        epilog="Exit status: 0 if no check fails; 1 if a check fails. Warnings do not count.",
        allow_abbrev=False,
    )
    p.add_argument("--quick", action="store_true", help="skip the torch check, which takes seconds")
    flags.add_results(p)
    flags.add_data(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    place, failed = Place(arguments.results, arguments.data), False
    for name, finding in findings(place, quick=arguments.quick):
        print(finding.line(name), flush=True)
        failed |= finding.level == "fail"
    return int(failed)


def findings(place: Place, *, quick: bool = False) -> Iterator[tuple[str, Finding]]:
    """Yields the name and the finding of every check. `quick`: skip the torch check."""
    checks: list[Callable[[Place], Finding]] = [
        *(gpu.flavour, gpu.gpus, gpu.mig, gpu.mps, slurm),
        *(shared_memory, temporary_directory, sockets, open_files, processes),
        *(python_path, results, data_set),
        *([] if quick else [gpu.torch]),
    ]
    for check in checks:
        try:
            yield check.__name__.replace("_", " "), check(place)
        except Exception as error:  # the other checks run all the same
            state = f"the check itself failed: {type(error).__name__}: {error}"
            yield check.__name__, fail(state, "please report this bug")


def slurm(place: Place) -> Finding:
    job = describe_job()
    if job is None:
        return ok("not inside a job")
    words, count = job
    if gpu_facts.nvidia_driver() and not count:
        return warn(words, "the node has GPUs but the job has none: request them with GPUS=1")
    return ok(words)


def shared_memory(place: Place) -> Finding:
    total = shutil.disk_usage("/dev/shm").total
    state = f"/dev/shm has {total / _GIB:.1f} GiB"
    if total >= _GIB:
        return ok(state)
    return warn(
        state, "Ray will use files on disk instead, which is slow: give /dev/shm at least 1 GiB"
    )


def temporary_directory(place: Place) -> Finding:
    """Checks the free space for Ray's files and for checkpoints that Ray has not copied yet."""
    ray, trials = resources.LOCAL_TMP, Path(tempfile.gettempdir())
    state, free_gib, used = _space(ray)
    if free_gib < 1:
        return fail(state, f"Ray needs 1 GiB there: {_ray_advice()}")
    if used > 0.95:
        return warn(
            state,
            f"Ray refuses to store objects once the disk is more than 95 % full: {_ray_advice()}",
        )
    if trials == ray:
        return ok(state)
    saved, free_gib, _ = _space(trials)
    if free_gib < 1:
        return warn(
            saved, "trials save their checkpoints there first: set TMPDIR to another directory"
        )
    return ok(f"Ray's files: {state}; checkpoints being saved: {saved}")


def _space(directory: Path) -> tuple[str, float, float]:
    """Returns a description of the disk, its free space in GiB, and the fraction in use."""
    usage = shutil.disk_usage(directory)
    free_gib, used = usage.free / _GIB, usage.used / usage.total
    return f"{directory} has {free_gib:.1f} GiB free, {used:.0%} used", free_gib, used


def _ray_advice() -> str:
    """Returns how to give Ray more space outside Slurm. Ray does not use TMPDIR there."""
    tmp = resources.LOCAL_TMP
    if in_container():
        return f"use apptainer run --bind DIRECTORY:{tmp} (a job uses its site's NODE_TMP)"
    return f"make space in {tmp}, or use another machine (a job uses its site's NODE_TMP)"


# As long as the longest path of a socket below Ray's directory.
_SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def sockets(place: Place) -> Finding:
    """Checks that a socket can be created where Ray creates its own."""
    tmp = resources.LOCAL_TMP
    try:
        with tempfile.TemporaryDirectory(prefix="sift-", dir=tmp) as directory:
            path = Path(directory, "r", _SOCKET)
            path.parent.mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as unix_socket:
                unix_socket.bind(str(path))
    except OSError as error:
        state = f"Ray cannot create a socket in {tmp}: {error.strerror or error}"
        return fail(state, _ray_advice())
    return ok(f"Ray can create its sockets in {tmp}")


_LEAST = 4096  # open files, and also processes


def open_files(place: Place) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = f"at most {soft} at once"
    return ok(state) if _enough(soft) else warn(state, _more("n", hard))


def processes(place: Place) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if _enough(soft):
        return ok("no limit" if soft == resource.RLIM_INFINITY else f"at most {soft} at once")
    return warn(f"at most {soft} at once, including threads", _more("u", hard))


def _enough(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= _LEAST


def _more(flag: str, hard: int) -> str:
    """Returns how to raise a limit. Only root can raise it above the hard limit."""
    if not _enough(hard):
        return f"Ray needs {_LEAST}: ask the administrators to raise the hard limit from {hard}"
    return (
        f"Ray needs more: ulimit -{flag} {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    )


def python_path(place: Place) -> Finding:
    if path := os.environ.get("PYTHONPATH"):
        return warn(f"PYTHONPATH={path} is searched for packages first", "unset PYTHONPATH")
    user = site.getusersitepackages()
    if site.ENABLE_USER_SITE and Path(user).is_dir():
        return warn(f"packages in {user} are used", "export PYTHONNOUSERSITE=1")
    return ok("neither PYTHONPATH nor packages in the home directory are used")


def file_system(path: Path, mounts: str) -> str:
    """Returns the type of the file system of `path`. `mounts`: the text of /proc/mounts."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, point, its_kind, *_ = line.split()
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
        # Of two mounts on the same point, the later one hides the earlier.
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, its_kind
    return kind


def results(place: Place) -> Finding:
    """Checks that lines can be appended, that files can be replaced, and that only one driver can
    create its file."""
    directory = place.results.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    kind = file_system(existing.resolve(), Path("/proc/mounts").read_text())
    state = f"{directory} is on {kind}"
    try:
        with tempfile.TemporaryDirectory(prefix=".siftune-", dir=existing) as scratch:
            locks = _writes(Path(scratch))
    except (OSError, AssertionError) as error:
        return fail(f"{state}: {error}", "name another directory with --results")
    if not locks:
        return warn(f"{state}, without file locks", "your training script may need them")
    return ok(f"{state}; appending, renaming and locking work")


def _writes(scratch: Path) -> bool:
    """Returns whether files can be locked. Raises OSError or AssertionError if a check fails."""
    path = scratch / "lines"
    with path.open("ab", buffering=0) as first, path.open("ab", buffering=0) as second:
        for stream, line in ((first, b"1\n"), (second, b"2\n"), (first, b"3\n")):
            stream.write(line)
        assert path.read_bytes() == b"1\n2\n3\n", "appended lines overwrite one another"
        (scratch / "new").write_text("new")
        (scratch / "new").replace(path)
        assert path.read_text() == "new", "after a rename, readers still see the old file"
        with contextlib.suppress(FileExistsError):
            path.open("x").close()
            raise AssertionError("the same file can be created exclusively twice")
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def data_set(place: Place) -> Finding:
    faults: Mapping[mnist.IdxFile, str] = mnist.mnist_faults(place.data)
    if not faults:
        return ok(f"MNIST is complete in {place.data}")
    words = [fault if fault != "missing" else f"{f.name} is missing" for f, fault in faults.items()]
    return warn(f"{place.data}: {', '.join(words)}", f"fetch MNIST: data --data {place.data}")
