"""Checks and writes the parts of Markdown pages that are generated from measurements."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def assert_part(file: str, name: str, lines: list[str]) -> None:
    """Asserts that the part `<!-- measured: NAME -->` of a page holds these lines.

    `file` is a path in the repository. With SIFTUNE_README=write the lines are written first.
    """
    if os.environ.get("SIFTUNE_README") == "write":
        write_part(file, name, lines)
    expected = _with_part(file, name, lines)
    assert (ROOT / file).read_text() == expected, f"SIFTUNE_README=write would update {file}"


def write_part(file: str, name: str, lines: list[str]) -> None:
    """Replaces the part `<!-- measured: NAME -->` of a page with these lines."""
    (ROOT / file).write_text(_with_part(file, name, lines))


def _with_part(file: str, name: str, lines: list[str]) -> str:
    before, begin, rest = (ROOT / file).read_text().partition(f"<!-- measured: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    assert begin, f"{file} has no part '<!-- measured: {name} -->'"
    assert end, f"the part '<!-- measured: {name} -->' of {file} has no '<!-- end -->'"
    return before + begin + "\n".join(lines) + "\n" + end + after
