"""What is in the image, as CycloneDX 1.6 JSON on stdout. `containers/sbom.sh` runs it in there.

Of Python: every package of the image and of its base, with the hashes of the files that the lock
accepts for it. Of Debian: what dpkg has installed, where there is a dpkg. Not listed is what was
put into a base by other means. With SOURCE_DATE_EPOCH the same image gives the same file.
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
    """A Python package's name as indexes and locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_hashes(root: Path) -> dict[tuple[str, str], list[str]]:
    """Of each name and version in the image's locks: the SHA-256 of the files it may come from."""
    found: dict[tuple[str, str], list[str]] = {}
    for lock in sorted(root.glob("opt/siftune/*.lock")):
        for entry in re.split(r"\n(?=\S)", lock.read_text()):
            if pinned := re.match(r"([\w.-]+)==([^\s;]+)", entry):
                hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
                found.setdefault((normal(pinned[1]), pinned[2]), []).extend(hashes)
    return found


def licences(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """As a package says: an SPDX expression, else a short name; nothing where there is none."""
    if expression := metadata.get("license_expression"):
        return [{"expression": expression}]
    classifiers = [c for c in metadata.get("classifier", []) if c.startswith("License ::")]
    names = [c.rpartition(" :: ")[2] for c in classifiers]
    # Some put the whole text of the licence there.
    text = str(metadata.get("license", "")).strip()
    if not names and text and "\n" not in text and text.upper() != "UNKNOWN":
        names = [text]
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def python_packages(
    paths: list[str], hashes: dict[tuple[str, str], list[str]]
) -> Iterator[Component]:
    """Each version of each package below the paths, those that another one hides too."""
    for distribution in distributions(path=paths):
        metadata = distribution.metadata.json
        if not metadata.get("name") or not metadata.get("version"):
            continue  # what is left of one that was removed
        name, version = normal(str(metadata["name"])), str(metadata["version"])
        component: Component = {"type": "library", "name": name, "version": version}
        component["purl"] = purl("pypi", name, version)
        if found := licences(metadata):
            component["licenses"] = found
        if accepted := hashes.get((name, version)):
            unique = sorted(set(accepted))
            component["hashes"] = [{"alg": "SHA-256", "content": content} for content in unique]
        yield component


def python() -> Component:
    """The interpreter, which need not be a package of the system's."""
    version = platform.python_version()
    cpe = f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"
    where = {"type": "platform", "name": "python", "version": version, "cpe": cpe}
    return where | {"purl": purl("generic", "python", version)}


def debian_packages(root: Path) -> Iterator[Component]:
    """What dpkg says is installed, on Debian and what descends from it."""
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
        where = purl(f"deb/{distribution}", quote(name), version)
        where += f"?arch={fields['Architecture']}&distro={distro}"
        yield {"type": "library", "name": name, "version": version, "purl": where}


def document(labels: dict[str, str], found: list[Component]) -> dict[str, Any]:
    """The whole document: the image, and each component once."""
    once = {component["purl"]: component for component in found}
    components = [once[key] | {"bom-ref": key} for key in sorted(once)]
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    opencontainers = "org.opencontainers.image."
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": labels.get(f"{opencontainers}title", "siftune"),
        "version": labels.get(f"{opencontainers}version", "unknown"),
        # Among them the commit, and the base with its digest.
        "properties": [{"name": name, "value": labels[name]} for name in sorted(labels)],
    }
    metadata = {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
        "component": image,
    }
    # The same for the same content and time, and for nothing else.
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
    # The base's own are in the image even where the environment does not see them.
    paths = list(dict.fromkeys([*sys.path, *site.getsitepackages([sys.base_prefix])]))
    found = [python(), *python_packages(paths, locked_hashes(root)), *debian_packages(root)]
    known = json.loads(labels.read_text()) if labels.exists() else {}
    json.dump(document(known, found), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
