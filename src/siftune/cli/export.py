"""Writes a study for other programs: tables (csv), Optuna's file, or TensorBoard's."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from siftune.cli import flags
from siftune.errors import UsageError

FORMATS = ("csv", "optuna", "tensorboard")
_EVERY_S = 5.0  # between two looks at a study that is followed


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="export", description=__doc__, allow_abbrev=False)
    flags.add_study(p, "newest")
    p.add_argument("--to", required=True, choices=FORMATS)
    p.add_argument("--into", type=Path, metavar="DIR", help="[the directory of the study]")
    p.add_argument("--follow", action="store_true", help="write what is new until the study ends")
    flags.add_results(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.record import history

    try:
        study = history.find(arguments.results, arguments.study)[-1]
        into = arguments.into or study
        into.mkdir(parents=True, exist_ok=True)
        form = import_module(f"siftune.export.{arguments.to}")
        write = form.writer(into, follow=arguments.follow)
        print(*write(seen := history.load(study)), sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            while arguments.follow and seen.is_running:
                time.sleep(_EVERY_S)
                write(seen := history.load(study))
    except UsageError as error:
        return flags.say_mistakes("export", error.mistakes)
    except OSError as error:
        print(f"export: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
