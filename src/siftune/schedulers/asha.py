"""Asynchronous successive halving, the variant that stops trials and never pauses them."""

from typing import Any, ClassVar, Unpack

from siftune.schedulers.base import Decision, Needs, Scheduler, require


def default_grace(max_epochs: int, trials: int, eta: int) -> int:
    """Returns the epoch of the first rung.

    As many trials as there are support floor(log_eta(trials)) halvings: after that one is left
    (Jamieson and Talwalkar 2016, arXiv:1502.07943, Algorithm 1). So the first rung is that many
    steps below the last epoch.
    """
    grace, left = max_epochs, trials
    while left >= eta and grace > 1:
        left //= eta
        grace = max(1, grace // eta)
    return min(grace, max(1, max_epochs - 1))


class Asha(Scheduler):
    """At each rung (the epochs grace_epochs × eta^k), only the best 1/eta of the trials continue.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934), in
    the form of Ray Tune and Syne Tune: a trial that is not among the best when it reaches a rung is
    stopped at once instead of waiting to be promoted. The first trials to reach a rung are compared
    with only a few others.
    """

    defaults_before: ClassVar[dict[str, Any]] = {"grace_epochs": 1}

    @classmethod
    def resolve(cls, options: dict[str, Any], *, max_epochs: int, trials: int) -> dict[str, Any]:
        eta = options.get("eta", 3)
        if "grace_epochs" in options or not isinstance(eta, int) or eta < 2:
            return options
        return options | {"grace_epochs": default_grace(max_epochs, trials, eta)}

    def __init__(
        self, *, eta: int = 3, grace_epochs: int | None = None, **needs: Unpack[Needs]
    ) -> None:
        """`grace_epochs`: before the first rung; [see `default_grace`]. Raises ValueError for eta
        below 2 or grace_epochs below 1."""
        super().__init__(**needs)
        require("eta", eta, 2)
        if grace_epochs is None:
            grace_epochs = default_grace(self.max_epochs, self.trials, eta)
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
