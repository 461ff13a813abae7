"""The flags of a study, derived from the settings in siftune/study/request.py.

Importing this module is fast, which keeps `--help` fast; the rest is imported only when a study is
read.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from siftune.errors import UsageError
from siftune.study import presets
from siftune.study.request import GROUPS, Setting, flag, is_name, settings

if TYPE_CHECKING:
    from siftune.space import Config
    from siftune.study.request import StudyRequest
    from siftune.trainables import TrainableSpec

_T = TypeVar("_T")


# ── The parser ──────────────────────────────────────────────────────────────────────────────────


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Adds the flag of each setting to its group. `names`: only these settings."""
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    wanted = settings() if names is None else {name: settings()[name] for name in names}
    preset = groups[GROUPS[0]]
    preset.add_argument(
        "--preset",
        default=presets.DEFAULT,
        metavar="|".join(presets.PRESETS),
        help=f"[{presets.DEFAULT}]",
    )
    for name, setting in wanted.items():
        groups[setting.group].add_argument(flag(name), dest=name, **_argument(setting))
        if name == "space":
            groups[setting.group].add_argument(
                "--set",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="fix a hyper-parameter, or set its domain: --set 'lr=loguniform(1e-5, 1e-2)'",
            )
        if name == "try_configs":
            groups[setting.group].add_argument(
                "--try-file",
                dest=name,
                action="append",
                type=Path,
                default=[],
                metavar="FILE.yaml|FILE.csv",
                help="configs for the first trials: a list of dictionaries, or a table with a row "
                "for each config",
            )


def _argument(setting: Setting) -> dict[str, Any]:
    """Returns the keyword arguments for add_argument.

    Values stay text here. They are checked later, so that all mistakes are reported together.
    """
    argument: dict[str, Any] = {"help": setting.help or None}
    if setting.kind == "switch":
        return argument | {"action": "store_true", "default": None}
    if setting.metavar:
        argument["metavar"] = setting.metavar
    if setting.kind in ("options", "texts", "configs"):
        argument |= {"action": "append", "default": []}
    return argument


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Prints letters that the terminal cannot show as escapes.

    The words after `--` are for the user's script, as those of `--trainable-arg args="…"`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else list(argv)
    end = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:end])
    if for_script := words[end + 1 :]:
        if not hasattr(arguments, "trainable_options"):
            parser.error(f"unrecognized arguments: -- {shlex.join(for_script)}")
        if any(text.startswith("args=") for text in arguments.trainable_options):
            parser.error("words for the script: give them in --trainable-arg args=… or after --")
        arguments.trainable_options.append(f"args={shlex.join(for_script)}")
    return arguments


def add_data(parser: argparse._ActionsContainer) -> None:
    """Adds --data, the directory of data sets."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SIFTUNE_DATA", "data")),
        metavar="DIR",
        help="directory of data sets; [$SIFTUNE_DATA, else data]",
    )


def add_results(parser: argparse._ActionsContainer) -> None:
    """Adds --results, the directory of study directories."""
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="[results]"
    )


def add_study(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the study as an argument that may be left out. `default`: what is then meant."""
    words = f"name or directory of the study; [{default}]"
    parser.add_argument("study", nargs="?", metavar="STUDY|DIR", help=words)


def say_mistakes(command: str, mistakes: Iterable[str]) -> int:
    """Prints the user's mistakes, and returns the exit status 2."""
    for mistake in mistakes:
        print(f"{command}: {mistake}", file=sys.stderr)
    return 2


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


def read_study(flags: Mapping[str, Any]) -> tuple[StudyRequest, bool]:
    """Returns the study that the flags of `tune` describe, and whether it is resumed.

    Raises UsageError with every mistake.
    """
    from siftune.machine import slurm
    from siftune.study import reading

    mistakes = _Mistakes()
    layer = _layer(flags, mistakes)
    changes = mistakes.assignments("--set", flags["set"])
    if flags["resume"] is not None:
        return _read_resumed(flags, layer, changes, mistakes), True
    base: dict[str, Any] = presets.PRESETS[presets.DEFAULT]
    if flags["config"]:
        # The name in the file is not used: running the file again makes a new study.
        base = mistakes.attempt(dict[str, Any](), reading.read_study_yaml, flags["config"])
        mistakes.check()  # without the file nothing more can be said
        base.pop("name", None)
    elif flags["preset"] in presets.PRESETS:
        base = presets.PRESETS[flags["preset"]]
    else:
        known = ", ".join(presets.PRESETS)
        mistakes.messages.append(f"unknown preset {flags['preset']!r}; known: {known}")
    if flags["space"] is not None:
        layer["space"] = mistakes.attempt(dict[str, Any](), read_space, flags["space"])
    gpu = _has_gpu(layer)
    layers: list[Mapping[str, Any]] = [base, layer]
    if not gpu and not flags["config"]:
        layers.insert(1, _cpu_layer(layer.get("trainable", base.get("trainable"))))
    try:
        request = reading.read(layers, changes, mark=slurm.job(), gpu=gpu)
    except UsageError as error:
        raise UsageError([*mistakes.messages, *error.mistakes]) from None
    mistakes.check()
    return request, False


def _has_gpu(layer: Mapping[str, Any]) -> bool:
    """Returns whether the trials of a study with these settings have GPUs."""
    from siftune.machine import resources

    asked = layer.get("gpus_per_trial")
    return resources.nodes()[0].gpus > 0 if asked is None else asked != 0


def _cpu_layer(trainable: Any) -> dict[str, Any]:
    """Returns the defaults of a trainable without a GPU. They become part of the study, so that it
    stays the same when it is resumed on another machine."""
    from siftune import trainables

    with suppress(UsageError):  # reported later
        if options := trainables.cpu_options(trainable):
            return {"trainable": trainable, "trainable_options": options}
    return {}


def split_resume(arguments: argparse.Namespace) -> None:
    """Turns `--resume results/NAME`, the path of a study in the results, into its name."""
    path = Path(arguments.resume or "")
    if "/" in str(path) and path.parent.resolve() == arguments.results.resolve():
        arguments.resume = path.name


def _read_resumed(
    flags: Mapping[str, Any],
    layer: dict[str, Any],
    changes: dict[str, Any],
    mistakes: _Mistakes,
) -> StudyRequest:
    from siftune.study import reading

    if changes or flags["space"] or flags["config"]:
        mistakes.messages.append(
            "--resume continues the study as it is: leave out --set, --space and --config"
        )
    if not is_name(flags["resume"]):
        mistakes.messages.append(f"--resume must be the name of a study, got {flags['resume']!r}")
        mistakes.check()
    directory = flags["results"] / flags["resume"]
    request = mistakes.attempt(None, reading.read_resumed, directory, layer)
    mistakes.check()
    assert request is not None
    return request


def read_trial(flags: Mapping[str, Any]) -> tuple[TrainableSpec, Config, dict[str, Any]]:
    """Returns the trainable and the config that the flags of `train` describe, and the config as
    the trainable gets it.

    Raises UsageError with every mistake.
    """
    import numpy as np

    from siftune.trainables import TrainableSpec
    from siftune.trainables.user.printed import PrintedMetrics

    absent: dict[str, Any] = dict.fromkeys((*settings(), "config", "resume"))
    request, _ = read_study(absent | dict(flags))
    trainable = TrainableSpec(
        name=request.trainable,
        data=flags["data"],
        seed=request.seed or 0,
        options=request.trainable_options,
        processes=request.processes_per_trial or 1,
        printed=PrintedMetrics(
            metric=request.metric,
            patterns=tuple(request.metric_patterns),
            file=request.metric_file,
        ),
    )
    if mistakes := trainable.mistakes(request.space):
        raise UsageError(mistakes)
    config = request.space.sample(np.random.default_rng(request.seed or 0))
    return trainable, config, request.space.given(config)


def read_space(text: str) -> dict[str, Any]:
    """Returns the dictionary in FILE.py:NAME or FILE.yaml. Raises UsageError."""
    from siftune.study.text import read_yaml
    from siftune.trainables.user.file import load_space

    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        return load_space(Path(file), name)
    if text.endswith((".yaml", ".yml")):
        return read_yaml(Path(text))
    raise UsageError(f"--space must be FILE.py:NAME or FILE.yaml, got {text!r}")


def read_time(flag: str, text: str) -> float:
    """Returns the seconds in `90s`, `30m`, `4h` or Slurm's `3:30:00`. Raises UsageError."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text):
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    if re.fullmatch(r"(\d+:)?\d+:\d\d", text):
        seconds = 0
        for part in text.split(":"):
            seconds = seconds * 60 + int(part)
        return float(seconds)
    raise UsageError(f"{flag} must be a duration such as 90s, 30m, 4h or 3:30:00, got {text!r}")


class _Mistakes:
    """Collects the mistakes of several readers."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def attempt(self, otherwise: _T, read: Callable[..., _T], *arguments: Any) -> _T:
        """Returns what `read` returns, or `otherwise` if it raises UsageError."""
        try:
            return read(*arguments)
        except UsageError as error:
            self.messages.extend(error.mistakes)
            return otherwise

    def assignments(
        self, flag: str, texts: list[str] | None, *, text_of: str = ""
    ) -> dict[str, Any]:
        """Returns the values of texts such as NAME=VALUE, by name. That of `text_of` stays text."""
        from siftune.study.text import parse_value

        values: dict[str, Any] = {}
        for text in texts or ():
            name, equals, value = text.partition("=")
            if equals and name:
                name = name.strip()
                values[name] = value if name == text_of else parse_value(value.strip())
            else:
                self.messages.append(f"{flag} must be NAME=VALUE, got {text!r}")
        return values

    def check(self) -> None:
        """Raises UsageError if there are mistakes."""
        if self.messages:
            raise UsageError(self.messages)


def _layer(flags: Mapping[str, Any], mistakes: _Mistakes) -> dict[str, Any]:
    """Returns the settings given by the flags, except for the space."""
    from siftune.space import Config
    from siftune.study import known
    from siftune.study.text import parse_value

    layer: dict[str, Any] = {}
    for name, setting in settings().items():
        given = flags[name]
        if given is None or given == [] or setting.kind == "space":
            continue
        if setting.kind == "options":
            # The words for a script are split as a shell splits them.
            layer[name] = mistakes.assignments(flag(name), given, text_of="args")
        elif setting.kind == "number":
            # An empty text is not a number, and does not mean the default.
            value = parse_value(given)
            layer[name] = given if value is None else value
        elif setting.kind == "duration":
            seconds = mistakes.attempt(None, read_time, flag(name), given)
            layer |= {} if seconds is None else {name: seconds}
        elif setting.kind == "configs":
            read = [mistakes.attempt(list[Config](), known.read, each) for each in given]
            layer[name] = [config for configs in read for config in configs]
        else:
            layer[name] = given
    return layer
