"""No scheduler: every trial trains to its end."""

from siftune.schedulers.base import Decision, Scheduler


class NoScheduler(Scheduler):
    """Stops nothing."""

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        return Decision.CONTINUE
