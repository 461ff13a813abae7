"""The study: what is searched, how, and how long; resolved from preset, file and flags."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from siftune import catalogue as registry
from siftune import trainables
from siftune.errors import UsageError
from siftune.schedulers import SCHEDULERS
from siftune.searchers import SEARCHERS
from siftune.space import Space

PRESETS: dict[str, dict[str, Any]] = {
    "mnist": {
        "trainable": "mnist",
        "metric": "val_accuracy",
        "mode": "max",
        "trials": 50,
    },
    "quick": {
        "trainable": "mnist",
        "trainable_options": {"images": 10_000},
        "metric": "val_accuracy",
        "mode": "max",
        "trials": 8,
    },
    # 4.9 billion parameters; on Turpan with --gpus-per-trial 2 or more.
    "t5-5b": {
        "trainable": "t5",
        "space": {
            "hidden_size": 2048,
            "num_heads": 32,
            "num_layers": 28,
            "d_ff": 10240,
            "dropout": "choice([0.0, 0.1])",
            "lr": "loguniform(3e-5, 1e-3)",
            "warmup": "uniform(0.01, 0.1)",
            "weight_decay": "loguniform(1e-3, 1e-1)",
            "batch_size": 32,
            "accumulation": 1,
            "recompute": True,
            "epochs": 1,
        },
        "metric": "bits_per_byte",
        "mode": "min",
        "trials": 8,
    },
}

DEFAULT_MAX_EPOCHS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One search: trainable × space × searcher × scheduler × budget. All of it is in study.yaml."""

    name: str
    trainable: str
    trainable_options: dict[str, Any] = field(default_factory=dict)
    space: Space
    searcher: str = "auto"
    searcher_options: dict[str, Any] = field(default_factory=dict)
    scheduler: str | None = None  # None: asha, or the one that the searcher needs
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    trials: int | None = None  # None: the whole grid, or 50
    metric: str = "loss"
    mode: str = "min"
    seed: int = 0
    cpus_per_trial: float = 1
    gpus_per_trial: float | None = None  # None: 1 where there are GPUs, else 0
    concurrent: int | None = None  # None: as many as the resources allow
    time_limit_s: float | None = None
    retries: int = 2  # of a trial whose process ended, hung or ran out of memory
    report_timeout_s: float | None = None  # None: ten times the longest epoch, at least 10 min
    workdir: str = "trial"  # a trial's working directory: its own, or that of launch
    reuse_processes: bool = False  # a process trains one trial after another

    def sign(self) -> int:
        """What turns the metric into a score, which is always minimised."""
        return 1 if self.mode == "min" else -1

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial may train: the largest `epochs` of the space, unless the
        scheduler's option of that name says otherwise."""
        if "max_epochs" in self.scheduler_options:
            return self.scheduler_options["max_epochs"]
        return int(self.space.bounds("epochs")[1]) if "epochs" in self.space else DEFAULT_MAX_EPOCHS

    def last_epoch(self, config: Mapping[str, Any]) -> int | None:
        """The epoch after which a trial of this config ends, even where its function would train
        on: `epochs`, or the scheduler's option max_epochs. None where neither is given."""
        given = (config.get("epochs"), self.scheduler_options.get("max_epochs"))
        return min((int(epochs) for epochs in given if epochs is not None), default=None)

    def to_yaml(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["space"] = self.space.to_dict()
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def build_searcher(self) -> Any:
        return registry.build(
            "searcher",
            SEARCHERS,
            self.searcher,
            self.searcher_options,
            space=self.space,
            seed=self.seed,
        )

    def build_scheduler(self) -> Any:
        assert self.scheduler is not None
        assert self.trials is not None
        return registry.build(
            "scheduler",
            SCHEDULERS,
            self.scheduler,
            {k: v for k, v in self.scheduler_options.items() if k != "max_epochs"},
            space=self.space,
            seed=self.seed,
            trials=self.trials,
            max_epochs=self.max_epochs,
        )


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────

FIELDS = tuple(f.name for f in fields(Study))
# What an earlier layer said of these is not meant for another trainable, searcher or scheduler.
_BELONGINGS = {
    "trainable": ("trainable_options", "space", "metric", "mode"),
    "searcher": ("searcher_options",),
    "scheduler": ("scheduler_options",),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read(
    layers: list[Mapping[str, Any]], settings: Mapping[str, Any], *, mark: str | None = None
) -> Study:
    """The study of preset, file and flags (`layers`, the later over the earlier) and of `--set`.

    `mark` is what the name ends in where none is given: the time, if it is None.

    A layer's `space` is what `Space.read` takes; without one it is the trainable's own. Raises
    UsageError with every mistake.
    """
    values = _merge(layers)
    if values.get("trainable") in trainables.TRAINABLES and "metric" not in values:
        values["metric"], values["mode"] = trainables.module(values["trainable"]).METRIC
    mistakes = [
        f"unknown entry {name!r}; a study has: {', '.join(FIELDS)}"
        for name in values
        if name not in FIELDS
    ]
    mistakes += _value_mistakes(values)
    space: Space | None = None
    try:
        space = _space(values).override(settings)
        if "epochs" in space:
            mistakes += space.unfit(Space({}, {"epochs": 1}))
    except UsageError as error:
        mistakes += error.mistakes
    if space is not None and not mistakes:
        study = Study(
            **(values | {"space": space, "name": values.get("name") or _name(values, mark)})
        )
        mistakes += _pair_mistakes(study)
    if mistakes or space is None:
        raise UsageError(mistakes)
    return study


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is the number that it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The dictionary in a YAML file. Raises UsageError that names file and line of a typo."""
    try:
        values = parse_yaml(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a dictionary of names and values")
    return values


def _merge(layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in layers:
        for owner, belongings in _BELONGINGS.items():
            if owner in layer and layer[owner] != values.get(owner):
                for name in belongings:
                    values.pop(name, None)
        for name, value in layer.items():
            if name.endswith("_options") and isinstance(value, dict):
                value = values.get(name, {}) | value
            values[name] = value
    return values


def _space(values: Mapping[str, Any]) -> Space:
    if (given := values.get("space")) is not None:
        if isinstance(given, Space):
            return given
        if not isinstance(given, Mapping):
            raise UsageError(f"the space must be a dictionary, got {given!r}")
        return Space.read(given)
    return Space.read(trainables.default_space(str(values.get("trainable"))))


def is_name(text: str) -> bool:
    """Whether a study may be called so: it is a directory's name, and a Slurm job's."""
    return bool(_NAME.fullmatch(text))


def _name(values: Mapping[str, Any], mark: str | None) -> str:
    stem = Path(str(values["trainable"]).partition(":")[0]).stem
    return f"{stem}-{mark or time.strftime('%Y%m%d-%H%M%S')}"


def _value_mistakes(values: Mapping[str, Any]) -> list[str]:
    def wrong(name: str, rule: str) -> str:
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        return f"{flag} must be {rule}, got {values[name]!r}"

    def number(name: str) -> float | None:
        value = values.get(name)
        if value is None:
            return None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else -1.0

    def whole(name: str, least: int) -> list[str]:
        value = number(name)
        if value is None or (value >= least and value == int(value)):
            return []
        return [wrong(name, f"a whole number, at least {least}")]

    mistakes = [*whole("trials", 1), *whole("concurrent", 1), *whole("seed", 0)]
    mistakes += whole("retries", 0)
    if values.get("mode", "min") not in ("min", "max"):
        mistakes.append(wrong("mode", "min or max"))
    if values.get("workdir", "trial") not in ("trial", "launch"):
        mistakes.append(wrong("workdir", "trial or launch"))
    if not isinstance(values.get("reuse_processes", False), bool):
        mistakes.append(wrong("reuse_processes", "true or false"))
    if not isinstance(values.get("metric", ""), str):
        mistakes.append(wrong("metric", "the name of a reported metric"))
    if (cpus := number("cpus_per_trial")) is not None and cpus <= 0:
        mistakes.append(wrong("cpus_per_trial", "above 0"))
    gpus = number("gpus_per_trial")
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        mistakes.append(wrong("gpus_per_trial", "0, a fraction of one GPU, or a whole number"))
    for name in ("time_limit_s", "report_timeout_s"):
        if (limit := number(name)) is not None and limit <= 0:
            mistakes.append(wrong(name, "above 0"))
    given = values.get("name")
    if given is not None and not (isinstance(given, str) and _NAME.fullmatch(given)):
        mistakes.append(wrong("name", "letters, digits, '.', '_' and '-', at most 64 of them"))
    if not values.get("trainable"):
        mistakes.append("--trainable is missing: give mnist, or FILE.py:FUNC")
    mistakes += [
        f"{name} must be a dictionary, got {values[name]!r}"
        for name in ("trainable_options", "searcher_options", "scheduler_options")
        if not isinstance(values.get(name, {}), dict)
    ]
    searcher, scheduler = values.get("searcher", "auto"), values.get("scheduler")
    if searcher != "auto":
        mistakes += registry.name_mistakes("searcher", str(searcher), {"auto": "", **SEARCHERS})
    if scheduler is not None:
        mistakes += registry.name_mistakes("scheduler", str(scheduler), SCHEDULERS)
    return mistakes


# ── Which searcher goes with which scheduler ────────────────────────────────────────────────────


def _pair_mistakes(study: Study) -> list[str]:
    searcher, scheduler = study.searcher, study.scheduler
    if scheduler is None or searcher == "auto":
        return []
    return [] if (reason := refusal(searcher, scheduler)) is None else [reason]


def refusal(searcher: str, scheduler: str) -> str | None:
    """Why the pair cannot work, naming one that does; None if it can."""
    if searcher == "bohb" and scheduler != "bohb":
        return (
            f"--searcher bohb cannot work with --scheduler {scheduler}: its model compares configs "
            "at the epochs where its own scheduler stops them. Use --searcher bohb --scheduler bohb"
        )
    if scheduler == "bohb" and searcher != "bohb":
        return (
            f"--scheduler bohb cannot work with --searcher {searcher}: it is HyperBand with the "
            f"model of BOHB. Use --searcher {searcher} --scheduler hyperband, or --searcher bohb"
        )
    if scheduler == "pbt" and searcher != "random":
        return (
            f"--scheduler pbt cannot work with --searcher {searcher}: PBT changes the configs of "
            "running trials, so their scores say nothing about the configs that were proposed. "
            "Use --searcher random --scheduler pbt"
        )
    return None


def resolve(study: Study, *, slots: int) -> tuple[Study, list[str]]:
    """The study with nothing left to choose, and what was chosen, in sentences.

    Raises UsageError for options that searcher or scheduler do not take.
    """
    said: list[str] = []
    searcher, scheduler, trials = study.searcher, study.scheduler, study.trials
    if searcher == "auto":
        from siftune.searchers.auto import choose

        searcher, reason = choose(
            study.space, trials=trials or 50, slots=slots, scheduler=scheduler
        )
        said.append(f"searcher {searcher}: {reason}")
    if scheduler is None:
        scheduler = "bohb" if searcher == "bohb" else "asha"
    if searcher == "grid":
        points = sum(1 for _ in study.space.grid())
        if trials is not None and trials < points:
            said.append(f"--trials {trials} covers only the first {trials} of the grid's {points}")
        trials = min(trials or points, points)
    elif (size := study.space.size()) is not None and size < (trials or 50):
        said.append(f"the space has {size} distinct configs, so there are {size} trials")
        trials = size
    study = replace(study, searcher=searcher, scheduler=scheduler, trials=trials or 50)
    mistakes: list[str] = []
    for build in (study.build_searcher, study.build_scheduler):
        try:
            build()
        except UsageError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UsageError(mistakes)
    return study, said
