"""The interface of a trainable, used by the driver and by a trial's process."""

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

    A method raises UsageError if the user gave a wrong value.
    """

    #: Whether a trial may have several processes.
    several_processes: ClassVar[bool] = True

    @abstractmethod
    def mistakes(self, space: Space) -> list[str]:
        """Returns a sentence for each entry of the space that cannot be trained."""

    def default_space(self) -> dict[str, Any]:
        """Returns the trainable's default space. Raises UsageError if it has none."""
        raise UsageError("the trainable has no space: give --space FILE.py:NAME or FILE.yaml")

    def prepare(self) -> None:
        """Fetches and checks the data, once, before any trial starts. Raises DataError."""

    def load(self) -> None:
        """Does once what every trial needs, such as importing modules."""

    def memory_gib(self, space: Space, processes: int, *, gpu: bool) -> float | None:
        """Returns the memory in GiB that each process needs for the space's largest config.

        `gpu`: a process has a GPU, and its memory counts. Returns None if it is not known.
        """
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
        """Trains in this process, which may be one of several processes of the trial.

        `start`: the directory of a checkpoint to continue from. `report`: takes the metrics of each
        epoch, and a checkpoint. `save_in`: returns the directory for the checkpoint of an epoch,
        the same in all processes of the trial.
        """


class BuiltIn(Trainable):
    """A trainable of this package.

    Its options are the constructor's keyword-only parameters that have a default.
    `--trainable-arg NAME=VALUE` sets them.
    """

    name: ClassVar[str]
    space: ClassVar[Mapping[str, Any]]
    cpu_space: ClassVar[Mapping[str, Any]] = {}  # the entries of `space` that differ without a GPU
    cpu_options: ClassVar[Mapping[str, Any]] = {}  # the defaults of options without a GPU
    metric: ClassVar[tuple[str, str]]  # the metric that a study optimises, and min or max

    def __init__(self, *, data: Path, seed: int) -> None:
        """`data`: the directory of the data sets."""
        self.data = data
        self.seed = seed

    @abstractmethod
    def epochs(self, config: Config, *, start: Path | None) -> Iterator[tuple[Metrics, Save]]:
        """Trains, and yields after each epoch its metrics and a function that saves the state.

        `epoch` is one of the metrics. The function takes the directory to save to. `start`: such a
        directory, to continue from.
        """

    @abstractmethod
    def evaluate(self, directory: Path) -> Metrics:
        """Returns the metrics of saved weights on the validation set, and on any test set."""

    def unneeded(self) -> tuple[str, ...]:
        """Returns the parameters that a space may omit with these options."""
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
