"""A study as it is asked for: one field for each setting, and with it the setting's flag.

A new setting is one field here. Its flag, its help, its check and whether `--resume` may change it
are all part of the field; siftune/cli/flags.py derives the command line from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from siftune.schedulers import SCHEDULERS
from siftune.searchers import AUTO, SEARCHERS
from siftune.trainables import TRAINABLES

if TYPE_CHECKING:
    from siftune.space import Space

Kind = Literal["text", "number", "duration", "switch", "options", "space"]
GROUPS = ("what is searched", "how", "budget and resources", "where")

# Returns the rule that a value breaks, or None.
Check = Callable[[Any], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field of StudyRequest says about itself."""

    kind: Kind
    group: str
    help: str = ""
    metavar: str | None = None
    check: Check | None = None  # of a value that is not None
    resumable: bool = False  # whether --resume may change it


def flag(name: str) -> str:
    """Returns the flag that sets a field."""
    if name.endswith("_options"):
        name = name.replace("_options", "_arg")
    return "--" + name.removesuffix("_s").replace("_", "-")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int) -> Check:
    def check(value: Any) -> str | None:
        if _is_number(value) and value >= least and value == int(value):
            return None
        return f"a whole number, at least {least}"

    return check


def _one_of(*names: str) -> Check:
    return lambda value: None if value in names else " or ".join(names)


def _above_zero(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "above 0"


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
    """Whether a study may have this name: it is the name of a directory and of a Slurm job."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def _name(value: Any) -> str | None:
    return None if is_name(value) else "letters, digits, '.', '_' and '-', at most 64 of them"


def _dictionary(value: Any) -> str | None:
    return None if isinstance(value, dict) else "NAME=VALUE"


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
    """One search as it is asked for: trainable × space × searcher × scheduler × budget.

    None stands for a value that is chosen when the study is planned; siftune/study/study.py has
    the study with all of them chosen.
    """

    name: str = field(
        metadata=_setting(
            "text", _WHERE, check=_name, help="of the study and its directory; [trainable and time]"
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
    seed: int = field(default=0, metadata=_setting("number", _HOW, check=_whole(0), help="[0]"))
    trials: int | None = field(
        default=None,
        metadata=_number(_whole(1), help="[the whole grid, or 50]"),
    )
    time_limit_s: float | None = field(
        default=None,
        metadata=_duration("such as 90s, 30m, 4h or 3:30:00; the study then saves and stops"),
    )
    cpus_per_trial: float = field(default=1, metadata=_number(_above_zero, help="[1]"))
    gpus_per_trial: float | None = field(
        default=None,
        metadata=_number(
            _gpus,
            help="a fraction shares a GPU among trials; several train one trial together; "
            "[1 if there are GPUs, else 0]",
        ),
    )
    concurrent: int | None = field(
        default=None, metadata=_number(_whole(1), help="trials at once; [all that fit]")
    )
    retries: int = field(
        default=2,
        metadata=_number(
            _whole(0), help="of a trial whose process crashed, hung or ran out of memory; [2]"
        ),
    )
    report_timeout_s: float | None = field(
        default=None,
        metadata=_duration(
            "a trial that does not report for this long hangs; "
            "[10 times the longest epoch, at least 10m]"
        ),
    )
    reuse_processes: bool = field(
        default=False,
        metadata=_setting(
            "switch",
            _BUDGET,
            check=_switch,
            help="train one trial after another in each process: for trials of milliseconds",
        ),
    )
    workdir: str = field(
        default="trial",
        metadata=_setting(
            "text",
            _WHERE,
            metavar="trial|launch",
            check=_one_of("trial", "launch"),
            help="a trial's working directory: its own, or the directory of launch; [trial]",
        ),
    )


def settings() -> dict[str, Setting]:
    """Returns the settings of a study, by the name of their field."""
    return {f.name: _of(f) for f in fields(StudyRequest)}


def _of(one: Field[Any]) -> Setting:
    found: Setting = one.metadata["setting"]
    return found


def mistakes(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each entry that is unknown or has an impossible value."""
    known = settings()
    wrong = [
        f"unknown entry {name!r}; a study has: {', '.join(known)}"
        for name in values
        if name not in known
    ]
    for name, setting in known.items():
        value = values.get(name)
        if value is not None and setting.check and (rule := setting.check(value)):
            wrong.append(f"{flag(name)} must be {rule}, got {value!r}")
    if not values.get("trainable"):
        wrong.append(f"--trainable is missing: give {next(iter(TRAINABLES))}, or FILE.py:FUNC")
    wrong += SEARCHERS.name_mistakes(str(values.get("searcher", AUTO)), also=(AUTO,))
    if (scheduler := values.get("scheduler")) is not None:
        wrong += SCHEDULERS.name_mistakes(str(scheduler))
    return wrong
