"""The request for a study, with one field for each setting and its flag.

A new setting is one field here. The field defines its flag, its help text, its check and whether
`--resume` may change it; siftune/cli/flags.py derives the command line from the fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from siftune.schedulers import SCHEDULERS
from siftune.searchers import AUTO, SEARCHERS
from siftune.study import stop
from siftune.trainables import TRAINABLES

if TYPE_CHECKING:
    from siftune.space import Space

Kind = Literal["text", "texts", "number", "duration", "switch", "options", "configs", "space"]
GROUPS = ("trainable and space", "search method", "budget and resources", "name and directories")

# A check returns the rule that a value breaks, or None.
Check = Callable[[Any], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """The metadata of a field of StudyRequest."""

    kind: Kind
    group: str
    help: str = ""
    metavar: str | None = None
    check: Check | None = None  # called for values other than None
    resumable: bool = False  # True if --resume may change it


def flag(name: str) -> str:
    """Returns the flag that sets a field."""
    name = name.replace("_options", "_arg").replace("_patterns", "_pattern")
    for suffix in ("_s", "_configs", "_conditions"):
        name = name.removesuffix(suffix)
    return "--" + name.replace("_", "-")


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int) -> Check:
    def check(value: Any) -> str | None:
        if _is_number(value) and value >= least and value == int(value):
            return None
        return f"a whole number of at least {least}"

    return check


def _one_of(*names: str) -> Check:
    return lambda value: None if value in names else " or ".join(names)


def _above_zero(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "above 0"


def _not_negative(value: Any) -> str | None:
    return None if _is_number(value) and value >= 0 else "at least 0"


def _gpus(value: Any) -> str | None:
    if _is_number(value) and value >= 0 and (value <= 1 or value == int(value)):
        return None
    return "0, a fraction of one GPU, or a whole number"


def _switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _metric(value: Any) -> str | None:
    return None if isinstance(value, str) else "the name of a reported metric"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: Any) -> bool:
    """Returns whether a study may have this name, which names a directory and a Slurm job."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def _name(value: Any) -> str | None:
    if is_name(value):
        return None
    return "at most 64 letters, digits, '.', '_' and '-', beginning with a letter or a digit"


def _patterns(value: Any) -> str | None:
    rule = "a regular expression with a group, such as 'val_loss[=:] *([0-9.e+-]+)'"
    try:
        compiled = [re.compile(pattern) for pattern in value]
    except (re.error, TypeError):
        return rule
    return None if all(pattern.groups for pattern in compiled) else rule


def _metric_file(value: Any) -> str | None:
    if isinstance(value, str) and value.endswith((".csv", ".json", ".jsonl")):
        return None
    return "a .csv, .json or .jsonl file"


def _dictionary(value: Any) -> str | None:
    return None if isinstance(value, dict) else "NAME=VALUE"


def are_configs(value: Any) -> bool:
    """Returns whether the value is a list of configs that name at least one parameter each."""
    return isinstance(value, list) and all(isinstance(c, dict) and c for c in value)


def _configs(value: Any) -> str | None:
    return None if are_configs(value) else "a config such as 'lr=1e-3 batch_size=64'"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    return None if good else "a path such as results/OLD"


def _stop_conditions(value: Any) -> str | None:
    try:
        stop.parse(value)
    except (AttributeError, TypeError, ValueError):
        return stop.RULE
    return None


_WHAT, _HOW, _BUDGET, _WHERE = GROUPS
_OPTIONS: dict[str, Any] = {"metavar": "NAME=VALUE", "check": _dictionary}


def _setting(kind: Kind, group: str, **more: Any) -> dict[str, Setting]:
    """Returns the metadata of a field."""
    return {"setting": Setting(kind, group, **more)}


def _number(check: Check, *, help: str) -> dict[str, Setting]:
    return _setting("number", _BUDGET, metavar="N", check=check, resumable=True, help=help)


def _duration(help: str) -> dict[str, Setting]:
    return _setting(
        "duration", _BUDGET, metavar="TIME", check=_above_zero, resumable=True, help=help
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRequest:
    """The request for one study: trainable × space × searcher × scheduler × budget.

    None means that the value is chosen when the study is planned. The planned study, with all
    values chosen, is in siftune/study/study.py.
    """

    name: str = field(
        metadata=_setting(
            "text",
            _WHERE,
            check=_name,
            help="name of the study and its directory; [trainable and time]",
        )
    )
    trainable: str = field(
        metadata=_setting("text", _WHAT, metavar="|".join((*TRAINABLES, "FILE.py:FUNC|SCRIPT.py")))
    )
    trainable_options: dict[str, Any] = field(
        default_factory=dict, metadata=_setting("options", _WHAT, **_OPTIONS)
    )
    space: Space = field(metadata=_setting("space", _WHAT, metavar="FILE.py:NAME|FILE.yaml"))
    metric: str = field(
        default="loss",
        metadata=_setting("text", _WHAT, check=_metric, help="the reported metric to optimise"),
    )
    mode: str = field(
        default="min",
        metadata=_setting("text", _WHAT, metavar="min|max", check=_one_of("min", "max")),
    )
    metric_patterns: list[str] = field(
        default_factory=list,
        metadata=_setting(
            "texts",
            _WHAT,
            metavar="REGEX",
            check=_patterns,
            help="find metrics in the lines that a script prints: a group is the metric, named "
            "groups are several; may be repeated",
        ),
    )
    metric_file: str | None = field(
        default=None,
        metadata=_setting(
            "text",
            _WHAT,
            metavar="FILE",
            check=_metric_file,
            help="read metrics from a .csv, .json or .jsonl file of a script; the name may have *",
        ),
    )
    searcher: str = field(
        default=AUTO,
        metadata=_setting("text", _HOW, metavar="|".join((AUTO, *SEARCHERS)), help=f"[{AUTO}]"),
    )
    searcher_options: dict[str, Any] = field(
        default_factory=dict, metadata=_setting("options", _HOW, **_OPTIONS)
    )
    scheduler: str | None = field(
        default=None, metadata=_setting("text", _HOW, metavar="|".join(SCHEDULERS), help="[asha]")
    )
    scheduler_options: dict[str, Any] = field(
        default_factory=dict, metadata=_setting("options", _HOW, **_OPTIONS)
    )
    try_configs: list[dict[str, Any]] = field(
        default_factory=list,
        metadata=_setting(
            "configs",
            _HOW,
            metavar="'NAME=VALUE …'",
            check=_configs,
            help="a config for the first trial, such as 'lr=1e-3 batch_size=64'; random values for "
            "parameters that it does not name; may be repeated",
        ),
    )
    learn_from: list[str] = field(
        default_factory=list,
        metadata=_setting(
            "texts",
            _HOW,
            metavar="DIR|FILE",
            check=_texts,
            help="tell the searcher the trials of another study: a study directory, an SQLite file "
            "of Optuna, or a CSV file; may be repeated",
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=_setting("number", _HOW, check=_whole(0), help="[drawn for each study]"),
    )
    trials: int | None = field(
        default=None,
        metadata=_number(_whole(1), help="[the whole grid, or 50]"),
    )
    time_limit_s: float | None = field(
        default=None,
        metadata=_duration("save and stop after this time, such as 90s, 30m, 4h or 3:30:00"),
    )
    stop_conditions: list[str] = field(
        default_factory=list,
        metadata=_setting(
            "texts",
            _BUDGET,
            metavar="CONDITION",
            check=_stop_conditions,
            resumable=True,
            help="stop the study when a trial reports this, such as 'val_accuracy >= 0.99'; may be "
            "repeated",
        ),
    )
    stop_after: int = field(
        default=0,
        metadata=_number(
            _whole(0),
            help="stop the study when this many trials in a row have ended without improving the "
            "best; 0: never; [0]",
        ),
    )
    min_improvement: float = field(
        default=0,
        metadata=_number(
            _not_negative,
            help="the best must improve by more than this to count for --stop-after; [0]",
        ),
    )
    cpus_per_trial: float = field(default=1, metadata=_number(_above_zero, help="[1]"))
    gpus_per_trial: float | None = field(
        default=None,
        metadata=_number(
            _gpus,
            help="fraction: several trials share a GPU; 2 or more: one trial uses several GPUs; "
            "[1 if there are GPUs, otherwise 0]",
        ),
    )
    processes_per_trial: int | None = field(
        default=None,
        metadata=_number(
            _whole(1),
            help="processes that train a trial together, also on CPUs; [one per GPU of the trial]",
        ),
    )
    concurrent: int | None = field(
        default=None, metadata=_number(_whole(1), help="number of trials at once; [as many as fit]")
    )
    retries: int = field(
        default=2,
        metadata=_number(
            _whole(0),
            help="retries of a trial after a crash, a hang or an out-of-memory error; [2]",
        ),
    )
    max_failures: int = field(
        default=3,
        metadata=_number(
            _whole(0),
            help="stop the study if this many trials in a row fail with the same error before any "
            "has succeeded; 0: never; [3]",
        ),
    )
    report_timeout_s: float | None = field(
        default=None,
        metadata=_duration(
            "treat a trial as hung if it does not report for this long; "
            "[10 times the longest epoch, at least 10m]"
        ),
    )
    reuse_processes: bool = field(
        default=False,
        metadata=_setting(
            "switch",
            _BUDGET,
            check=_switch,
            help="train one trial after another in each process; for trials that take milliseconds",
        ),
    )
    workdir: str = field(
        default="trial",
        metadata=_setting(
            "text",
            _WHERE,
            metavar="trial|launch",
            check=_one_of("trial", "launch"),
            help="working directory of a trial: its own, or the launch directory; [trial]",
        ),
    )


def processes(asked: int | None, gpus_per_trial: float) -> int:
    """Returns the number of processes of a trial: one for each of its GPUs unless the user has
    `asked` for another number, and at least 1."""
    return asked or max(1, int(gpus_per_trial))


def settings() -> dict[str, Setting]:
    """Returns the settings of a study by field name."""
    return {f.name: _setting_of(f) for f in fields(StudyRequest)}


def _setting_of(request_field: Field[Any]) -> Setting:
    setting: Setting = request_field.metadata["setting"]
    return setting


def mistakes(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each entry that is unknown or has an invalid value."""
    known = settings()
    wrong = [
        f"unknown entry {name!r}; known: {', '.join(known)}" for name in values if name not in known
    ]
    for name, setting in known.items():
        value = values.get(name)
        if value is not None and setting.check and (rule := setting.check(value)):
            wrong.append(f"{flag(name)} must be {rule}, got {value!r}")
    if not values.get("trainable"):
        wrong.append(f"--trainable is missing: pass {next(iter(TRAINABLES))}, or FILE.py:FUNC")
    wrong += SEARCHERS.name_mistakes(str(values.get("searcher", AUTO)), also=(AUTO,))
    if (scheduler := values.get("scheduler")) is not None:
        wrong += SCHEDULERS.name_mistakes(str(scheduler))
    return wrong
