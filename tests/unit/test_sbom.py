"""`make sbom` lists the right packages, also for bases that the test image does not use."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

SCRIPT = Path(__file__).parents[2] / "containers" / "sbom.py"


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert isinstance(spec, ModuleSpec)
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(where: Path, name: str, version: str, more: str = "") -> None:
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}"
    write(where / f"{name}-{version}.dist-info" / "METADATA", text)


def test_a_package_of_the_base_is_listed_beside_the_one_that_hides_it(
    sbom: ModuleType, tmp_path: Path
) -> None:
    ours, base = tmp_path / "ours", tmp_path / "base"
    install(ours, "Some_Thing", "2.0")
    install(base, "some.thing", "1.0+site")
    install(base, "torch", "2.9.0a0+nv24.2")
    (base / "removed-1.0.dist-info").mkdir()
    packages = sbom.python_packages([str(ours), str(base)], {})
    assert {component["purl"] for component in packages} == {
        "pkg:pypi/some-thing@2.0",
        "pkg:pypi/some-thing@1.0%2Bsite",
        "pkg:pypi/torch@2.9.0a0%2Bnv24.2",
    }


def test_hashes_are_those_of_the_version_that_is_there(sbom: ModuleType, tmp_path: Path) -> None:
    old, new = "a" * 64, "b" * 64
    lock = f"x-y==1 ; python_full_version < '3.12' \\\n    --hash=sha256:{old}\n"
    lock += f"x-y==2 \\\n    --hash=sha256:{new}\n"
    write(tmp_path / "opt/siftune/cu13.lock", lock)
    install(tmp_path, "X.y", "2")
    (package,) = sbom.python_packages([str(tmp_path)], sbom.locked_hashes(tmp_path))
    assert package["hashes"] == [{"alg": "SHA-256", "content": new}]


@pytest.mark.parametrize(
    ("metadata", "licences"),
    [
        ("License-Expression: MIT OR Apache-2.0\n", [{"expression": "MIT OR Apache-2.0"}]),
        (
            "License: a\n        whole text\nClassifier: License :: OSI Approved :: MIT License\n",
            [{"license": {"name": "MIT License"}}],
        ),
        ("License: BSD\n", [{"license": {"name": "BSD"}}]),
        ("License: a\n        whole text\n", None),
        ("License: UNKNOWN\n", None),
    ],
)
def test_a_licence_is_an_expression_or_a_name(
    sbom: ModuleType, tmp_path: Path, metadata: str, licences: object
) -> None:
    install(tmp_path, "x", "1", metadata)
    (package,) = sbom.python_packages([str(tmp_path)], {})
    assert package.get("licenses") == licences


def test_only_installed_debian_packages_are_listed(sbom: ModuleType, tmp_path: Path) -> None:
    assert list(sbom.debian_packages(tmp_path)) == []
    write(tmp_path / "etc/os-release", 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="22.04"\n')
    entry = "Package: {}\nStatus: {}\nArchitecture: arm64\nVersion: {}\nDescription: x\n y: z\n"
    entries = [
        entry.format("libstdc++6", "install ok installed", "1:2.3-4+b1~a"),
        entry.format("gone", "deinstall ok config-files", "1"),
    ]
    write(tmp_path / "var/lib/dpkg/status", "\n".join(entries))
    (package,) = sbom.debian_packages(tmp_path)
    expected = "pkg:deb/ubuntu/libstdc%2B%2B6@1:2.3-4%2Bb1~a?arch=arm64&distro=ubuntu-22.04"
    assert package["purl"] == expected
    assert (package["name"], package["version"]) == ("libstdc++6", "1:2.3-4+b1~a")


def test_the_same_content_and_time_give_the_same_valid_document(
    sbom: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = [sbom.python(), sbom.python()]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    first = sbom.document({"siftune.flavour": "site"}, components)
    assert first == sbom.document({"siftune.flavour": "site"}, components)
    assert first["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"
    assert len(first["components"]) == 1
    assert first["serialNumber"] != sbom.document({}, components)["serialNumber"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(first)) is None
