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
import importlib.util
import inspect
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from siftune import cluster, imports, registry
from siftune.errors import UsageError
from siftune.space import Config, Space
from siftune.trainables import script

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
                "siftune.parallel.wrap(model)"
            ]
        try:
            if self.name not in TRAINABLES:
                wrong = []
                if script.is_script(self.name):
                    wrong = script.mistakes(Path(self.name), space.names)
                else:
                    user_function(self.name)
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

    def train(self, config: Config) -> None:
        """Trains one trial inside Ray Tune, from Tune's checkpoint if there is one."""
        from ray import tune

        if self.processes > 1:
            from siftune import ranks

            ranks.train(self, config)
            return
        checkpoint = tune.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as start:
            self.run(config, Path(start) if start else None, tune.report)

    def whereabouts(self) -> tuple[str, str | None]:
        """Where a trial of it trains: its node or nodes, and the numbers of its GPUs there, both
        with commas."""
        if self.processes > 1:
            from siftune import ranks

            return ranks.whereabouts()
        return cluster.whereabouts()

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Callable[..., None],
        *,
        room: Path | None = None,
    ) -> None:
        """This process's part of a trial. `start`: a checkpoint to go on from. `report` gets the
        metrics of each epoch, and its checkpoint as `checkpoint`: a directory in `room`, which all
        processes of the trial reach, or one of this process's."""
        from ray import tune

        if self.name not in TRAINABLES:
            run_user_function(self.name, config, seed=self.seed, report=report)
            return
        for metrics, save in module(self.name).epochs(
            config, start=start, seed=self.seed, data=self.data, **self.options
        ):
            with _unsaved(room, metrics["epoch"]) as directory:
                save(directory)
                report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))


@contextmanager
def _unsaved(room: Path | None, epoch: int) -> Iterator[Path]:
    """The directory of an epoch's checkpoint, until it is kept elsewhere."""
    if room is None:
        with tempfile.TemporaryDirectory(prefix="sift-") as own:
            yield Path(own)
        return
    directory = room / f".epoch{epoch}"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # no process writes there any more


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
    space = getattr(load_file(_split(name)[0]), "SPACE", None)
    if not isinstance(space, dict):
        raise UsageError(
            f"--trainable {name} has no space: give --space FILE.py:NAME or FILE.yaml, "
            "or put a dictionary SPACE into its file"
        )
    return space


def seed_everything(seed: int) -> None:
    """One seed for every generator that a trainable may draw from without saying so."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def load_file(path: Path) -> ModuleType:
    """The module in a Python file of the user's, loaded once per process.

    Its directory is put on the path, as Python does for a script, so that it finds its
    neighbours. Raises UsageError if the file is not there or fails on import.
    """
    path = path.resolve()
    name = f"siftune_user_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.isfile(path):  # noqa: PTH113, never raises
        raise UsageError(f"{path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with imports.uncollected():
            spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        said = f"{path} fails when imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            said += imports.how_to_have(path)
        raise UsageError(said) from error
    return loaded


def _split(name: str) -> tuple[Path, str]:
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py") or not attribute:
        raise UsageError(
            f"unknown trainable {name!r}; known: {', '.join(TRAINABLES)}, or your own: a function, "
            "FILE.py:FUNC, or a script with flags, FILE.py"
        )
    return Path(file), attribute


def user_function(name: str) -> Callable[[Config], Any]:
    path, attribute = _split(name)
    loaded = load_file(path)
    function = getattr(loaded, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(loaded).items() if inspect.isfunction(v)]
        raise UsageError(f"{path} has no function {attribute!r}; it has: {', '.join(names)}")
    return function


def run_user_function(
    name: str, config: Config, *, seed: int, report: Callable[[dict[str, Any]], None]
) -> None:
    """Runs the user's script, or calls the user's function; what it prints as JSON, or yields if
    it is a generator, goes to `report`."""
    if script.is_script(name):
        seed_everything(seed)
        script.run(Path(name), config, report)
        return
    function = user_function(name)
    seed_everything(seed)  # last: importing the user's file may draw numbers
    output: Any = function(dict(config))
    if hasattr(output, "__next__"):
        for metrics in output:
            report(metrics)
