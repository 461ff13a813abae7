"""Chooses the searcher, scheduler and number of trials that a request leaves open."""

from dataclasses import fields
from typing import Any

from siftune.errors import UsageError
from siftune.searchers import AUTO
from siftune.study.pairs import default_scheduler
from siftune.study.request import StudyRequest
from siftune.study.study import Study

DEFAULT_TRIALS = 50


def plan(
    request: StudyRequest, *, slots: int, gpus_per_trial: float | None = None
) -> tuple[Study, list[str]]:
    """Returns the planned study, and a sentence for each choice that the user should see.

    `slots` is the number of trials that run at once. `gpus_per_trial` applies if the request has
    none; the default is 0. Raises UsageError for options that the searcher or the scheduler does
    not have.
    """
    notes: list[str] = []
    searcher = request.searcher
    if searcher == AUTO:
        from siftune.searchers.auto import choose

        searcher, reason = choose(
            request.space,
            trials=request.trials or DEFAULT_TRIALS,
            slots=slots,
            scheduler=request.scheduler,
        )
        notes.append(f"searcher {searcher}: {reason}")
    study = complete(
        request,
        searcher=searcher,
        scheduler=request.scheduler or default_scheduler(searcher),
        trials=_trials(request, searcher, notes),
        gpus_per_trial=gpus_per_trial or 0,
    )
    mistakes: list[str] = []
    for build in (study.build_searcher, study.build_scheduler):
        try:
            build()
        except UsageError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UsageError(mistakes)
    return study, notes


def complete(request: StudyRequest, **chosen: Any) -> Study:
    """Returns the request as a study. `chosen` must contain searcher, scheduler and trials. Its
    gpus_per_trial applies only if the request has none."""
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    if request.gpus_per_trial is not None:
        chosen["gpus_per_trial"] = request.gpus_per_trial
    return Study(**(values | chosen))


def _trials(request: StudyRequest, searcher: str, notes: list[str]) -> int:
    asked = request.trials
    if searcher == "grid":
        points = sum(1 for _ in request.space.grid())
        if asked is not None and asked < points:
            notes.append(
                f"--trials {asked} covers only the first {asked} of the grid's {points} configs"
            )
        return min(asked or points, points)
    trials = asked or DEFAULT_TRIALS
    size = request.space.size()
    if size is not None and size < trials:
        notes.append(f"the space has only {size} configs, so the study has {size} trials")
        return size
    return trials
