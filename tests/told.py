"""Recomputes a searcher's proposals from part of a journal, to compare a study's with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from threadpoolctl import threadpool_limits

from siftune.driver.proposals import Proposals
from siftune.record.journal import Event, Trial, fold, trial_name
from siftune.space import Config
from siftune.study.study import Study


def proposed(study: Study, events: Sequence[Event], start: Event) -> Iterator[Config]:
    """Yields the configs that a searcher may propose for the trial of this `start` event.

    It is told as many ends and epochs as the event says; all other trials before this one are
    running. If the searcher uses several processes, the later configs ignore one or two of them,
    which other processes may have proposed meanwhile.
    """
    trials: dict[str, Trial] = {}
    for event in events:
        fold(trials, event)
    number = int(start["trial"]) - 1
    ends = [event["trial"] for event in events if event["event"] == "end"][: start["knew"]]
    heard = _new_epochs(events)[: start["heard"]]
    before = [trial_name(n) for n in range(number)]
    several = study.build_searcher().processes > 1
    at_once = [name for name in reversed(before) if name not in ends] if several else []
    for left_out in [(), *combinations(at_once, 1), *combinations(at_once, 2)]:
        proposals = Proposals(study, study.build_searcher())
        for name in before:
            if name not in left_out:
                proposals.begin(name, trials[name].config)
        for event in heard:
            loss, seconds = event["metrics"]["loss"], event["seconds"]
            proposals.report(event["trial"], event["epoch"], loss, seconds)
        for name in ends:
            losses = [metrics["loss"] for metrics in trials[name].epochs.values()]
            proposals.end(name, None if trials[name].state == "failed" else min(losses))
        with _one_thread():
            config = proposals.ask(number).config
        yield config


def _new_epochs(events: Sequence[Event]) -> list[Event]:
    """Returns the first report of each epoch, in order: others are not told to a searcher."""
    reports = [event for event in events if event["event"] == "epoch"]
    first = {(event["trial"], event["epoch"]): event for event in reversed(reports)}
    return [event for event in reports if first[event["trial"], event["epoch"]] is event]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Uses one thread, like the searcher's processes: sums in another order round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)
