"""The interface of a trainable: what the driver and a trial's process ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from siftune.errors import UsageError
from siftune.space import Config, Space

Metrics = dict[str, float]
Save = Callable[[Path], None]
Report = Callable[..., None]  # report(metrics, checkpoint=None), as tune.report


class Trainable(ABC):
    """Trains one model from one config, and reports once per epoch.

    A method that is given a wrong value by the user raises UsageError.
    """

    #: Whether a trial may have several processes, with a GPU each.
    several_processes: ClassVar[bool] = True

    @abstractmethod
    def mistakes(self, space: Space) -> list[str]:
        """Returns a sentence for everything in the space that cannot be trained."""

    def default_space(self) -> dict[str, Any]:
        """Returns the space that the trainable brings. Raises UsageError if it has none."""
        raise UsageError("there is no space: give --space FILE.py:NAME or FILE.yaml")

    def prepare(self) -> None:
        """Fetches and checks data, once, before any trial starts. Raises DataError."""

    def load(self) -> None:
        """Imports what every trial imports."""

    def memory_gib(self, space: Space, processes: int) -> float | None:
        """Returns the memory that each process needs on its GPU for the largest config of the
        space; None if that is not known."""
        return None

    @abstractmethod
    def run(
        self,
        config: Config,
        start: Path | None,
        report: Report,
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        """Trains in this process, one of the trial's.

        `start`: the directory of a checkpoint to continue from. `report` takes the metrics of each
        epoch, and a checkpoint. `save_in` returns the directory to write the checkpoint of an epoch
        in, the same in all processes of the trial.
        """


class BuiltIn(Trainable):
    """A trainable of this package. Its options are the constructor's keyword-only parameters that
    have a default; `--trainable-arg NAME=VALUE` sets them."""

    name: ClassVar[str]
    space: ClassVar[Mapping[str, Any]]
    metric: ClassVar[tuple[str, str]]  # what a study of it optimises, and min or max

    def __init__(self, *, data: Path, seed: int) -> None:
        """`data`: the directory of data sets."""
        self.data = data
        self.seed = seed

    @abstractmethod
    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics, with `epoch` among them, and a function
        that saves the state to a directory. `start`: such a directory, to continue from."""

    @abstractmethod
    def evaluate(self, directory: Path) -> Metrics:
        """Returns the metrics of saved weights, on the validation set and on the test set if there
        is one."""

    def unneeded(self) -> tuple[str, ...]:
        """Returns the parameters that a space may lack with these options."""
        return ()

    def default_space(self) -> dict[str, Any]:
        return dict(self.space)

    def mistakes(self, space: Space) -> list[str]:
        needed = {name: d for name, d in self.space.items() if name not in self.unneeded()}
        return [f"{self.name}: {mistake}" for mistake in space.unfit(Space.read(needed))]

    def run(
        self,
        config: Config,
        start: Path | None,
        report: Report,
        *,
        save_in: Callable[[int], Path],
    ) -> None:
        from ray import tune

        for metrics, save in self.epochs(config, start=start):
            directory = save_in(int(metrics["epoch"]))
            save(directory)
            report(metrics, checkpoint=tune.Checkpoint(str(directory)))
