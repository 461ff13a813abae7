"""HyperBand: successive halving in several brackets, from many short trials to few long ones."""

from dataclasses import dataclass, field
from typing import Unpack

from siftune.schedulers.base import Decision, Needs, Order, Resume, Scheduler, Stop, require
from siftune.space import Config


def brackets(max_epochs: int, eta: int) -> list[tuple[int, list[int]]]:
    """Returns the number of trials of each bracket, and the epochs at which its rungs end.

    This is algorithm 1 of the paper, with n = ceil((s_max + 1) / (s + 1) × eta^s) trials in bracket
    s and epochs rounded down. For 81 epochs and eta 3, the first is (81, [1, 3, 9, 27, 81]).
    """
    s_max = 0
    while eta ** (s_max + 1) <= max_epochs:
        s_max += 1
    return [
        (
            -(-(s_max + 1) * eta**s // (s + 1)),
            [max_epochs // eta ** (s - rung) for rung in range(s + 1)],
        )
        for s in range(s_max, -1, -1)
    ]


@dataclass
class _Bracket:
    capacity: int
    milestones: list[int]  # the epochs at which its trials pause
    trials: list[str] = field(default_factory=list)


class HyperBand(Scheduler):
    """Trials pause at the end of a rung until all have reached it; the best 1/eta continue.

    Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization"
    (arXiv:1603.06560). New trials fill one bracket after the other, and after the last bracket the
    first comes again. A paused trial does not occupy a slot, so other trials begin meanwhile.

    The bracket does not wait for a trial that has ended (for any reason) or has trained all
    `epochs`, but the trial still counts towards the size of its rung. The last bracket is only as
    large as the number of trials still planned. If some of them never begin, the bracket is decided
    once nothing is running. At least one trial of a rung continues.
    """

    def __init__(self, *, eta: int = 3, **needs: Unpack[Needs]) -> None:
        """Raises ValueError for eta below 2."""
        super().__init__(**needs)
        require("eta", eta, 2)
        self._eta = eta
        self._plan = brackets(self.max_epochs, eta)
        self._brackets: list[_Bracket] = []
        self._bracket_of: dict[str, _Bracket] = {}
        self._epoch: dict[str, int] = {}  # the last epoch of each trial
        self._length: dict[str, int] = {}
        self._scores: dict[tuple[str, int], float] = {}  # at milestones
        self._ended: set[str] = set()  # trials that ended or have nothing left to train

    def begin(self, trial: str, config: Config) -> None:
        if not self._brackets or self._is_closed(self._brackets[-1]):
            self._brackets.append(self._next_bracket())
        self._brackets[-1].trials.append(trial)
        self._bracket_of[trial] = self._brackets[-1]
        self._epoch[trial] = 0
        self._length[trial] = self.length(config)

    def _is_closed(self, bracket: _Bracket) -> bool:
        """Returns whether the bracket accepts no more trials.

        It does so if it is full or if some of its trials have already been promoted.
        """
        return len(bracket.trials) >= bracket.capacity or any(
            self._epoch[t] > first for first in bracket.milestones[:1] for t in bracket.trials
        )

    def _next_bracket(self) -> _Bracket:
        size, (*milestones, _) = self._plan[len(self._brackets) % len(self._plan)]
        left = self.trials - len(self._epoch)
        return _Bracket(min(size, left) if left > 0 else size, milestones)

    def report(self, trial: str, epoch: int, score: float) -> Decision:
        self._epoch[trial] = epoch
        if epoch >= self._length[trial]:
            self._ended.add(trial)
            return Decision.CONTINUE
        if epoch not in self._bracket_of[trial].milestones:
            return Decision.CONTINUE
        self._scores[trial, epoch] = score
        return Decision.PAUSE

    def end(self, trial: str) -> None:
        self._ended.add(trial)

    def orders(self, *, idle: bool = False) -> list[Order]:
        # Computed from the recorded events and not stored. The result is therefore the same at any
        # time, and after any part of an earlier result has been carried out.
        return [order for bracket in self._brackets for order in self._decide(bracket, idle)]

    def _decide(self, bracket: _Bracket, idle: bool) -> list[Order]:
        if not idle and not self._is_closed(bracket):
            return []
        orders: list[Order] = []
        entered = bracket.trials
        for milestone in bracket.milestones:
            arrived = [t for t in entered if (t, milestone) in self._scores]
            if any(t not in arrived and t not in self._ended for t in entered):
                break
            # Trials that have ended keep their place among the best. The decision is the same
            # whether they ended before or after it.
            arrived.sort(key=lambda t: self._scores[t, milestone])
            best = arrived[: max(1, len(entered) // self._eta)]
            orders += [
                Resume(t) if t in best else Stop(t)
                for t in arrived
                if self._epoch[t] == milestone and t not in self._ended
            ]
            entered = [t for t in entered if t in best or self._epoch[t] > milestone]
        return orders
