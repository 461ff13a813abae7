"""`tune.report`, `tune.get_checkpoint` and `tune.get_context` in a process that trains one trial.

Ray has no public way to say where reports go, so the functions themselves are replaced in
`ray.tune` and `ray.train`, before the user's file is imported: whichever way it imports them, it
gets these.
"""

import atexit
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from siftune.space import Config


class Session(Protocol):
    """One run of a trial, for the user's code."""

    trial: str
    config: Config
    directory: Path  # the trial's own
    study: str  # name
    resources: tuple[dict[str, float], ...]  # of each process of the trial
    checkpoint: Path | None  # directory of the checkpoint to continue from

    def report(self, metrics: Mapping[Any, Any], checkpoint: Any = None) -> None:
        """Takes one epoch's metrics; `checkpoint` is a tune.Checkpoint."""


_active: Session | None = None


@contextmanager
def active(session: Session) -> Iterator[None]:
    """Has `tune.report` and the others speak of this run."""
    global _active
    before, _active = _active, session
    try:
        yield
    finally:
        _active = before


def install() -> None:
    """Replaces the functions of Ray Tune that are for the inside of a trial."""
    import ray.train
    from ray import tune

    atexit.unregister(ray.shutdown)  # a trial is not connected to Ray

    class Context(tune.TuneContext):
        def get_trial_name(self) -> str:
            return _now().trial

        def get_trial_id(self) -> str:
            return _now().trial

        def get_trial_dir(self) -> str:
            return str(_now().directory)

        def get_experiment_name(self) -> str:
            return _now().study

        def get_trial_resources(self) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory(list(_now().resources))

    context = Context()
    replacements: dict[str, Callable[..., Any]] = {
        "report": _report,
        "get_checkpoint": _get_checkpoint,
        "get_context": lambda: context,
    }
    for module in (tune, ray.train):
        for name, function in replacements.items():
            setattr(module, name, function)


def _report(
    metrics: Mapping[Any, Any] | None = None, *, checkpoint: Any = None, **more: Any
) -> None:
    """Reports one epoch's metrics, with a checkpoint if there is one."""
    _now().report(more if metrics is None else metrics, checkpoint)


def _get_checkpoint() -> Any:
    path = _now().checkpoint
    return None if path is None else sys.modules["ray.tune"].Checkpoint(str(path))


def _now() -> Session:
    if _active is None:
        raise RuntimeError("tune.report and tune.get_checkpoint work inside of a trial only")
    return _active
