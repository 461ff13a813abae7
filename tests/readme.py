"""The parts of the README that are made of what was measured."""

import os
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def assert_part(name: str, lines: list[str]) -> None:
    """That what stands in the README behind `<!-- measured: NAME -->` is these lines.

    With SIFTUNE_README=write they are written there first.
    """
    if os.environ.get("SIFTUNE_README") == "write":
        write_part(name, lines)
    assert README.read_text() == _with_part(name, lines), "SIFTUNE_README=write writes it anew"


def write_part(name: str, lines: list[str]) -> None:
    README.write_text(_with_part(name, lines))


def _with_part(name: str, lines: list[str]) -> str:
    before, begin, rest = README.read_text().partition(f"<!-- measured: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    assert begin, f"README.md has no part that is measured: {name}"
    assert end, f"the part measured: {name} of README.md has no end"
    return before + begin + "\n".join(lines) + "\n" + end + after
