"""Builds a study request from layers: a preset or file, flags, and `--set`."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siftune import trainables
from siftune.errors import UsageError
from siftune.schedulers import SCHEDULERS
from siftune.searchers import AUTO
from siftune.space import Space
from siftune.space.drawn import Drawn
from siftune.study import known, pairs, request
from siftune.study.planning import complete
from siftune.study.request import StudyRequest, settings
from siftune.study.study import Study
from siftune.study.text import read_yaml
from siftune.trainables.user.file import load_space

# Settings that belong to a trainable, searcher or scheduler. If a later layer names a different
# one, these settings of the earlier layers are dropped.
_BELONGINGS = {
    "trainable": (
        *("trainable_options", "space", "metric", "mode"),
        *("try_configs", "stop_conditions"),
    ),
    "metric": ("mode",),
    "searcher": ("searcher_options",),
    "scheduler": ("scheduler_options",),
}

# Trainable options of earlier versions that no longer exist. They affected only the speed.
_RETIRED = ("fused",)

# The seed of a study directory whose study.yaml names none.
_WITHOUT_SEED = {"seed": 0}


def read(
    layers: list[Mapping[str, Any]],
    changes: Mapping[str, Any],
    *,
    mark: str | None = None,
    gpu: bool = True,
    with_functions: bool = True,
) -> StudyRequest:
    """Builds a request from layers, later ones overriding earlier ones, and the `--set` changes.

    A layer's `space` has the form that `Space.read` accepts; the default is the trainable's own
    space, which may be smaller if trials have no `gpu`. `mark` is the suffix of a generated study
    name; the default is the time. `with_functions`: load the files of `sample_from` entries,
    without which no config can be proposed. Raises UsageError with every mistake.
    """
    values = _merge(layers)
    if values.get("trainable") in trainables.TRAINABLES and "metric" not in values:
        metric, mode = trainables.TRAINABLES.load(values["trainable"]).metric
        values |= {"metric": metric, "mode": values.get("mode", mode)}
    mistakes = request.mistakes(values)
    if isinstance(metric := values.get("metric"), str) and values.get("mode") is None:
        values["mode"] = mode_of(metric)
        if values["mode"] is None:
            mistakes.append(
                f"--mode is missing: is {metric!r} better when it is smaller or larger?"
            )
    space: Space | None = None
    try:
        space = _space(values, gpu=gpu).override(changes)
        space = _with_functions(space) if with_functions else space
        if "epochs" in space:
            mistakes += space.unfit(Space({}, {"epochs": 1}))
        if "try_configs" in values and request.are_configs(values["try_configs"]):
            values["try_configs"], wrong = known.check(values["try_configs"], space)
            mistakes += wrong
    except UsageError as error:
        mistakes += error.mistakes
    searcher, scheduler = values.get("searcher", AUTO), values.get("scheduler")
    if not mistakes and searcher != AUTO and scheduler is not None:
        reason = pairs.refusal(searcher, scheduler)
        mistakes += [] if reason is None else [reason]
    if mistakes or space is None:
        raise UsageError(mistakes)
    name = values.get("name") or new_name(values["trainable"], mark)
    return StudyRequest(**(values | {"space": space, "name": name}))


def read_saved(directory: Path) -> Study:
    """Returns the study that study.yaml in a directory describes, to be read and not run.

    No file of the user is loaded. Raises UsageError.
    """
    path = directory / "study.yaml"
    saved = read([_WITHOUT_SEED | read_study_yaml(path)], {}, with_functions=False)
    if saved.searcher == AUTO or saved.scheduler is None or saved.trials is None:
        raise UsageError(f"{path} is not a planned study: it lacks searcher, scheduler or trials")
    return complete(
        saved,
        searcher=saved.searcher,
        scheduler=saved.scheduler,
        trials=saved.trials,
        gpus_per_trial=0,
    )


def read_resumed(directory: Path, changes: Mapping[str, Any]) -> StudyRequest:
    """Returns the request for resuming the study in a directory, with these changes.

    Raises UsageError if there is no study, or if a changed setting cannot change on resume.
    """
    if not (directory / "study.yaml").is_file():
        raise UsageError(f"there is no study to resume in {directory}")
    resumable = [name for name, setting in settings().items() if setting.resumable]
    if fixed := [name for name in changes if name not in resumable]:
        raise UsageError(
            f"--resume continues the study as it is and cannot change {', '.join(fixed)}; "
            f"it can change: {', '.join(resumable)}"
        )
    # The directory says which study it is: it may have been renamed or copied.
    values = _WITHOUT_SEED | read_study_yaml(directory / "study.yaml") | {"name": directory.name}
    if values.get("scheduler") in SCHEDULERS:
        # Options that an earlier version did not write had these values.
        before = SCHEDULERS.load(values["scheduler"]).defaults_before
        values["scheduler_options"] = before | values.get("scheduler_options", {})
    return read([values, changes], {})


def changed(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that differ from those of the study in a directory."""
    saved = read_study_yaml(directory / "study.yaml")
    return {name: value for name, value in settings.items() if saved.get(name) != value}


def read_study_yaml(path: Path) -> dict[str, Any]:
    """Returns the settings in a study.yaml, without those that this version no longer has.

    Raises UsageError as `read_yaml` does.
    """
    values = read_yaml(path)
    options = values.get("trainable_options")
    if isinstance(options, dict):
        values["trainable_options"] = {n: v for n, v in options.items() if n not in _RETIRED}
    return values


_MIN = ("loss", "error", "err", "perplexity", "ppl", "nll", "rmse", "mse", "mae", "bpb", "byte")
_MAX = ("acc", "accuracy", "precision", "recall", "f1", "auc", "r2", "score", "reward", "bleu")


def mode_of(metric: str) -> str | None:
    """Returns "min" or "max" if the name of a metric leaves no doubt, else None."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", metric).lower())
    smaller = any(word.endswith(_MIN) for word in words)
    larger = any(word in _MAX for word in words)
    if smaller == larger:
        return None
    return "min" if smaller else "max"


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


def _space(values: Mapping[str, Any], *, gpu: bool) -> Space:
    given = values.get("space")
    if given is None:
        return Space.read(trainables.default_space(str(values.get("trainable")), gpu=gpu))
    if isinstance(given, Space):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"the space must be a dictionary, got {given!r}")
    return Space.read(given)


def _with_functions(space: Space) -> Space:
    """Returns the space with the functions of `sample_from` entries that study.yaml names."""
    loaded: dict[str, Drawn] = {}
    mistakes = []
    for name, entry in space.drawn.items():
        if entry.function is not None:
            continue
        file, _, dictionary = entry.source.rpartition(":")
        try:
            given = Space.read(load_space(Path(file), dictionary)).drawn
            if name not in given:
                raise UsageError(f"{dictionary} has no sample_from {name!r} there")
            loaded[name] = given[name]
        except UsageError as error:
            mistakes.append(
                f"sample_from of {name!r} needs its function in {entry.source}: "
                f"{'; '.join(error.mistakes)}. Restore the file, or correct its path in study.yaml"
            )
    if mistakes:
        raise UsageError(mistakes)
    return space.override(loaded)


def new_name(trainable: str, mark: str | None = None) -> str:
    """Returns a name for a study of the trainable. `mark`: its suffix; the default is the time."""
    stem = Path(str(trainable).partition(":")[0]).stem
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("-._")[:40] or "study"
    return f"{stem}-{mark or time.strftime('%Y%m%d-%H%M%S')}"
