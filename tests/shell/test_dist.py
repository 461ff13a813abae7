"""The tarball of `make dist` is enough to submit from, on a machine without siftune."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tarball_unpacks_and_submits(tmp_path: Path) -> None:
    # Packs a copy that has its own image, so that the working tree's image stays untouched.
    source = tmp_path / "source"
    names = ["Makefile", "README.md", "README.svg", "SECURITY.md", "CONTRIBUTING.md"]
    names += ["CHANGELOG.md", "pyproject.toml"]
    names += [f"tests/{folder}README.md" for folder in ("", "bench/", "cluster/")]
    for name in ("containers", "entrypoints", "slurm", "src"):
        shutil.copytree(ROOT / name, source / name)
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "tune.sif").write_bytes(b"an image")
    subprocess.run(["make", "dist"], cwd=source, check=True, capture_output=True)

    (packed,) = source.glob("siftune-*.tar")
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "cluster", filter="data")
    unpacked = tmp_path / "cluster" / packed.stem
    assert (unpacked / "tune.sif").read_bytes() == b"an image"
    assert (unpacked / "COMMIT").read_text().strip()
    assert not list(unpacked.rglob("__pycache__"))
    submit = ["make", "--no-print-directory", "submit", "GPUS=8", "SITE=turpan", "DRY_RUN=1"]
    environment = {"PATH": os.environ["PATH"], "USER": "someone"}
    done = subprocess.run(
        submit, cwd=unpacked, env=environment, check=True, capture_output=True, text=True
    )
    assert "--nodes=4 --ntasks-per-node=1 --cpus-per-task=80" in done.stdout
    assert f"{unpacked}/slurm/tune.sbatch" in done.stdout
