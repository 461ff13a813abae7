"""What this machine, or the image on it, can do: a list of checks, each with a finding."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from siftune.machine import cluster, imports
from siftune.trainables.datasets import mnist as data

# By name the oldest driver, None where that depends on the base, and the architectures. The best
# comes first. containers/flavours/*.args is what is built from; a test compares.
FLAVOURS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "cu13": (580, ("x86_64", "aarch64")),
    "cu12": (525, ("x86_64",)),
    "site": (None, ("x86_64", "aarch64")),
}
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    level: str  # ok, warn: it works, but; fail: it does not work
    found: str
    advice: str = ""

    def line(self, name: str) -> str:
        return f"{self.level} {name}: {self.found}{f'; {self.advice}' if self.advice else ''}"


def ok(found: str) -> Finding:
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    return Finding("fail", found, advice)


@dataclass(frozen=True, slots=True)
class Place:
    """Where studies would be written and data sets read."""

    results: Path
    data: Path


def findings(place: Place, *, quick: bool = False) -> Iterator[tuple[str, Finding]]:
    """Name and finding of every check; `quick`: without torch."""
    checks: list[Callable[[Place], Finding]] = [
        *(flavour, gpus, mig, mps, slurm),
        *(shared_memory, temporary_directory, sockets, open_files, processes),
        *(python_path, results, data_set),
        *([] if quick else [torch]),
    ]
    for check in checks:
        try:
            yield check.__name__.replace("_", " "), check(place)
        except Exception as error:  # the other checks are still wanted
            found = f"the check itself failed: {type(error).__name__}: {error}"
            yield check.__name__, fail(found, "please report it")


# ── GPUs and flavours ───────────────────────────────────────────────────────────────────────────


def driver_version(text: str) -> str | None:
    """The version in the text of /proc/driver/nvidia/version, of either kind of kernel module."""
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else None


def fits(name: str, machine: str, version: str | None) -> bool:
    oldest, architectures = FLAVOURS[name]
    new = oldest is None or version is None or int(version.partition(".")[0]) >= oldest
    return machine in architectures and new


def judge_flavour(own: str | None, machine: str, version: str | None) -> Finding:
    """`own`: the flavour of the image that this runs in; `version`: None without a driver."""
    here = f"{machine}, {f'driver {version}' if version else 'no NVIDIA driver'}"
    fitting = next((name for name in FLAVOURS if fits(name, machine, version)), None)
    if fitting is None:
        return fail(f"no flavour fits {here}", "use a node that is x86_64 or aarch64")
    advice = f"build with make image FLAVOUR={fitting}"
    if fitting == "site":
        advice = "build on the site's own image, which has a torch for its driver: BASE=SITE.sif"
    if own is None:
        return Finding("ok", f"{fitting} fits {here}", advice)
    if own not in FLAVOURS:
        return warn(f"the image's flavour {own} is unknown", f"known: {', '.join(FLAVOURS)}")
    if not fits(own, machine, version):
        return fail(f"the image is {own}, which does not fit {here}", advice)
    return ok(f"the image is {own}, which fits {here}")


def judge_gpus(*, driver: bool, devices: int, library: bool, container: bool) -> Finding:
    """What NVIDIA's driver in the kernel, device files and libcuda together mean."""
    if not driver and not devices:
        if Path("/dev/kfd").exists():
            return warn(
                "AMD GPUs", "take a site's image with a ROCm torch, and start it with --rocm"
            )
        return ok("no NVIDIA GPU here, trials run on the CPU")
    if not devices:
        return warn("there is a driver, but no GPU for this process", "ask Slurm for one: GPUS=1")
    if not library and container:
        return fail(f"{devices} device files but no libcuda", "start it with apptainer run --nv")
    if not library:
        return fail(f"{devices} device files but no libcuda.so.1", "load the driver's libraries")
    return ok(f"{devices} device files, and libcuda loads")


def flavour(place: Place) -> Finding:
    return judge_flavour(os.environ.get("SIFTUNE_FLAVOUR"), os.uname().machine, _driver())


def gpus(place: Place) -> Finding:
    return judge_gpus(
        driver=_driver() is not None,
        devices=_devices(),
        library=_loads("libcuda.so.1"),
        container=imports.in_container(),
    )


def mig(place: Place) -> Finding:
    if shutil.which("nvidia-smi") is None:
        return ok("there is no nvidia-smi to ask")
    status, said = _run(["nvidia-smi", "-L"], deadline_s=30)
    if status != 0:
        return fail(f"nvidia-smi: {said}", "take another node, and tell its administrators")
    instances, cards = (
        len(re.findall(r"^\s+MIG ", said, re.M)),
        len(re.findall(r"^GPU ", said, re.M)),
    )
    if instances:
        advice = "a process sees one of them: ask Slurm for single instances, one trial on each"
        return warn(f"{instances} MIG instances on {cards} GPUs", advice)
    return ok(f"{cards} GPUs, none divided")


def mps(place: Place) -> Finding:
    """Whether trials that share a GPU compute at once."""
    told = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if shutil.which("nvidia-cuda-mps-control") is None:
        return ok("there is no nvidia-cuda-mps-control: trials that share a GPU take turns")
    status, said = _run(["nvidia-cuda-mps-control"], deadline_s=10, text="get_server_list\n")
    if status == 0 and "Cannot find" not in said:
        return ok(f"MPS answers in {told or '/tmp/nvidia-mps'}")
    if told:
        advice = "unset it, or start MPS there: nvidia-cuda-mps-control -d"
        return warn(f"no MPS answers in CUDA_MPS_PIPE_DIRECTORY={told}", advice)
    return ok("MPS does not run: trials that share a GPU take turns; a job starts it where MPS=1")


def torch(place: Place) -> Finding:
    """In a process of its own: a broken driver ends it, or lets it hang."""
    code = (
        "import json, torch; n = torch.cuda.device_count()\n"
        "[torch.ones(2, device=f'cuda:{i}').sum().item() for i in range(n)]\n"
        "names = sorted({torch.cuda.get_device_name(i) for i in range(n)})\n"
        "print(json.dumps([torch.__version__, n, names]))"
    )
    advice = "see the lines above; --nv, the flavour and the driver must fit"
    status, said = _run([sys.executable, "-c", code], deadline_s=180)
    if status != 0:
        return fail(f"it does not work: {said}", advice)
    version, count, names = json.loads(said.splitlines()[-1])
    if count:
        return ok(f"{version} computes on {count} × {', '.join(names)}")
    if not _devices():
        return ok(f"{version}, without a GPU")
    return fail(f"{version} sees none of {_devices()} GPUs", advice)


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return driver_version(path.read_text()) if path.exists() else None


def _devices() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _run(command: Sequence[str], *, deadline_s: float, text: str = "") -> tuple[int, str]:
    """Exit status and output, the last line of its errors where it failed. `text`: its input."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(text, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"no answer in {deadline_s:.0f} s"  # not waited for: a driver may hold it
    if process.returncode == 0:
        return 0, out
    lines = (errors.strip() or out.strip()).splitlines()
    ended = f"signal {-process.returncode}" if process.returncode < 0 else "no message"
    return process.returncode, lines[-1] if lines else ended


# ── The machine ─────────────────────────────────────────────────────────────────────────────────


def slurm(place: Place) -> Finding:
    job = cluster.slurm_job()
    if job is None:
        return ok("not inside a job")
    words, count = job
    if _driver() and not count:
        return warn(words, "the node has GPUs and the job has none: ask for them with GPUS=1")
    return ok(words)


def shared_memory(place: Place) -> Finding:
    total = shutil.disk_usage("/dev/shm").total
    found = f"/dev/shm has {total / _GIB:.1f} GiB"
    return ok(found) if total >= _GIB else warn(found, "Ray will use slow files: give it 1 GiB")


def temporary_directory(place: Place) -> Finding:
    """Where Ray keeps its files, and where trials save a checkpoint until Ray has copied it."""
    ray, trials = cluster.LOCAL_TMP, Path(tempfile.gettempdir())
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
    tmp = cluster.LOCAL_TMP
    if imports.in_container():
        return (
            f"start it with apptainer run --bind DIRECTORY:{tmp} (a job uses its site's NODE_TMP)"
        )
    return f"make room in {tmp}, or use another machine (a job uses its site's NODE_TMP)"


# As long as the longest path of Ray's sockets below its directory.
_SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def sockets(place: Place) -> Finding:
    """Whether Ray's sockets can be made where it makes them."""
    tmp = cluster.LOCAL_TMP
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
    faults: Mapping[data.IdxFile, str] = data.mnist_faults(place.data)
    if not faults:
        return ok(f"MNIST is in {place.data}, whole")
    words = [fault if fault != "missing" else f"{f.name} is missing" for f, fault in faults.items()]
    return warn(f"{place.data}: {', '.join(words)}", f"fetch MNIST: data --data {place.data}")
