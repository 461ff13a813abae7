"""Flags of the command line, as the layers that a study is read from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from siftune.driver import launch
from siftune.errors import UsageError
from siftune.machine import cluster
from siftune.space import Config
from siftune.study import study
from siftune.study.study import PRESETS, Study
from siftune.trainables import Trainable
from siftune.trainables.user import file as user

_OPTIONS = {
    "trainable_arg": "trainable_options",
    "searcher_arg": "searcher_options",
    "scheduler_arg": "scheduler_options",
}
_TEXTS = ("trainable", "metric", "mode", "searcher", "scheduler", "name", "workdir")
_SWITCHES = ("reuse_processes",)
_NUMBERS = ("seed", "trials", "cpus_per_trial", "gpus_per_trial", "concurrent", "retries")
_TIMES = ("time_limit", "report_timeout")


def read_study(flags: Mapping[str, Any]) -> tuple[Study, bool]:
    """The study that the flags of entrypoints/tune.py ask for, and whether it is resumed.

    Raises UsageError with every mistake.
    """
    mistakes: list[str] = []

    def attempt(read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except UsageError as error:
            mistakes.extend(error.mistakes)
            return {}

    layer, settings = _layer(flags, mistakes), _assignments("--set", flags["set"], mistakes)
    if flags["resume"] is not None:
        if settings or flags["space"] or flags["config"]:
            mistakes.append("--resume goes on with the study as it is: leave out --set, --space …")
        if not study.is_name(flags["resume"]):
            mistakes.append(f"--resume must be the name of a study, got {flags['resume']!r}")
            raise UsageError(mistakes)
        found = attempt(launch.resumed, flags["results"] / flags["resume"], layer)
        if mistakes:
            raise UsageError(mistakes)
        return found, True
    if flags["config"]:
        base = attempt(study.read_yaml, flags["config"])
        # The file says what a study is, not which: a second run of it is another study.
        base.pop("name", None)
    else:
        base = PRESETS.get(flags["preset"], PRESETS["mnist"])
        if flags["preset"] not in PRESETS:
            mistakes.append(f"unknown preset {flags['preset']!r}; known: {', '.join(PRESETS)}")
    if flags["space"] is not None:
        layer["space"] = attempt(read_space, flags["space"])
    try:
        found = study.read([base, layer], settings, mark=cluster.job())
    except UsageError as error:
        raise UsageError([*mistakes, *error.mistakes]) from None
    if mistakes:
        raise UsageError(mistakes)
    return found, False


def read_trial(flags: Mapping[str, Any], *, data: Path) -> tuple[Trainable, Config]:
    """The trainable and the one config that the flags of entrypoints/train.py ask for.

    Raises UsageError with every mistake.
    """
    absent = dict.fromkeys((*_TEXTS, *_SWITCHES, *_NUMBERS, *_TIMES, *_OPTIONS, "config", "resume"))
    found, _ = read_study(absent | dict(flags))
    trainable = Trainable(
        name=found.trainable, data=data, seed=found.seed, options=found.trainable_options
    )
    if mistakes := trainable.mistakes(found.space):
        raise UsageError(mistakes)
    return trainable, found.space.sample(np.random.default_rng(found.seed))


def read_space(text: str) -> dict[str, Any]:
    """The dictionary that FILE.py:NAME or FILE.yaml names. Raises UsageError."""
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        loaded = user.load_file(Path(file))
        space = getattr(loaded, name, None)
        if isinstance(space, dict):
            return space
        names = [n for n, v in vars(loaded).items() if isinstance(v, dict) and n[0] != "_"]
        raise UsageError(f"{file} has no dictionary {name!r}; it has: {', '.join(names) or 'none'}")
    if text.endswith((".yaml", ".yml")):
        return study.read_yaml(Path(text))
    raise UsageError(f"--space must be FILE.py:NAME or FILE.yaml, got {text!r}")


def read_time(flag: str, text: str) -> float:
    """Seconds of `90s`, `30m`, `4h` or Slurm's `3:30:00`. Raises UsageError."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text):
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    if re.fullmatch(r"(\d+:)?\d+:\d\d", text):
        seconds = 0
        for part in text.split(":"):
            seconds = seconds * 60 + int(part)
        return float(seconds)
    raise UsageError(f"{flag} must be as 90s, 30m, 4h or 3:30:00, got {text!r}")


def _layer(flags: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """What the flags say of the study. What cannot be read goes to `mistakes`."""
    layer = {name: flags[name] for name in (*_TEXTS, *_SWITCHES) if flags[name] is not None}
    # An empty text is no number, and is not to mean the default.
    given = {name: flags[name] for name in _NUMBERS if flags[name] is not None}
    layer |= {n: text if _value(text) is None else _value(text) for n, text in given.items()}
    for flag, name in _OPTIONS.items():
        if flags[flag]:
            layer[name] = _assignments("--" + flag.replace("_", "-"), flags[flag], mistakes)
    for name in _TIMES:
        if flags[name] is not None:
            try:
                layer[f"{name}_s"] = read_time(f"--{name.replace('_', '-')}", flags[name])
            except UsageError as error:
                mistakes += error.mistakes
    return layer


def _assignments(flag: str, texts: list[str] | None, mistakes: list[str]) -> dict[str, Any]:
    """The values of NAME=VALUE texts; one that is not goes to `mistakes`."""
    values: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if equals and name:
            values[name.strip()] = _value(value.strip())
        else:
            mistakes.append(f"{flag} must be NAME=VALUE, got {text!r}")
    return values


def _value(text: str) -> Any:
    try:
        return study.parse_yaml(text)
    except yaml.YAMLError:
        return text  # as it is: a domain's text need not be YAML
