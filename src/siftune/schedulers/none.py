"""No scheduler: every trial trains to its end."""

from siftune.schedulers.base import Decision, Scheduler


class NoScheduler(Scheduler):
    """Stops no trial."""

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        return Decision.CONTINUE
