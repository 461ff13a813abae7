"""Texts for durations, values and configs, shared by the progress table, report and status."""

from collections.abc import Iterator
from typing import Any

from siftune.space import Config, Space


def short(value: Any, *, most: int = 40) -> str:
    """Returns a value as text of at most `most` characters, on one line."""
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def duration(seconds: float) -> str:
    """Returns a duration such as 12 s, 34 min, 5.6 h or 7.8 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 3 * 86400 else f"{seconds / 86400:.3g} days"


def settings(config: Config, space: Space) -> Iterator[str]:
    """Yields NAME=VALUE for each entry that varies and has an effect in this config."""
    active = space.active(config)
    return (f"{n}={short(active[n])}" for n in (*space.parameters, *space.drawn) if n in active)


def place(node: str | None, gpu: str | None) -> str:
    """Returns the node and the GPU, as far as they are known."""
    return f"{node or 'unknown node'}{f' GPU {gpu}' if gpu else ''}"
