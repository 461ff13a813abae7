"""Chooses the searcher, scheduler, seed and number of trials that a request leaves open."""

import secrets
from dataclasses import fields, replace
from typing import Any

import numpy as np

from siftune.errors import UsageError
from siftune.schedulers import SCHEDULERS
from siftune.searchers import AUTO, SEARCHERS
from siftune.study import known
from siftune.study.pairs import default_scheduler, drawn_refusal
from siftune.study.request import StudyRequest
from siftune.study.study import Study

DEFAULT_TRIALS = 50
_SEEDS = 2**31  # every library accepts a smaller number as its seed


def seeded(request: StudyRequest) -> StudyRequest:
    """Returns the request with a seed: its own or a random one, so that studies with the same flags
    train different configs."""
    return replace(request, seed=secrets.randbelow(_SEEDS)) if request.seed is None else request


def plan(
    request: StudyRequest, *, slots: int, gpus_per_trial: float = 0
) -> tuple[Study, list[str]]:
    """Returns the planned study, and a sentence for each choice that the user should see.

    `slots` is the number of trials that run at once. `gpus_per_trial` applies if the request has
    none; the default is 0. Raises UsageError for options that the searcher or the scheduler does
    not have, and for `sample_from` entries that they cannot work with or that fail.
    """
    notes: list[str] = []
    request = seeded(request)
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
        gpus_per_trial=gpus_per_trial,
    )
    if refusal := drawn_refusal(study.space.drawn, study.searcher, study.scheduler):
        raise UsageError(refusal)
    options = SCHEDULERS.load(study.scheduler).resolve(
        study.scheduler_options, max_epochs=study.max_epochs, trials=study.trials
    )
    study = replace(study, scheduler_options=options)
    options = SEARCHERS.load(searcher).resolve(study.searcher_options, slots=slots)
    study = replace(study, searcher_options=options)
    mistakes: list[str] = []
    if (least := len(study.try_configs)) > study.trials:
        mistakes.append(
            f"--trials must be at least {least}, the number of configs to try, got {study.trials}"
        )
    for build in (study.build_searcher, study.build_scheduler):
        try:
            build()
        except UsageError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UsageError(mistakes)
    if study.space.drawn:  # a function that raises should do so before the start
        study.build_searcher().propose(0)
        for config in study.try_configs:
            known.complete(config, study.space, np.random.default_rng(study.seed))
    return study, notes


def complete(request: StudyRequest, **chosen: Any) -> Study:
    """Returns the request, which must have a seed, as a study. `chosen` must contain searcher,
    scheduler and trials. Its gpus_per_trial applies only if the request has none."""
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    if request.gpus_per_trial is not None:
        chosen["gpus_per_trial"] = request.gpus_per_trial
    return Study(**(values | chosen))


def _trials(request: StudyRequest, searcher: str, notes: list[str]) -> int:
    """Returns the number of trials. Raises UsageError for a grid that is too large to count."""
    asked, size = request.trials, request.space.size()
    if searcher == "grid":
        if size is None:
            next(request.space.grid())  # raises UsageError if a domain is continuous
            if asked is None:
                raise UsageError(
                    f"the grid has up to {request.space.points():,} configs: say with --trials how "
                    "many of them to train"
                )
            notes.append(f"--trials {asked} covers only the first {asked} of a large grid")
            return asked
        if asked is not None and asked < size:
            notes.append(f"--trials {asked} covers only the first {asked} of the grid's {size}")
        return min(asked or size, size)
    trials = asked or DEFAULT_TRIALS
    if size is not None and size < trials and not request.space.drawn:
        notes.append(f"the space has {size} distinct configs, so there are {size} trials")
        return size
    return trials
