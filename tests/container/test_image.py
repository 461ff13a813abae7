"""Tests of a built image, and of building one, with a real Apptainer.

Environment variables, with defaults in brackets:

    SIFTUNE_IMAGE  the image [tune.sif in the repository]
    SIFTUNE_ON     a command that runs other commands where Apptainer is installed, such as
                   `tests/cluster/on.sh login hpc1` [none: commands run here]
    SIFTUNE_ARCH   the architecture of the image; another one is emulated [this machine's]

All paths, also that of the image, are paths in that place. If SIFTUNE_IMAGE or SIFTUNE_ON is set,
anything missing fails the tests; otherwise they are skipped.
"""

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from siftune.searchers import SEARCHERS
from tests.container.registry import Registry, layer, program, serving

ROOT = Path(__file__).resolve().parents[2]


class Place:
    """The place that has Apptainer. Runs commands there as an ordinary user, in `directory`."""

    def __init__(self, prefix: list[str]) -> None:
        self.prefix = prefix
        self.directory = ""

    def run(
        self, script: str, *arguments: str, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a Bash script with arguments."""
        result = subprocess.run(
            [*self.prefix, "bash", "-c", f'cd "$0" && {script}', self.directory or "/", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=900,
        )
        return subprocess.CompletedProcess(
            result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
        )

    def must(self, script: str, *arguments: str, stdin: bytes | None = None) -> str:
        """Runs a script that must succeed, and returns its output."""
        result = self.run(script, *arguments, stdin=stdin)
        assert result.returncode == 0, f"{script}\n{result.stdout}{result.stderr}"
        return result.stdout

    def unpack(self, tar: bytes, directory: str) -> None:
        self.must('mkdir -p "$1" && tar -x -C "$1"', directory, stdin=tar)


def packed(*paths: Path, below: Path) -> bytes:
    """Returns a tar of files and directories, with names relative to `below`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in paths:
            tar.add(path, path.relative_to(below))
    return content.getvalue()


def absent(reason: str) -> NoReturn:
    if {"SIFTUNE_IMAGE", "SIFTUNE_ON"} & os.environ.keys():
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def place(image_of_the_cluster: None) -> Iterator[Place]:
    """Yields the place. Everything is written to one directory in the home, removed at the end."""
    apptainer = Place(shlex.split(os.environ.get("SIFTUNE_ON", "")))
    try:
        version = apptainer.run("apptainer --version")
    except FileNotFoundError as error:
        absent(f"SIFTUNE_ON: {error}")
    if version.returncode:
        absent("apptainer is missing here: install it, or set SIFTUNE_ON to a place that has it")
    apptainer.directory = apptainer.must('mktemp -d -p "$HOME" siftune-test.XXXXXX').strip()
    try:
        yield apptainer
    finally:
        apptainer.must('chmod -R u+w . && rm -rf "$0"')


@pytest.fixture(scope="session")
def image(place: Place) -> str:
    path = os.environ.get("SIFTUNE_IMAGE", str(ROOT / "tune.sif"))
    if place.run('test -r "$1"', path).returncode:
        absent(f"the image {path} does not exist: make image, or set SIFTUNE_IMAGE")
    starts = place.run('apptainer exec "$1" true', path)
    if starts.returncode:
        absent(f"apptainer cannot start {path}: {starts.stderr.strip()}")
    return path


@pytest.fixture(scope="session")
def data(place: Place, mnist_directory: Path) -> str:
    """Copies MNIST to the place, and returns its path there."""
    raw = mnist_directory / "MNIST" / "raw"
    files = [path for path in raw.iterdir() if path.name.endswith("ubyte")]
    place.unpack(packed(*files, below=mnist_directory), "data")
    return f"{place.directory}/data"


@pytest.fixture
def client(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns spython's client. The `singularity` that it calls is Apptainer in the place."""
    from spython.main import Client

    program = tmp_path / "singularity"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([*place.prefix, "apptainer"])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Client


def said(result: dict[str, Any]) -> str:
    """Returns everything that a container started by spython printed."""
    message = result["message"]
    return message if isinstance(message, str) else "".join(message)


# ── The image ────────────────────────────────────────────────────────────────────────────────────


def test_its_own_test_passes(place: Place, image: str) -> None:
    printed = place.must('apptainer test --contain --no-home "$1"', image)
    assert f"searchers: {', '.join(SEARCHERS)}\n" in printed
    assert "CUDA" in printed
    assert "one_epoch: val_loss" in printed


def test_labels_say_what_it_was_built_from(place: Place, image: str) -> None:
    printed = place.must('apptainer inspect --json --labels "$1"', image)
    labels = json.loads(printed)["data"]["attributes"]["labels"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = ROOT / "containers" / "flavours" / f"{labels['siftune.flavour']}.lock"
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["siftune.lock"] == f"sha256:{hashlib.sha256(lock.read_bytes()).hexdigest()}"
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert labels["org.opencontainers.image.revision"]
    assert "/tmp/" not in printed  # nor the build directory


def test_it_says_for_which_architecture_it_is(place: Place, image: str) -> None:
    inside = place.must('apptainer exec "$1" uname -m', image).strip()
    wanted = os.environ.get("SIFTUNE_ARCH", os.uname().machine)
    debian = {"x86_64": "amd64", "aarch64": "arm64"}
    assert debian[inside] == debian.get(wanted, wanted)
    # Apptainer compares the header with its machine before it starts a container.
    header = place.must('apptainer sif header "$1"', image)
    assert re.search(rf"Primary Architecture: +{debian[inside]}\n", header), header
    labels = place.must('apptainer inspect --labels "$1"', image)
    assert f"org.label-schema.build-arch: {debian[inside]}\n" in labels


def test_its_help_names_the_commands(place: Place, image: str) -> None:
    printed = place.must('apptainer run-help "$1"', image)
    for words in ("--preset quick", "--searcher hebo", "FILE.py:FUNC", "data --data DIR"):
        assert words in printed


@pytest.mark.skipif(
    "SIFTUNE_ARCH" in os.environ, reason="under emulation Ray cannot start within its 30 s"
)
def test_a_study_in_an_empty_directory(place: Place, image: str, data: str) -> None:
    run = 'mkdir empty && cd empty && apptainer -q run --contain --no-home --bind "$PWD" '
    run += '--pwd "$PWD" --bind "$2:/data:ro" --env SIFTUNE_DATA=/data '
    run += '"$1" --preset quick --trials 2 --trainable-arg images=600 --set epochs=1 --name study'
    printed = place.must(run, image, data)
    assert "study study:" in printed
    assert place.must("ls -A empty").split() == ["results"]
    files = place.must("ls -A empty/results/study").split()
    assert {"study.yaml", "trials.jsonl", "best.json", "summary.json", "report.html"} <= set(files)
    events = map(json.loads, place.must("cat empty/results/study/trials.jsonl").splitlines())
    ends = [event for event in events if event["event"] == "end"]
    assert len(ends) == 2
    assert {end["state"] for end in ends} <= {"completed", "pruned"}


@pytest.mark.parametrize("command", sorted(p.stem for p in (ROOT / "entrypoints").glob("*.py")))
def test_each_entrypoint_is_a_command(client: Any, image: str, command: str) -> None:
    result = client.run(image, [command, "--help"], return_result=True, quiet=True)
    assert result["return_code"] == 0, said(result)
    assert f"usage: {command}" in said(result)


def test_flags_alone_are_a_study(client: Any, image: str) -> None:
    result = client.run(image, ["--trials", "0", "--seed", "x"], return_result=True, quiet=True)
    assert result["return_code"] == 2
    assert "tune: " in said(result)


@pytest.mark.parametrize("word", ["nonsense", "../selftest", "selftest"])
def test_an_unknown_command_lists_the_known(client: Any, image: str, word: str) -> None:
    result = client.run(image, [word], return_result=True, quiet=True)
    assert result["return_code"] == 2
    assert f"unknown command '{word}'; known: data, " in said(result)


def test_the_image_cannot_be_written_to(client: Any, image: str) -> None:
    result = client.execute(image, ["touch", "/opt/siftune/file"], return_result=True)
    assert result["return_code"] != 0
    assert "Read-only file system" in said(result)


def test_packages_of_the_user_and_the_host_do_not_leak_in(place: Place, image: str) -> None:
    poison = "mkdir -p home/.local/lib/python3.{11,12,13}/site-packages elsewhere && "
    poison += "for directory in home/.local/lib/python3.*/site-packages elsewhere; do "
    poison += 'echo \'raise SystemExit("leaked")\' >"$directory/torch.py"; done'
    place.must(poison)
    start = 'PYTHONPATH="$PWD/elsewhere" apptainer -q exec --home "$PWD/home" --bind "$PWD" "$1" '
    place.must(start + "python -c 'import torch; assert torch.version.cuda'", image)


def test_everything_is_compiled(client: Any, image: str) -> None:
    # Otherwise modules would be compiled at every start, because the image is read-only.
    search = "import pathlib, ray, siftune, torch\n"
    search += "for module in ray, siftune, torch:\n"
    search += "    top = pathlib.Path(module.__file__).parent\n"
    search += "    assert any((top / '__pycache__').glob('__init__.*.pyc')), module"
    result = client.execute(image, ["python", "-c", search], return_result=True)
    assert result["return_code"] == 0, said(result)


@pytest.fixture(scope="session")
def site(place: Place, image: str) -> str:
    """Returns the directory in the image that contains Ray's package."""
    find = (
        "import importlib.util; print(*importlib.util.find_spec('ray').submodule_search_locations)"
    )
    directory = place.must('apptainer -q exec "$1" python -c "$2"', image, find).strip()
    return directory.removesuffix("/ray")


ANOTHER = "commit = version = 'another'"  # ray/_version.py, which ray/__init__.py imports


def test_a_module_that_was_changed_is_loaded_as_it_is(place: Place, image: str, site: str) -> None:
    place.must(f'mkdir -p changed && echo "{ANOTHER}" >changed/version.py')
    start = 'cd changed && apptainer -q exec --no-home --bind "$PWD" --pwd "$PWD" '
    # Replaces the module, while the bytecode of the original is still in the image.
    bind = f'--bind "$PWD/version.py:{site}/ray/_version.py" "$1" python -c "$2"'
    place.must(start + bind, image, "import ray; assert ray.__version__ == 'another'")
    # A module earlier on the path, and one beside the script that is started.
    place.must("cd changed && mkdir earlier && echo 'said = 2' >earlier/ray.py")
    path = '--env PYTHONPATH="$PWD/earlier" "$1" python -c "$2"'
    place.must(start + path, image, "import ray; assert ray.said == 2")
    place.must("cd changed && mv earlier/ray.py .")
    place.must(start + '"$1" python -c "$2"', image, "import torch, ray; assert ray.said == 2")


def test_an_overlay_changes_modules_and_adds_others(place: Place, image: str, site: str) -> None:
    add = 'mkdir -p "overlaid$1/ray" && echo "$2" >"overlaid$1/ray/_version.py" && '
    add += 'echo "said = 1" >"overlaid$1/ray/another.py" && mksquashfs overlaid o.sqfs -quiet >&2'
    place.must(add, site, ANOTHER)
    check = "import ray.another, ray.tune; assert ray.__version__ == 'another'"
    run = 'apptainer -q exec --no-home --overlay o.sqfs "$1" python -c "$2"'
    place.must(run, image, check)


def test_an_error_in_a_library_shows_its_lines(place: Place, image: str) -> None:
    raising = "import json, torch; torch.distributions.Normal('a', 1)"
    shown = place.run('apptainer -q exec "$1" python -c "$2"', image, raising).stderr
    assert "self.loc, self.scale = broadcast_all(loc, scale)" in shown
    assert "coldstart" not in shown


def test_what_reads_ahead_ends_with_what_it_reads_for(place: Place, image: str) -> None:
    # Python ends while its files are being read; the reader notices after one block.
    start = 'apptainer -q exec "$1" python -c "$2"; for i in $(seq 50); do '
    start += 'pgrep -u $UID -f "[c]oldstart.py" >/dev/null || exit 0; sleep 0.1; done; exit 1'
    leave = "import importlib.util, os; torch = importlib.util.find_spec('torch').loader; "
    leave += "torch.get_code('torch'); os._exit(0)"
    place.must(start, image, leave)


def test_the_list_of_what_is_in_it(place: Place, image: str) -> None:
    scripts = [ROOT / "containers" / name for name in ("sbom.sh", "sbom.py")]
    place.unpack(packed(*scripts, below=ROOT), "list")
    write = 'cd list && ln -sf "$1" tune.sif && SOURCE_DATE_EPOCH=0 containers/sbom.sh && '
    write += "cat tune.cdx.json"
    text = place.must(write, image)
    assert place.must(write, image) == text
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    purls = [component["purl"] for component in document["components"]]
    assert [PackageURL.from_string(purl).to_string() for purl in purls] == purls

    properties = document["metadata"]["component"]["properties"]
    labels = {entry["name"]: entry["value"] for entry in properties}
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert labels["org.opencontainers.image.revision"]
    lock = ROOT / "containers" / "flavours" / f"{labels['siftune.flavour']}.lock"
    # Only packages without a marker, which are in every image of the flavour.
    pinned = re.findall(r"^([\w.-]+)==(\S+) \\$", lock.read_text(), re.MULTILINE)
    listed = {(c["name"], c["version"]): c for c in document["components"]}
    assert len(pinned) > 50
    assert [package for package in pinned if not listed[package].get("hashes")] == []
    assert any(purl.startswith("pkg:pypi/siftune@") for purl in purls)
    if place.run('apptainer exec "$1" test -e /var/lib/dpkg/status', image).returncode == 0:
        assert any(re.match(r"pkg:deb/\w+/libc6@[^?]+\?arch=\w+&distro=", p) for p in purls)


# ── Building ─────────────────────────────────────────────────────────────────────────────────────

# The shortest recipe that uses every argument. These tests run build.sh with real builds.
RECIPE = """Bootstrap: {{ BOOTSTRAP }}
From: {{ BASE }}
%arguments
    BASE=unused
%labels
    siftune.inputs {{ INPUTS }}
%help
    {{ BASE_NAME }} {{ BASE_DIGEST }} {{ VERSION }} {{ COMMIT }} {{ LOCK_DIGEST }}
    {{ FLAVOUR }} {{ VENV_OPTIONS }} {{ DRIVER_MIN }} {{ ARCHITECTURES }}
"""
BUILD = "cd project && APPTAINER_TMPDIR=../tmp BASE=../base FLAVOUR=cu13 containers/build.sh"


@pytest.fixture
def project(place: Place, tmp_path: Path) -> None:
    """Copies the project to the place, with the short recipe and an empty base."""
    names = ("pyproject.toml", "src", "entrypoints", "containers")
    place.must("rm -rf project base && mkdir -p tmp base/etc base/mnt base/usr/bin")
    place.unpack(packed(*(ROOT / name for name in names), below=ROOT), "project")
    place.must("cat >project/containers/tune.def", stdin=RECIPE.encode())


@pytest.mark.usefixtures("project")
def test_an_image_is_built_again_only_when_an_input_has_changed(place: Place) -> None:
    stat = "stat -c %y-%i project/tune.sif"
    place.must(BUILD)
    first = place.must(stat)
    assert "up to date" in place.run(BUILD).stderr
    assert place.must(stat) == first
    place.must("touch project/src/siftune/__init__.py && mkdir project/src/siftune/__pycache__")
    assert "up to date" in place.run(BUILD).stderr
    place.must("echo >>project/src/siftune/__init__.py")
    assert "up to date" not in place.run(BUILD).stderr
    assert place.must(stat) != first


@pytest.mark.usefixtures("project")
def test_a_signed_image_is_up_to_date_and_its_successor_unsigned(place: Place) -> None:
    place.must(BUILD)
    keys = 'cd project && HOME="$PWD/home" APPTAINER_KEYSDIR="$PWD/home/keys" containers/sign.sh '
    place.must("mkdir -m 700 project/home && " + keys + "sign")
    assert "up to date" in place.run(BUILD).stderr
    assert "is signed and unchanged" in place.run(keys + "verify").stderr
    place.must("echo >>project/src/siftune/__init__.py")
    assert "was signed, but the new image is not: make sign" in place.run(BUILD).stderr
    assert "was signed, but its signature is missing" in place.run(keys + "verify").stderr


@pytest.mark.usefixtures("project")
def test_an_image_for_another_architecture_is_another_file(place: Place) -> None:
    foreign = "arm64" if place.must("uname -m").strip() == "x86_64" else "amd64"
    # The short recipe runs no program, so nothing needs to be emulated.
    entry = r"printf 'enabled\nflags: F\n' | tee binfmt/qemu-aarch64 >binfmt/qemu-x86_64"
    place.must(f"mkdir -p binfmt && {entry} && rm -f project/tune*.sif")
    place.must(f'export BINFMT_MISC="$PWD/binfmt" ARCH={foreign} && {BUILD}')
    assert place.must("cd project && ls *.sif").split() == [f"tune-{foreign}.sif"]


@pytest.mark.usefixtures("project")
def test_a_failed_build_leaves_the_old_image(place: Place) -> None:
    place.must(BUILD)
    before = place.must("sha256sum project/tune.sif; ls -A project")
    place.must("printf '%%post\\n    exit 1\\n' >>project/containers/tune.def")
    result = place.run(BUILD)
    assert result.returncode == 1
    assert "tune.sif is unchanged" in result.stderr
    assert place.must("sha256sum project/tune.sif; ls -A project") == before
    assert not place.must("ls -A tmp")


# ── A base from a registry ───────────────────────────────────────────────────────────────────────

FROM_REGISTRY = (
    'cd project && APPTAINER_NOHTTPS=true APPTAINER_CACHEDIR="$PWD/../$2" APPTAINER_TMPDIR=../tmp '
    'BASE="$1" FLAVOUR=cu13 containers/build.sh'
)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("docker-registry") and not shutil.which("apt-get"):
        absent("docker-registry and apt-get are missing: install docker-registry")
    return program(tmp_path_factory.mktemp("docker-registry"))


@pytest.fixture
def registry(place: Place, docker_registry: Path, tmp_path: Path) -> Iterator[Registry]:
    """Runs a registry on this machine. The place must share this machine's network."""
    with serving(docker_registry, tmp_path) as server:
        connect = place.run("true <>/dev/tcp/127.0.0.1/$1", str(server.port))
        if connect.returncode:
            absent("SIFTUNE_ON runs commands where this machine's loopback is out of reach")
        yield server


@pytest.fixture
def base(registry: Registry) -> str:
    """Pushes an image for two architectures, named in its /architecture; returns its address."""
    layers = {name: layer("/usr/bin/cat", architecture=name) for name in ("amd64", "arm64")}
    return f"docker://127.0.0.1:{registry.port}/some/base@{registry.push('some/base', layers)}"


@pytest.mark.usefixtures("project")
def test_a_base_from_a_registry(place: Place, base: str) -> None:
    place.must(FROM_REGISTRY, base, "cache")
    printed = place.must("apptainer exec project/tune.sif /usr/bin/cat /architecture")
    assert printed == {"x86_64": "amd64", "aarch64": "arm64"}[place.must("uname -m").strip()]
    assert f"{base} {base.partition('@')[2]} " in place.must("apptainer run-help project/tune.sif")
    assert "up to date" in place.run(FROM_REGISTRY, base, "cache").stderr
    assert place.must("ls -A tmp") == ""


@pytest.mark.usefixtures("project")
def test_a_registry_that_serves_something_else_is_refused(
    place: Place, registry: Registry, base: str
) -> None:
    registry.spoil_layers()
    done = place.run(FROM_REGISTRY, base, "another-cache")
    assert done.returncode == 1
    assert "error verifying sha256 checksum" in done.stderr
    assert "the build failed" in done.stderr
    assert place.run("test -e project/tune.sif").returncode == 1
    assert place.must("ls -A tmp") == ""
