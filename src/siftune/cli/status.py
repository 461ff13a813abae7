"""Prints the state of studies, on any machine that can read their directories."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from siftune.cli import flags
from siftune.errors import UsageError

_WATCH_S = 2.0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="status", description=__doc__, allow_abbrev=False)
    flags.add_study(p, "all")
    p.add_argument(
        "--watch", action="store_true", help="redraw the progress of each study until it has ended"
    )
    flags.add_results(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.record import history
    from siftune.report import status

    mistakes: list[str] = []
    try:
        if arguments.watch:
            return _watch(history.find(arguments.results, arguments.study))
        for i, directory in enumerate(history.find(arguments.results, arguments.study)):
            try:
                paragraph = list(status.lines(history.load(directory)))
            except UsageError as error:  # the other studies are still shown
                mistakes += [f"{directory}: {mistake}" for mistake in error.mistakes]
            else:
                print("\n" * (i > 0) + "\n".join(paragraph))
    except UsageError as error:
        mistakes += error.mistakes
    return flags.say_mistakes("status", mistakes) if mistakes else 0


def _watch(directories: Sequence[Path]) -> int:
    """Redraws the tables of the studies until none is running, or until Ctrl-C."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from siftune.record import history
    from siftune.report import status, table

    if not sys.stdout.isatty():
        raise UsageError("--watch redraws a terminal, and this is not one: leave it out")
    console = Console()
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            seen = [history.load(directory) for directory in directories]
            running = [study for study in seen if study.is_running]
            shown = running or seen
            height = max(1, console.height // len(shown) - 1)
            parts: list[Any] = []
            for study in shown:
                parts.append(Text(status.headline(study)))
                parts.append(table.draw(table.snapshot(study), height=height))
            live.update(Group(*parts), refresh=True)
            if not running:
                break
            time.sleep(_WATCH_S)
    return 0
