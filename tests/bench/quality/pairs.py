"""siftune's own pairs of a searcher and a scheduler, with the driver's own code."""

from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.schedulers.base import Decision, Resume, Stop
from siftune.space import Config
from siftune.study.planning import plan
from siftune.study.reading import read
from tests.bench.quality.simulation import Next
from tests.bench.quality.tasks import Task


class Pair:
    """A study on siftune's Progress. `name`: SEARCHER+SCHEDULER, or SEARCHER.SAMPLER+SCHEDULER.

    Every proposal is made when a slot needs it, and knows all results and all running trials.
    """

    def __init__(self, name: str, task: Task, *, slots: int, seed: int, trials: int) -> None:
        searcher, _, scheduler = name.partition("+")
        searcher, _, sampler = searcher.partition(".")
        layer = {"trainable": "t.py:f", "name": "s", "space": task.space, "metric": "loss"}
        layer |= {"searcher": searcher, "scheduler": scheduler, "seed": seed, "trials": trials}
        layer |= {"searcher_options": {"sampler": sampler} if sampler else {}}
        study, _ = plan(read([layer], {}), slots=slots)
        proposals = Proposals(study, study.build_searcher(), say=lambda sentence: None)
        self._progress = Progress(
            study, proposals, study.build_scheduler(), slots=slots, write=lambda event: None
        )
        self._epochs = task.epochs

    def start(self, *, idle: bool) -> tuple[str, int, Config] | None:
        progress = self._progress
        for order in progress.orders(idle=idle):
            trial = progress.trials[order.trial]
            if isinstance(order, Stop):
                progress.end(order.trial, "pruned")
            elif isinstance(order, Resume):
                progress.resume(order.trial)
                return order.trial, trial.epoch + 1, trial.config
        if begun := progress.begin():
            return begun.trial, 1, begun.config
        return self.start(idle=True) if idle and progress.orders(idle=True) else None

    def report(self, trial: str, epoch: int, loss: float, seconds: float) -> Next:
        decision = self._progress.report(trial, epoch, {"loss": loss}, seconds=seconds)
        if decision is not Decision.CONTINUE:
            return Next.LEAVE
        if epoch < self._epochs:
            return Next.CONTINUE
        self._progress.end(trial, "completed")
        return Next.LEAVE

    def fail(self, trial: str) -> None:
        self._progress.end(trial, "failed", "it failed")
