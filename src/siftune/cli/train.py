"""Trains one config without Ray, or evaluates the best weights of a study."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune.cli import flags
from siftune.errors import UsageError
from siftune.trainables import TrainableSpec, how_to_report


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="train",
        description=__doc__,
        epilog="Hyper-parameters that --set does not fix are sampled from the space; --seed makes "
        "the sample reproducible.",
        allow_abbrev=False,
    )
    flags.add_settings(
        p,
        (
            "trainable",
            "trainable_options",
            "space",
            "metric",
            "metric_patterns",
            "metric_file",
            "seed",
            "processes_per_trial",
        ),
    )
    p.add_argument(
        "--check",
        action="store_true",
        help="train one epoch, kill the trial and resume it, and say what would not survive",
    )
    weights = p.add_argument_group("weights and data")
    weights.add_argument(
        "--from",
        dest="best",
        type=Path,
        metavar="best.json",
        help="evaluate the weights named in this file, on the validation and the test set",
    )
    weights.add_argument("--save", type=Path, metavar="DIR", help="directory for the weights")
    flags.add_data(weights)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = flags.parse(parser(), argv)
    from siftune.cli import one_config
    from siftune.trainables.datasets import DataError

    try:
        if arguments.best:
            for name, value in one_config.evaluate(arguments.best, data=arguments.data).items():
                print(f"{name}: {value:.6g}")
            return 0
        trainable, config, given = flags.read_trial(vars(arguments))
        print("config:", *(f"{name}={value}" for name, value in config.items()), flush=True)
        if arguments.check:
            if trainable.processes > 1:
                raise UsageError("--check trains in one process: leave out --processes-per-trial")
            return _check(trainable, given)
        return _train(trainable, given, arguments.save)
    except UsageError as error:
        return flags.say_mistakes("train", error.mistakes)
    except DataError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1


def _train(trainable: TrainableSpec, config: dict[str, Any], save_to: Path | None) -> int:
    from siftune.cli import one_config
    from siftune.record.wording import short

    metric, came = trainable.printed.metric, False

    def show(metrics: Mapping[str, Any]) -> None:
        nonlocal came
        came = came or metric in metrics
        print(*(f"{name}={short(v, most=200)}" for name, v in metrics.items()), flush=True)

    one_config.train(trainable, config, show, save_to=save_to)
    if came:
        return 0
    advice = how_to_report(trainable.name, metric)
    print(f"train: it ended without reporting {metric!r}: {advice}", file=sys.stderr)
    return 1


def _check(trainable: TrainableSpec, config: dict[str, Any]) -> int:
    from siftune.cli import check

    failed = False
    for name, finding in check.findings(trainable, config):
        print(finding.line(name), flush=True)
        failed |= finding.level == "fail"
    return int(failed)
