"""`tune.report`, `tune.get_checkpoint` and `tune.get_context` in a trial's process.

Ray has no public way to redirect reports. The functions are therefore replaced in `ray.tune` and
`ray.train` before the user's file is imported, so the file gets the replacements however it imports
them. `ray.air.session`, which Ray no longer documents, has them too, for code written for Ray 2.0.
"""

import atexit
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from siftune.space import Config


class Session(Protocol):
    """One run of a trial, as the user's code sees it."""

    trial: str
    config: Config
    directory: Path  # the trial's own directory
    study: str  # name of the study
    resources: tuple[dict[str, float], ...]  # of each process of the trial
    checkpoint: Path | None  # directory of the checkpoint to continue from

    def report(self, metrics: Mapping[Any, Any], checkpoint: Any = None) -> None:
        """Reports the metrics of one epoch. `checkpoint` is a tune.Checkpoint."""


_active: Session | None = None


@contextmanager
def active(session: Session) -> Iterator[None]:
    """Makes `tune.report` and the related functions act on this run."""
    global _active
    install()  # if that failed in advance, it raises here why
    before, _active = _active, session
    try:
        yield
    finally:
        _active = before


@cache
def install() -> None:
    """Replaces the Ray Tune functions that are called inside a trial."""
    import ray.air.session
    import ray.train
    from ray import tune

    atexit.unregister(ray.shutdown)  # a trial is not connected to Ray

    class Context(tune.TuneContext):
        def get_trial_name(self) -> str:
            return _current().trial

        def get_trial_id(self) -> str:
            return _current().trial

        def get_trial_dir(self) -> str:
            return str(_current().directory)

        def get_experiment_name(self) -> str:
            return _current().study

        def get_trial_resources(self) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory(list(_current().resources))

    context = Context()
    replacements: dict[str, Callable[..., Any]] = {
        "report": _report,
        "get_checkpoint": _get_checkpoint,
        "get_context": lambda: context,
    }
    for module in (tune, ray.train, ray.air.session):
        for name, function in replacements.items():
            setattr(module, name, function)


def _report(
    metrics: Mapping[Any, Any] | None = None, *, checkpoint: Any = None, **more: Any
) -> None:
    """Reports the metrics of one epoch, and its checkpoint if one is given."""
    if more or metrics is None:
        metrics = {**(metrics or {}), **more}
    _current().report(metrics, checkpoint)


def _get_checkpoint() -> Any:
    path = _current().checkpoint
    return None if path is None else sys.modules["ray.tune"].Checkpoint(str(path))


def _current() -> Session:
    if _active is None:
        raise RuntimeError(
            "tune.report and tune.get_checkpoint work only inside a trial: call them there"
        )
    return _active
