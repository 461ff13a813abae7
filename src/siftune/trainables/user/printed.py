"""Where the metrics of a script are."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedMetrics:
    """How the metrics of a script are found in its output."""

    metric: str = ""  # a line without it is no epoch; empty: each line of JSON is one
    patterns: tuple[str, ...] = ()  # regular expressions for lines that are not JSON
    file: str | None = None  # a .csv, .jsonl or .json file that the script writes
