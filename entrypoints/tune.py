"""Runs a study: hyper-parameter search on this machine, or on the cluster of a Slurm job."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PRESETS = ("mnist", "quick", "t5-5b")
TRAINABLES = ("mnist", "resnet18", "sklearn", "t5")
SEARCHERS = ("auto", "random", "grid", "optuna", "hebo", "bohb", "bayesopt")
SCHEDULERS = ("none", "asha", "hyperband", "bohb", "median", "pbt")


def parser() -> argparse.ArgumentParser:
    """The flags. Values are checked with everything else, so that all mistakes come at once."""
    p = argparse.ArgumentParser(
        prog="tune",
        description=__doc__,
        epilog="Exit status: 0 finished; 1 no trial succeeded; 2 usage; 75 work left, resume it.",
        allow_abbrev=False,
    )
    what = p.add_argument_group("what is searched")
    what.add_argument("--preset", default="mnist", metavar="|".join(PRESETS), help="[mnist]")
    what.add_argument("--config", type=Path, metavar="study.yaml", help="a whole study")
    what.add_argument("--trainable", metavar="|".join((*TRAINABLES, "FILE.py:FUNC|SCRIPT.py")))
    what.add_argument("--trainable-arg", action="append", default=[], metavar="NAME=VALUE")
    what.add_argument("--space", metavar="FILE.py:NAME|FILE.yaml")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="fix a hyper-parameter, or give it a domain: --set 'lr=loguniform(1e-5, 1e-2)'",
    )
    what.add_argument("--metric", help="the reported metric that is optimised")
    what.add_argument("--mode", metavar="min|max")
    how = p.add_argument_group("how")
    how.add_argument("--searcher", metavar="|".join(SEARCHERS), help="[auto]")
    how.add_argument("--searcher-arg", action="append", default=[], metavar="NAME=VALUE")
    how.add_argument("--scheduler", metavar="|".join(SCHEDULERS), help="[asha]")
    how.add_argument("--scheduler-arg", action="append", default=[], metavar="NAME=VALUE")
    how.add_argument("--seed", help="[0]")
    budget = p.add_argument_group("how much")
    budget.add_argument("--trials", metavar="N")
    budget.add_argument("--time-limit", metavar="TIME", help="as 90s, 30m, 4h or 3:30:00")
    budget.add_argument("--cpus-per-trial", metavar="N", help="[1]")
    budget.add_argument(
        "--gpus-per-trial",
        metavar="N",
        help="a fraction packs, of several each trains a part; [1 if there are]",
    )
    budget.add_argument("--concurrent", metavar="N", help="trials at once; [all that fit]")
    budget.add_argument(
        "--retries", metavar="N", help="of a trial that crashed, hung or ran out of memory; [2]"
    )
    budget.add_argument(
        "--report-timeout",
        metavar="TIME",
        help="a trial silent for so long hangs; [10 times the longest epoch, at least 10m]",
    )
    budget.add_argument(
        "--reuse-processes",
        action="store_true",
        default=None,
        help="train one trial after another in a process: for trials of milliseconds",
    )
    where = p.add_argument_group("where")
    where.add_argument(
        "--workdir", metavar="trial|launch", help="a trial's working directory; [trial: its own]"
    )
    where.add_argument("--name", help="of the study and its directory; [trainable and time]")
    where.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    where.add_argument("--resume", metavar="NAME", help="go on with that study")
    where.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SIFTUNE_DATA", "data")),
        metavar="DIR",
        help="data sets; [$SIFTUNE_DATA, else data]",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune.backend import environment
    from siftune.backend.connect import ClusterError
    from siftune.cli import flags
    from siftune.errors import UsageError
    from siftune.record.journal import JournalError, StorageError
    from siftune.record.lease import StudyBusyError
    from siftune.trainables.datasets.mnist import DataError

    try:
        with environment.prepared():  # before the user's file imports Ray
            study, resume = flags.read_study(vars(arguments))
            from siftune.driver.launch import launch

            return launch(study, data=arguments.data, results=arguments.results, resume=resume)
    except UsageError as error:
        for mistake in error.mistakes:
            print(f"tune: {mistake}", file=sys.stderr)
        return 2
    except (DataError, ClusterError, StorageError, JournalError, StudyBusyError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
