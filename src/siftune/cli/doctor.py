"""Says what this machine can do and which flavour of the image fits: a line for each check."""

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

from siftune.cli import doctor_gpus, flags
from siftune.cli.finding import Finding, Place, fail, ok, warn
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
        epilog="Exit status: 0 nothing fails; 1 a check failed; warnings do not count.",
        allow_abbrev=False,
    )
    p.add_argument("--quick", action="store_true", help="without torch, which takes seconds")
    flags.add_results(p)
    flags.add_data(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    place, failed = Place(arguments.results, arguments.data), False
    for name, finding in findings(place, quick=arguments.quick):
        print(finding.line(name), flush=True)
        failed |= finding.level == "fail"
    return int(failed)


def findings(place: Place, *, quick: bool = False) -> Iterator[tuple[str, Finding]]:
    """Name and finding of every check; `quick`: without torch."""
    checks: list[Callable[[Place], Finding]] = [
        *(doctor_gpus.flavour, doctor_gpus.gpus, doctor_gpus.mig, doctor_gpus.mps, slurm),
        *(shared_memory, temporary_directory, sockets, open_files, processes),
        *(python_path, results, data_set),
        *([] if quick else [doctor_gpus.torch]),
    ]
    for check in checks:
        try:
            yield check.__name__.replace("_", " "), check(place)
        except Exception as error:  # the other checks are still wanted
            found = f"the check itself failed: {type(error).__name__}: {error}"
            yield check.__name__, fail(found, "please report it")


def slurm(place: Place) -> Finding:
    job = describe_job()
    if job is None:
        return ok("not inside a job")
    words, count = job
    if gpu_facts.nvidia_driver() and not count:
        return warn(words, "the node has GPUs and the job has none: ask for them with GPUS=1")
    return ok(words)


def shared_memory(place: Place) -> Finding:
    total = shutil.disk_usage("/dev/shm").total
    found = f"/dev/shm has {total / _GIB:.1f} GiB"
    return ok(found) if total >= _GIB else warn(found, "Ray will use slow files: give it 1 GiB")


def temporary_directory(place: Place) -> Finding:
    """Where Ray keeps its files, and where trials save a checkpoint until Ray has copied it."""
    ray, trials = resources.LOCAL_TMP, Path(tempfile.gettempdir())
    found, free_gib, used = _space(ray)
    if free_gib < 1:
        return fail(found, f"Ray needs 1 GiB there: {_ray_advice()}")
    if used > 0.95:
        return warn(found, f"Ray stores nothing there above 95 %: {_ray_advice()}")
    if trials == ray:
        return ok(found)
    saved, free_gib, _ = _space(trials)
    if free_gib < 1:
        return warn(saved, "trials save their checkpoints there first: name another in TMPDIR")
    return ok(f"{found}, for Ray; {saved}, for checkpoints that are being saved")


def _space(directory: Path) -> tuple[str, float, float]:
    """What there is in words, the GiB that are free, and the part of the file system in use."""
    usage = shutil.disk_usage(directory)
    free_gib, used = usage.free / _GIB, usage.used / usage.total
    return f"{directory} has {free_gib:.1f} GiB free, {used:.0%} used", free_gib, used


def _ray_advice() -> str:
    """How to give Ray room, where a study runs without Slurm: TMPDIR is not asked."""
    tmp = resources.LOCAL_TMP
    if in_container():
        return (
            f"start it with apptainer run --bind DIRECTORY:{tmp} (a job uses its site's NODE_TMP)"
        )
    return f"make room in {tmp}, or use another machine (a job uses its site's NODE_TMP)"


# As long as the longest path of Ray's sockets below its directory.
_SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def sockets(place: Place) -> Finding:
    """Whether Ray's sockets can be made where it makes them."""
    tmp = resources.LOCAL_TMP
    try:
        with tempfile.TemporaryDirectory(prefix="sift-", dir=tmp) as directory:
            path = Path(directory, "r", _SOCKET)
            path.parent.mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
    except OSError as error:
        found = f"Ray cannot make a socket in {tmp}: {error.strerror or error}"
        return fail(found, _ray_advice())
    return ok(f"Ray can make its sockets in {tmp}")


_LEAST = 4096  # files, and processes


def open_files(place: Place) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft} at once"
    return ok(found) if _enough(soft) else warn(found, _more("n", hard))


def processes(place: Place) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if _enough(soft):
        return ok("no limit" if soft == resource.RLIM_INFINITY else f"at most {soft} at once")
    return warn(f"at most {soft} at once, threads counted", _more("u", hard))


def _enough(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= _LEAST


def _more(flag: str, hard: int) -> str:
    """How to raise a limit, which nobody but root raises above the hard one."""
    if not _enough(hard):
        return f"Ray needs {_LEAST}: ask the administrators for more than {hard}"
    return (
        f"Ray needs more: ulimit -{flag} {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    )


def python_path(place: Place) -> Finding:
    if path := os.environ.get("PYTHONPATH"):
        return warn(f"PYTHONPATH={path} is searched for packages first", "unset PYTHONPATH")
    user = site.getusersitepackages()
    if site.ENABLE_USER_SITE and Path(user).is_dir():
        return warn(f"packages in {user} are used", "export PYTHONNOUSERSITE=1")
    return ok("neither PYTHONPATH nor packages of the home are used")


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that `path` is on, of the text of /proc/mounts."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, point, its_kind, *_ = line.split()
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
        # The later of two on the same point hides the earlier.
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, its_kind
    return kind


def results(place: Place) -> Finding:
    """Whether a study can be written: lines appended, files replaced, one driver told apart."""
    directory = place.results.absolute()
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    found = f"{directory} is on {file_system(there.resolve(), Path('/proc/mounts').read_text())}"
    try:
        with tempfile.TemporaryDirectory(prefix=".siftune-", dir=there) as scratch:
            locks = _writes(Path(scratch))
    except (OSError, AssertionError) as error:
        return fail(f"{found}, and {error}", "name another directory with --results")
    if not locks:
        return warn(f"{found}, without file locks", "a training script of yours may need them")
    return ok(f"{found}; appending, renaming and locking work")


def _writes(scratch: Path) -> bool:
    """Whether files can be locked. Raises where they cannot be appended to or renamed."""
    path = scratch / "lines"
    with path.open("ab", buffering=0) as one, path.open("ab", buffering=0) as other:
        for stream, line in ((one, b"1\n"), (other, b"2\n"), (one, b"3\n")):
            stream.write(line)
        assert path.read_bytes() == b"1\n2\n3\n", "appended lines overwrite one another"
        (scratch / "new").write_text("new")
        (scratch / "new").replace(path)
        assert path.read_text() == "new", "a renamed file is still the old one"
        with contextlib.suppress(FileExistsError):
            path.open("x").close()
            raise AssertionError("a file can be created twice")
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def data_set(place: Place) -> Finding:
    faults: Mapping[mnist.IdxFile, str] = mnist.mnist_faults(place.data)
    if not faults:
        return ok(f"MNIST is in {place.data}, whole")
    words = [fault if fault != "missing" else f"{f.name} is missing" for f, fault in faults.items()]
    return warn(f"{place.data}: {', '.join(words)}", f"fetch MNIST: data --data {place.data}")
