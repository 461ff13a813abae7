"""The checks of `doctor` about GPUs, their driver, and the flavour of the image."""

import ctypes
import json
import os
import shutil
import sys

from siftune.cli.finding import Finding, Place, fail, ok, run_command, warn
from siftune.machine import gpus as gpu_facts
from siftune.machine.packages import in_container

# By name the oldest driver, None where that depends on the base, and the architectures. The best
# comes first. containers/flavours/*.args is what is built from; a test compares.
FLAVOURS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "cu13": (580, ("x86_64", "aarch64")),
    "cu12": (525, ("x86_64",)),
    "site": (None, ("x86_64", "aarch64")),
}


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
        if gpu_facts.has_amd():
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
        return ok("there is no nvidia-smi to ask")
    status, said = run_command(gpu_facts.LIST_COMMAND, deadline_s=30)
    if status != 0:
        return fail(f"nvidia-smi: {said}", "take another node, and tell its administrators")
    cards, instances = gpu_facts.parse_list(said)
    if instances:
        advice = "a process sees one of them: ask Slurm for single instances, one trial on each"
        return warn(f"{instances} MIG instances on {cards} GPUs", advice)
    return ok(f"{cards} GPUs, none divided")


def mps(place: Place) -> Finding:
    """Whether trials that share a GPU compute at once."""
    told = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if shutil.which("nvidia-cuda-mps-control") is None:
        return ok("there is no nvidia-cuda-mps-control: trials that share a GPU take turns")
    status, said = run_command(["nvidia-cuda-mps-control"], deadline_s=10, text="get_server_list\n")
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
    status, said = run_command([sys.executable, "-c", code], deadline_s=180)
    if status != 0:
        return fail(f"it does not work: {said}", advice)
    version, count, names = json.loads(said.splitlines()[-1])
    if count:
        return ok(f"{version} computes on {count} × {', '.join(names)}")
    if not gpu_facts.nvidia_devices():
        return ok(f"{version}, without a GPU")
    return fail(f"{version} sees none of {gpu_facts.nvidia_devices()} GPUs", advice)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
