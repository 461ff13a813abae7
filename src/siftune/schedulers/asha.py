"""Asynchronous successive halving, the variant that stops trials and never pauses them."""

from typing import Unpack

from siftune.schedulers.base import Decision, Needs, Scheduler, require


class Asha(Scheduler):
    """Only the best 1/eta of the trials that reach an epoch grace_epochs × eta^k continue.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934), in
    the form of Ray Tune and Syne Tune: a trial that is not among the best when it reaches a rung is
    stopped at once instead of waiting to be promoted. The first trials to reach a rung are compared
    with only a few others.
    """

    def __init__(self, *, eta: int = 3, grace_epochs: int = 1, **needs: Unpack[Needs]) -> None:
        """Raises ValueError for eta below 2 or grace_epochs below 1."""
        super().__init__(**needs)
        require("eta", eta, 2)
        require("grace_epochs", grace_epochs, 1)
        self._eta = eta
        self._rungs: dict[int, dict[str, float]] = {}  # epoch -> trial -> score
        epoch = grace_epochs
        while epoch < self.max_epochs:
            self._rungs[epoch] = {}
            epoch *= eta

    @property
    def rungs(self) -> list[int]:
        """The epochs after which trials are judged."""
        return list(self._rungs)

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        if epoch not in self._rungs:
            return Decision.CONTINUE
        rung = self._rungs[epoch]
        rung[trial] = score
        better = sum(other < score for other in rung.values())
        return Decision.CONTINUE if better < max(1, len(rung) // self._eta) else Decision.STOP
