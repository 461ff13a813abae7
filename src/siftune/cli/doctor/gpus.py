"""The checks of `doctor` for GPUs, their driver, and the image flavour."""

import ctypes
import json
import os
import shutil
import sys

from siftune.cli.doctor.finding import Finding, Place, fail, ok, run_command, warn
from siftune.machine import gpus as gpu_facts
from siftune.machine.packages import in_container

# The oldest driver of each flavour, None if that depends on the base, and its architectures. The
# best flavour comes first. A test compares this with containers/flavours/*.args.
FLAVOURS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "cu13": (580, ("x86_64", "aarch64")),
    "cu12": (525, ("x86_64",)),
    "site": (None, ("x86_64", "aarch64")),
}


def fits(name: str, machine: str, version: str | None) -> bool:
    """Returns whether the flavour fits the architecture and the driver (None: no driver)."""
    oldest, architectures = FLAVOURS[name]
    new = oldest is None or version is None or int(version.partition(".")[0]) >= oldest
    return machine in architectures and new


def judge_flavour(own: str | None, machine: str, version: str | None) -> Finding:
    """Judges which flavour fits.

    `own`: the flavour of the image that runs this code. `version`: the driver's version.
    """
    here = f"{machine}, {f'driver {version}' if version else 'no NVIDIA driver'}"
    fitting = next((name for name in FLAVOURS if fits(name, machine, version)), None)
    if fitting is None:
        return fail(f"no flavour fits {here}", "use a node that is x86_64 or aarch64")
    advice = f"build with make image FLAVOUR={fitting}"
    if fitting == "site":
        advice = "build from the site's image, whose torch fits its driver: BASE=SITE.sif"
    if own is None:
        return Finding("ok", f"{fitting} fits {here}", advice)
    if own not in FLAVOURS:
        return warn(f"the image's flavour {own} is unknown", f"known: {', '.join(FLAVOURS)}")
    if not fits(own, machine, version):
        return fail(f"the image is {own}, which does not fit {here}", advice)
    return ok(f"the image is {own}, which fits {here}")


def judge_gpus(*, driver: bool, devices: int, library: bool, container: bool) -> Finding:
    """Judges the GPUs by NVIDIA's kernel driver, its device files and libcuda."""
    if not driver and not devices:
        if gpu_facts.has_amd():
            return warn("AMD GPUs", "use a site's image with a ROCm torch: apptainer run --rocm")
        return ok("no NVIDIA GPU here: trials run on the CPU")
    if not devices:
        return warn("a driver is loaded, but this process has no GPU", "ask Slurm for one: GPUS=1")
    if not library and container:
        return fail(f"{devices} device files but no libcuda", "use apptainer run --nv")
    if not library:
        return fail(f"{devices} device files but no libcuda.so.1", "load the driver's libraries")
    return ok(f"{devices} device files, and libcuda can be loaded")


def flavour(place: Place) -> Finding:
    return judge_flavour(
        os.environ.get("SIFTUNE_FLAVOUR"), os.uname().machine, gpu_facts.nvidia_driver()
    )


def gpus(place: Place) -> Finding:
    return judge_gpus(
        driver=gpu_facts.nvidia_driver() is not None,
        devices=gpu_facts.nvidia_devices(),
        library=_loads("libcuda.so.1"),
        container=in_container(),
    )


def mig(place: Place) -> Finding:
    if not gpu_facts.has_nvidia_smi():
        return ok("nvidia-smi is not installed")
    status, output = run_command(gpu_facts.LIST_COMMAND, deadline_s=30)
    if status != 0:
        return fail(f"nvidia-smi: {output}", "use another node, and tell its administrators")
    cards, instances = gpu_facts.parse_list(output)
    if instances:
        advice = "a process sees only one of them: request single instances, one per trial"
        return warn(f"{instances} MIG instances on {cards} GPUs", advice)
    return ok(f"{cards} GPUs, none divided by MIG")


def mps(place: Place) -> Finding:
    """Checks whether trials that share a GPU can compute at the same time."""
    directory = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if shutil.which("nvidia-cuda-mps-control") is None:
        return ok("nvidia-cuda-mps-control is not installed: trials that share a GPU take turns")
    status, output = run_command(
        ["nvidia-cuda-mps-control"], deadline_s=10, text="get_server_list\n"
    )
    if status == 0 and "Cannot find" not in output:
        return ok(f"MPS is running in {directory or '/tmp/nvidia-mps'}")
    if directory:
        advice = "unset it, or start MPS there: nvidia-cuda-mps-control -d"
        return warn(f"MPS is not running in CUDA_MPS_PIPE_DIRECTORY={directory}", advice)
    return ok(
        "MPS is not running: trials that share a GPU take turns; "
        "jobs start it if the site file sets MPS=1"
    )


def torch(place: Place) -> Finding:
    """Runs torch in a process of its own, because a broken driver may crash or hang it."""
    code = (
        "import json, torch; n = torch.cuda.device_count()\n"
        "[torch.ones(2, device=f'cuda:{i}').sum().item() for i in range(n)]\n"
        "names = sorted({torch.cuda.get_device_name(i) for i in range(n)})\n"
        "print(json.dumps([torch.__version__, n, names]))"
    )
    advice = "see the lines above; check --nv, and that flavour and driver match"
    status, output = run_command([sys.executable, "-P", "-c", code], deadline_s=180)
    if status != 0:
        return fail(f"does not work: {output}", advice)
    version, count, names = json.loads(output.splitlines()[-1])
    if count:
        return ok(f"{version} runs on {count} × {', '.join(names)}")
    if not gpu_facts.nvidia_devices():
        return ok(f"{version}, without a GPU")
    return fail(f"{version} sees none of {gpu_facts.nvidia_devices()} GPUs", advice)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
