"""Tests of the recipe and the lock files that need no Apptainer."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "containers"
FLAVOURS = ("cu12", "cu13", "site")
LOCKS = (*FLAVOURS, "bootstrap", "dev")


@cache
def lock(name: str) -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    """Returns each package's version and hashes, by its name and marker."""
    text = (CONTAINERS / "flavours" / f"{name}.lock").read_text()
    packages = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        requirement, *hashes = entry.replace(" \\\n", "\n").split("\n")
        pinned, _, marker = requirement.partition(" ; ")
        package, _, version = pinned.partition("==")
        assert version, f"{name}.lock does not pin {requirement}"
        packages[package, marker] = version, tuple(line.strip() for line in hashes)
    return packages


def packages(name: str) -> dict[str, set[str]]:
    """Returns the versions of each package."""
    versions: dict[str, set[str]] = {}
    for (package, _), (version, _) in lock(name).items():
        versions.setdefault(package, set()).add(version)
    return versions


def of_torch(package: str) -> bool:
    return package.startswith(("torch", "nvidia-", "cuda-", "triton"))


def arguments(path: Path) -> dict[str, str]:
    lines = re.findall(r"^ *([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE)
    return dict(lines)


def test_each_flavour_has_a_lock_and_arguments() -> None:
    here = CONTAINERS / "flavours"
    assert sorted(path.stem for path in here.glob("*.args")) == sorted(FLAVOURS)
    for flavour in FLAVOURS:
        assert arguments(here / f"{flavour}.args")["FLAVOUR"] == flavour
        assert (here / f"{flavour}.lock").is_file()


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_has_a_hash(name: str) -> None:
    for package, (_, hashes) in lock(name).items():
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), package


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host(name: str) -> None:
    text = (CONTAINERS / "flavours" / f"{name}.lock").read_text()
    assert not re.search(r"://|--\w*-?(index|find|host)|@", text)


@pytest.mark.parametrize("name", [name for name in LOCKS if name != "cu13"])
def test_locks_agree_on_what_they_share(name: str) -> None:
    ours, theirs = packages(name), packages("cu13")
    shared = [p for p in ours if p in theirs and not (name == "cu12" and of_torch(p))]
    assert {p: ours[p] for p in shared} == {p: theirs[p] for p in shared}


def test_site_brings_everything_but_torch() -> None:
    names = set(packages("site"))
    assert not [name for name in names if of_torch(name)]
    # The other packages that are left out are required by torch alone.
    missing = {name for name in packages("cu13") if not of_torch(name)} - names
    assert missing <= {"mpmath", "networkx", "setuptools", "sympy", "fsspec", "jinja2", "filelock"}


def test_cuda_versions_are_those_of_the_flavours() -> None:
    assert "nvidia-cudnn-cu13" in packages("cu13")
    assert "nvidia-cudnn-cu12" in packages("cu12")
    assert not {"nvidia-cudnn-cu13", "cuda-toolkit"} & set(packages("cu12"))


def test_each_argument_of_the_recipe_is_declared_and_used() -> None:
    # Apptainer refuses a build with an undeclared or unused argument.
    recipe = (CONTAINERS / "tune.def").read_text()
    declared = arguments(CONTAINERS / "tune.def").keys() - {"UV_CACHE_DIR", "PATH"}
    used = set(re.findall(r"{{ (\w+) }}", recipe))
    assert used <= declared
    section = recipe[recipe.index("%arguments") : recipe.index("%files")]
    assert set(re.findall(r"^ +([A-Z_]+)=", section, re.MULTILINE)) == used
    for flavour in FLAVOURS:
        assert set(arguments(CONTAINERS / "flavours" / f"{flavour}.args")) <= used


def test_the_base_is_a_digest_without_a_tag() -> None:
    base = arguments(CONTAINERS / "tune.def")["BASE"]
    assert re.fullmatch(r"[a-z0-9./-]+@sha256:[0-9a-f]{64}", base)


def test_the_recipe_names_no_address() -> None:
    for path in (*CONTAINERS.glob("*.sh"), CONTAINERS / "tune.def"):
        addresses = re.findall(r"\w+://[A-Za-z0-9.]+", path.read_text())
        assert set(addresses) <= {"docker://NAME"}, path


# ── Mistakes that are refused before the build starts ────────────────────────────────────────────


def refused(tmp_path: Path, **settings: str) -> str:
    """Runs build.sh, which must fail without creating a file, and returns its message."""
    result = subprocess.run(
        [CONTAINERS / "build.sh"],
        cwd=tmp_path,
        env=os.environ | {"APPTAINER": "no-such-apptainer", "SSL_CERT_FILE": ""} | settings,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert list(tmp_path.iterdir()) == []
    assert result.stderr.startswith("make image: ")
    return result.stderr


def test_an_unknown_flavour_lists_the_known(tmp_path: Path) -> None:
    message = refused(tmp_path, FLAVOUR="cu99")
    assert "unknown FLAVOUR=cu99; known: cu12, cu13, site" in message


def test_without_apptainer_it_says_where_one_is(tmp_path: Path) -> None:
    assert "module load apptainer" in refused(tmp_path)


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    assert "BASE=site.sif does not exist" in refused(tmp_path, BASE="site.sif")


@pytest.mark.parametrize("registry", ["", "127.0.0.1:5000/"])
def test_a_tag_beside_a_digest(tmp_path: Path, registry: str) -> None:
    base = f"docker://{registry}python:3.11@sha256:{'0' * 64}"
    assert "leave out the tag" in refused(tmp_path, BASE=base)


def test_a_tag_alone(tmp_path: Path) -> None:
    assert "must have a digest" in refused(tmp_path, BASE="docker://python:3.11")


def test_a_port_is_no_tag(tmp_path: Path) -> None:
    base = f"docker://127.0.0.1:5000/python@sha256:{'0' * 64}"
    assert "module load" in refused(tmp_path, BASE=base)


@pytest.mark.parametrize("base", ["", "debian"])
def test_the_flavour_site_needs_a_base_with_torch(tmp_path: Path, base: str) -> None:
    assert "BASE=path/to/site.sif" in refused(tmp_path, BASE=base, FLAVOUR="site")


def emulator(directory: Path, state: str, flags: str) -> Path:
    """Fills a directory with the entries that binfmt_misc would show."""
    entry = f"{state}\ninterpreter /usr/bin/qemu\nflags: {flags}\n"
    for architecture in ("aarch64", "x86_64"):
        (directory / f"qemu-{architecture}").write_text(entry)
    return directory


FOREIGN = "arm64" if os.uname().machine == "x86_64" else "amd64"


def test_another_architecture_without_emulation(tmp_path: Path) -> None:
    message = refused(tmp_path, ARCH=FOREIGN, BASE="debian", BINFMT_MISC="/nonexistent")
    assert "Root can register qemu" in message
    assert "apt install qemu-user-static binfmt-support" in message


@pytest.mark.parametrize(("state", "flags"), [("disabled", "POCF"), ("enabled", "P")])
def test_an_emulator_that_is_no_use_in_a_container(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, state: str, flags: str
) -> None:
    binfmt = emulator(tmp_path_factory.mktemp("binfmt"), state, flags)
    message = refused(tmp_path, ARCH=FOREIGN, BINFMT_MISC=str(binfmt))
    assert "must be emulated" in message


def test_another_architecture_under_emulation(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    binfmt = emulator(tmp_path_factory.mktemp("binfmt"), "enabled", "POCF")
    assert "module load apptainer" in refused(tmp_path, ARCH=FOREIGN, BINFMT_MISC=str(binfmt))


def test_an_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    message = refused(tmp_path, ARCH="riscv64")
    assert "unknown ARCH=riscv64; known: x86_64 (amd64), aarch64 (arm64)" in message


def test_a_flavour_that_an_architecture_lacks(tmp_path: Path) -> None:
    assert "FLAVOUR=cu12 supports only x86_64" in refused(tmp_path, ARCH="arm64", FLAVOUR="cu12")


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    assert "CA_BUNDLE=none.pem cannot be read" in refused(tmp_path, CA_BUNDLE="none.pem")
