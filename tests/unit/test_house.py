"""The packages ("rooms") of src/siftune: allowed imports, sizes, and module names in texts."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "siftune"

# A room imports only rooms on lines below its own. Rooms on the same line do not import each other.
HOUSE = (
    ("cli", "api"),
    ("driver",),
    ("report", "export", "backend"),
    ("record", "trial"),
    ("study",),
    ("trainables",),
    ("searchers", "schedulers"),
    ("space",),
    ("machine",),
    ("catalogue",),
    ("errors",),
)
LEVEL = {room: level for level, rooms in enumerate(HOUSE) for room in rooms}
MOST_ENTRIES = 13  # in a room; the package itself contains the rooms
MOST_LINES = 400  # in a file
MOST_FUNCTION_LINES = 60


def modules() -> dict[str, Path]:
    """Returns the path of every module by its name; a package's name maps to its __init__.py."""
    paths = {}
    for path in SOURCES.rglob("*.py"):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yields the modules of siftune that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in MODULES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def room(module: str) -> str | None:
    """Returns the room of a module, or None for the package itself, which is the public API."""
    return module.split(".")[1] if "." in module else None


def test_imports_point_down_only() -> None:
    wrong = []
    for module, path in MODULES.items():
        if (here := room(module)) is None:
            continue
        for other in imports(path):
            imported = room(other)
            if imported != here and (imported is None or LEVEL[imported] <= LEVEL[here]):
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_every_room_has_its_place() -> None:
    rooms = {name for module in MODULES if (name := room(module))}
    assert rooms == set(LEVEL)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    while graph:
        leaves = {module for module, others in graph.items() if not others & graph.keys()}
        assert leaves, f"these import each other: {', '.join(sorted(graph))}"
        graph = {module: others for module, others in graph.items() if module not in leaves}


def test_rooms_have_few_entries() -> None:
    for directory in [SOURCES, *(path for path in SOURCES.rglob("*") if path.is_dir())]:
        entries = [p for p in directory.iterdir() if p.suffix == ".py" or p.is_dir()]
        entries = [p for p in entries if p.name not in ("__pycache__", "__init__.py")]
        assert len(entries) <= (len(LEVEL) if directory == SOURCES else MOST_ENTRIES), directory


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: str(p.relative_to(SOURCES)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, node.name


def _names(path: Path) -> set[str]:
    """Returns the names that a module defines or imports at its top level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_what_tests_import_is_there() -> None:
    """Also checks imports inside functions, which otherwise fail only in the slowest tests."""
    wrong = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "containers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module == "siftune" or not node.module.startswith("siftune."):
                continue
            known = _names(MODULES[node.module]) if node.module in MODULES else set()
            for alias in node.names:
                if alias.name not in known and f"{node.module}.{alias.name}" not in MODULES:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.module}.{alias.name}")
    assert wrong == []


def test_module_names_in_texts_are_modules() -> None:
    """Checks names that no import checks: catalogues, preloaded modules, `python -m`, the image."""
    suffixes = {".py", ".sh", ".sbatch", ".def", ".toml", ".md"}
    wrong = []
    for folder in ("src", "entrypoints", "containers", "slurm", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in suffixes:
                continue
            for name in re.findall(r"(?<![\w./-])siftune(?:\.[a-z_0-9]+)+", path.read_text()):
                if not _names_something(name):
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


# Words that begin like a module name but are none: image labels, files, the public API.
_OTHERS = re.compile(
    r"siftune\.(architectures|pth|flavour|inputs|lock|version|parallel|when|egg|tune|load|sif|ask_and_tell)\b.*"
)


def _names_something(name: str) -> bool:
    """Returns True if `name` is a module or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if ".".join(parts[:end]) in MODULES:
            return end >= len(parts) - 2
    return bool(_OTHERS.fullmatch(name))


@pytest.mark.parametrize("name", ["siftune.when", "siftune.parallel", "siftune.ask_and_tell"])
def test_the_public_api_is_there(name: str) -> None:
    package, _, attribute = name.partition(".")
    assert hasattr(importlib.import_module(package), attribute)
