"""Lists the packages in the image as CycloneDX 1.6 JSON on stdout. `containers/sbom.sh` runs it.

The list has every Python package of the image and of its base, with the hashes of the files that
the lock file accepts, and the Debian packages if the base has dpkg. Software that was added to a
base in another way is missing. With SOURCE_DATE_EPOCH the same image gives the same file.
"""

import json
import os
import platform
import re
import site
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]


def purl(kind: str, name: str, version: str) -> str:
    return f"pkg:{kind}/{name}@{quote(version, safe=':')}"


def normal(name: str) -> str:
    """Returns the name of a Python package as indexes and lock files write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_hashes(root: Path) -> dict[tuple[str, str], list[str]]:
    """Returns the accepted SHA-256 hashes of each name and version in the image's lock files."""
    locked: dict[tuple[str, str], list[str]] = {}
    for lock in sorted(root.glob("opt/siftune/*.lock")):
        for entry in re.split(r"\n(?=\S)", lock.read_text()):
            if pinned := re.match(r"([\w.-]+)==([^\s;]+)", entry):
                hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
                locked.setdefault((normal(pinned[1]), pinned[2]), []).extend(hashes)
    return locked


def licences(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the licences that a package names: an SPDX expression, or short names, or []."""
    if expression := metadata.get("license_expression"):
        return [{"expression": expression}]
    classifiers = [c for c in metadata.get("classifier", []) if c.startswith("License ::")]
    names = [c.rpartition(" :: ")[2] for c in classifiers]
    # Some packages put the whole text of the licence there.
    text = str(metadata.get("license", "")).strip()
    if not names and text and "\n" not in text and text.upper() != "UNKNOWN":
        names = [text]
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def python_packages(
    paths: list[str], hashes: dict[tuple[str, str], list[str]]
) -> Iterator[Component]:
    """Yields each version of each package below the paths, even if another version hides it."""
    for distribution in distributions(path=paths):
        metadata = distribution.metadata.json
        if not metadata.get("name") or not metadata.get("version"):
            continue  # the remains of a package that was removed
        name, version = normal(str(metadata["name"])), str(metadata["version"])
        component: Component = {"type": "library", "name": name, "version": version}
        component["purl"] = purl("pypi", name, version)
        if named := licences(metadata):
            component["licenses"] = named
        if accepted := hashes.get((name, version)):
            unique = sorted(set(accepted))
            component["hashes"] = [{"alg": "SHA-256", "content": content} for content in unique]
        yield component


def python() -> Component:
    """Returns the interpreter, which is not always a package of the system."""
    version = platform.python_version()
    cpe = f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"
    interpreter = {"type": "platform", "name": "python", "version": version, "cpe": cpe}
    return interpreter | {"purl": purl("generic", "python", version)}


def debian_packages(root: Path) -> Iterator[Component]:
    """Yields the packages that dpkg has installed, on Debian and its derivatives."""
    status = root / "var/lib/dpkg/status"
    if not status.exists():
        return
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', (root / "etc/os-release").read_text(), re.M))
    distribution = release.get("ID", "debian")
    distro = f"{distribution}-{release.get('VERSION_ID', 'unknown')}"
    for entry in status.read_text(errors="replace").split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", entry, re.M))
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, version = fields["Package"], fields["Version"]
        url = purl(f"deb/{distribution}", quote(name), version)
        url += f"?arch={fields['Architecture']}&distro={distro}"
        yield {"type": "library", "name": name, "version": version, "purl": url}


def document(labels: dict[str, str], listed: list[Component]) -> dict[str, Any]:
    """Returns the whole document: the image, and each component once."""
    unique = {component["purl"]: component for component in listed}
    components = [unique[key] | {"bom-ref": key} for key in sorted(unique)]
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    opencontainers = "org.opencontainers.image."
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": labels.get(f"{opencontainers}title", "siftune"),
        "version": labels.get(f"{opencontainers}version", "unknown"),
        # The labels include the commit, and the base with its digest.
        "properties": [{"name": name, "value": labels[name]} for name in sorted(labels)],
    }
    metadata = {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
        "component": image,
    }
    # The serial number depends only on the content and the time.
    content = json.dumps([metadata, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": metadata,
        "components": components,
    }


def main() -> None:
    root = Path("/")
    labels = root / ".singularity.d/labels.json"
    # The base's packages are in the image even if the virtual environment does not see them.
    paths = list(dict.fromkeys([*sys.path, *site.getsitepackages([sys.base_prefix])]))
    components = [python(), *python_packages(paths, locked_hashes(root)), *debian_packages(root)]
    known = json.loads(labels.read_text()) if labels.exists() else {}
    json.dump(document(known, components), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
