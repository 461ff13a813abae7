"""Trains one config alone, without Ray; or evaluates the best weights of a study."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="train", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "--from",
        dest="best",
        type=Path,
        metavar="best.json",
        help="evaluate the weights that it names, on the validation and the test set",
    )
    p.add_argument("--preset", default="mnist", metavar="mnist|quick|t5-5b", help="[mnist]")
    p.add_argument("--trainable", metavar="mnist|resnet18|sklearn|t5|FILE.py:FUNC|SCRIPT.py")
    p.add_argument("--trainable-arg", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--space", metavar="FILE.py:NAME|FILE.yaml")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyper-parameter; those not set are drawn from the space with the seed",
    )
    p.add_argument("--seed", help="[0]")
    p.add_argument("--save", type=Path, metavar="DIR", help="where the weights go")
    p.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SIFTUNE_DATA", "data")),
        metavar="DIR",
        help="data sets; [$SIFTUNE_DATA, else data]",
    )
    return p


def _show(metrics: Mapping[str, Any]) -> None:
    print(*(f"{name}={value:.6g}" for name, value in metrics.items()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from siftune.cli import flags, single
    from siftune.errors import UsageError
    from siftune.trainables.datasets.mnist import DataError

    try:
        if arguments.best:
            for name, value in single.evaluate(arguments.best, data=arguments.data).items():
                print(f"{name}: {value:.6g}")
            return 0
        trainable, config = flags.read_trial(vars(arguments), data=arguments.data)
        print("config:", *(f"{name}={value}" for name, value in config.items()), flush=True)
        single.train(trainable, config, _show, save_to=arguments.save)
    except UsageError as error:
        for mistake in error.mistakes:
            print(f"train: {mistake}", file=sys.stderr)
        return 2
    except DataError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
