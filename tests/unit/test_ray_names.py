"""siftune uses only the public API of Ray, and imports Ray only where it belongs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "siftune"
ENTRYPOINTS = Path(__file__).parents[2] / "entrypoints"

# Files that may import Ray itself. All others may import only `ray.tune`, as users do.
MAY_IMPORT_RAY = ("backend/", "trial/session.py")

# Names without a documented alternative, each with the reason for its use. New ones need one too.
EXCEPTIONS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "the only way to have Ray on an address of loopback",
    "RAY_prestart_worker_first_driver": "else Ray starts a process for each CPU, for no trial",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "a trial without a GPU is to see none",
    "setattr ray.tune, ray.train": "no way to say where tune.report goes (trial/session.py)",
}


def files() -> list[Path]:
    return [*SOURCES.rglob("*.py"), *ENTRYPOINTS.glob("*.py")]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_private_name_of_ray_is_used() -> None:
    private = re.compile(r"\bray(\.\w+)*\._\w+|\b(ray|tune|actor|worker)\._\w+|_raylet|_internal")
    uses = []
    for file in files():
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if private.search(line):
                uses.append(f"{file.name}:{number}: {line.strip()}")
    assert uses == []


def test_ray_is_imported_in_the_backend_alone() -> None:
    importers = []
    for file in files():
        path = str(file.relative_to(SOURCES.parent.parent)).removeprefix("src/siftune/")
        if path.startswith(MAY_IMPORT_RAY):
            continue
        for name in imported(ast.parse(file.read_text())):
            if name.partition(".")[0] == "ray" and not name.startswith("ray.tune"):
                importers.append(f"{path}: {name}")
    assert importers == []


def test_variables_of_ray_without_documentation_are_those_with_a_reason() -> None:
    documented = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_TMPDIR"}
    documented |= {"RAY_memory_usage_threshold", "RAY_memory_monitor_refresh_ms"}
    documented |= {"RAY_USAGE_STATS_ENABLED", "RAY_TRAIN_V2_ENABLED", "RAY_COLOR_PREFIX"}
    documented |= {"RAY_USE_TLS", "RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"}
    used = set()
    for file in files():
        used |= set(re.findall(r'"(RAY_\w+)"', file.read_text()))
    assert used - documented == {name for name in EXCEPTIONS if name.startswith("RAY_")}
