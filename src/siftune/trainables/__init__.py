"""Trainables: the function that trains one model from one config and reports once per epoch.

Two kinds. One of ours is a module with

    SPACE                          its default space
    METRIC                         what a study of it looks for: a metric, and min or max
    prepare(data, **options)       fetches what it needs, once, before any trial
    epochs(config, *, start, seed, data, **options)
                                   yields (metrics, save) once per epoch
    evaluate(directory, *, seed, data, **options)
                                   metrics of saved weights, on the test set
    memory_gib(space, processes, **options)
                                   optional: what each GPU of a trial needs, for the largest config
    needless(**options)            optional: names of SPACE that a space may lack with these options

The user's own is any function of a config in a file, FILE.py:FUNC, that calls `tune.report` or
yields its metrics; or a script, FILE.py, that takes flags and prints its metrics (script.py).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from siftune import catalogue as registry
from siftune.errors import UsageError
from siftune.machine import imports
from siftune.space import Config, Space
from siftune.trainables.user import file as user
from siftune.trainables.user import script

TRAINABLES = {
    "mnist": "siftune.trainables.mnist",
    "resnet18": "siftune.trainables.resnet18",
    "sklearn": "siftune.trainables.sklearn",
    "t5": "siftune.trainables.t5",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """Which trainable, and what it needs besides a config. Small, so that it travels to workers."""

    name: str
    data: Path
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    processes: int = 1  # of a trial; of several each has a GPU

    def mistakes(self, space: Space) -> list[str]:
        """What is wrong with name and options, and what in the space it cannot train. Runs the
        user's file, once, as a worker will; a script with --help."""
        narrow = self.name == "sklearn" or script.is_script(self.name)
        if narrow and self.processes > 1:
            return [
                f"--gpus-per-trial {self.processes} needs a trainable of several processes, and "
                f"{self.name} is one: give a function, FILE.py:FUNC, that calls "
                "siftune.trainables.training.parallel.wrap(model)"
            ]
        try:
            if self.name not in TRAINABLES:
                wrong = []
                if script.is_script(self.name):
                    wrong = script.mistakes(Path(self.name), space.names)
                else:
                    _split(self.name)
                    user.function(self.name)
                return wrong + [
                    f"--trainable-arg {option} is for siftune's own trainables: a function of "
                    "yours takes its values from the space"
                    for option in self.options
                ]
        except UsageError as error:
            return list(error.mistakes)
        ours = module(self.name)
        wrong = registry.option_mistakes("trainable", self.name, ours.epochs, self.options)
        needless = ours.needless(**self.options) if hasattr(ours, "needless") and not wrong else ()
        needed = {name: domain for name, domain in ours.SPACE.items() if name not in needless}
        return wrong + [f"{self.name}: {m}" for m in space.unfit(Space.read(needed))]

    def memory_gib(self, space: Space) -> float | None:
        """What each process needs of its GPU for the largest config, if that is known."""
        if self.name not in TRAINABLES or not hasattr(module(self.name), "memory_gib"):
            return None
        needed: float | None = module(self.name).memory_gib(space, self.processes, **self.options)
        return needed

    def prepare(self) -> None:
        """Fetches data, before any trial starts. Raises DataError where it cannot."""
        if self.name in TRAINABLES:
            module(self.name).prepare(self.data, **self.options)

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Callable[..., None],
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        """This process's part of a trial. `start`: a checkpoint to continue from. `report` takes
        the metrics of each epoch, and its checkpoint as `checkpoint`. `save_in` names the directory
        to write that in, which all processes of the trial reach."""
        from ray import tune

        if self.name not in TRAINABLES:
            user.run(self.name, config, seed=self.seed, report=report)
            return
        for metrics, save in module(self.name).epochs(
            config, start=start, seed=self.seed, data=self.data, **self.options
        ):
            directory = save_in(int(metrics["epoch"]))
            save(directory)
            report(metrics, checkpoint=tune.Checkpoint(str(directory)))


def load(name: str) -> None:
    """Imports what every trial of the trainable imports. Scripts are run, not imported."""
    if name in TRAINABLES:
        module(name)
    elif not script.is_script(name):
        user.function(name)


def module(name: str) -> ModuleType:
    with imports.uncollected():
        return importlib.import_module(TRAINABLES[name])


def default_space(name: str) -> dict[str, Any]:
    """The space that comes with a trainable: its SPACE. Raises UsageError if it has none."""
    if name in TRAINABLES:
        return dict(module(name).SPACE)
    if script.is_script(name):
        raise UsageError(
            f"--trainable {name} is a script: give its flags and their domains in "
            "--space FILE.yaml or FILE.py:NAME"
        )
    space = getattr(user.load_file(_split(name)[0]), "SPACE", None)
    if not isinstance(space, dict):
        raise UsageError(
            f"--trainable {name} has no space: give --space FILE.py:NAME or FILE.yaml, "
            "or put a dictionary SPACE into its file"
        )
    return space


def _split(name: str) -> tuple[Path, str]:
    if not user.is_function(name):
        raise UsageError(
            f"unknown trainable {name!r}; known: {', '.join(TRAINABLES)}, or your own: a function, "
            "FILE.py:FUNC, or a script with flags, FILE.py"
        )
    return user.split(name)
