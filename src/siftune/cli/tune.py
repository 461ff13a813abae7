"""Runs a study: hyper-parameter search on this machine, or on the nodes of a Slurm job."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siftune.cli import flags
from siftune.errors import UsageError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tune",
        description=__doc__,
        epilog="Exit status: 0 finished; 1 failed; 2 usage error; 75 work left, use --resume.",
        allow_abbrev=False,
    )
    flags.add_settings(p)
    studies = p.add_argument_group("studies and data")
    studies.add_argument(
        "--config", type=Path, metavar="study.yaml", help="run the study that this file describes"
    )
    studies.add_argument("--resume", metavar="NAME", help="resume the study with this name")
    flags.add_results(studies)
    flags.add_data(studies)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    flags.split_resume(arguments)
    from siftune.backend import environment
    from siftune.backend.connect import ClusterError
    from siftune.record.journal import JournalError, StorageError
    from siftune.record.lease import StudyBusyError
    from siftune.trainables.datasets import DataError

    try:
        with environment.prepared():  # before the user's file imports Ray
            request, resume = flags.read_study(vars(arguments))
            from siftune.driver.launch import launch

            return launch(request, data=arguments.data, results=arguments.results, resume=resume)
    except UsageError as error:
        return flags.say_mistakes("tune", error.mistakes)
    except (DataError, ClusterError, StorageError, JournalError, StudyBusyError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
