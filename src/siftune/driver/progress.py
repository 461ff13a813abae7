"""The state of a running study, which decides what happens next. This module does not use Ray.

Every change is one event of the journal and takes the same path: it is written, folded into the
trials, and told to the searcher and the scheduler. Resuming takes the same path without writing,
so the searcher and the scheduler then know what they knew before.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from siftune.driver.proposals import NotYet, Proposals
from siftune.driver.stopping import STOPPED, Stopping
from siftune.record.journal import STATES, UNDER_WAY, Event, Trial, fold, trial_name
from siftune.schedulers.base import Decision, Order, Scheduler
from siftune.searchers.base import SpaceExhausted
from siftune.space import Config
from siftune.study.study import Study
from siftune.trainables import how_to_report


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch of the study so far."""

    trial: str
    epoch: int
    config: Config
    metrics: dict[str, Any]
    checkpoint: str | None

    def is_of(self, trial: str, epoch: int) -> bool:
        return (self.trial, self.epoch) == (trial, epoch)


class Sink(Protocol):
    """Receives each event after it has taken effect."""

    def __call__(self, event: Event, progress: "Progress") -> None: ...


class Progress:
    """The state of a running study. Methods such as begin, report and end record its events."""

    def __init__(
        self,
        study: Study,
        proposals: Proposals,
        scheduler: Scheduler,
        *,
        slots: int,
        write: Callable[[Event], None],
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.study = study
        self.proposals = proposals
        self.scheduler = scheduler
        self.slots = slots
        self.trials: dict[str, Trial] = {}
        self.best: Best | None = None
        self.exhausted = False  # the space has no unused config left
        self.suggest_wait_s = 0.0  # idle time of all slots that waited for a config
        self.hopeless: str | None = None  # why no trial can succeed: see max_failures
        self.stopping = Stopping(study)
        self._failures: list[str] = []  # errors of the trials that failed in this run
        self._write = write
        self._sinks = list(sinks)
        self._bests: dict[str, tuple[float, int]] = {}  # best score of each trial, and its epoch
        self._decisions: dict[str, Decision] = {}  # after each trial's last epoch
        self._running: set[str] = set()
        self._waiting_since: float | None = None  # for the next config, time.monotonic()

    # ── Queries ─────────────────────────────────────────────────────────────────────────────────

    def unfinished(self) -> list[str]:
        return sorted(self._running)

    @property
    def under_way(self) -> int:
        """The number of trials that have begun and not ended."""
        return len(self._running)

    @property
    def ended(self) -> int:
        """The number of trials that have ended."""
        return len(self.trials) - self.under_way

    def by_state(self) -> dict[str, int]:
        states = [trial.state for trial in self.trials.values()]
        return {state: states.count(state) for state in (*STATES, *UNDER_WAY)}

    @property
    def stopped(self) -> bool:
        """Whether a condition of `--stop` or `--stop-after` holds."""
        return self.stopping.reason is not None

    @property
    def all_begun(self) -> bool:
        return self.exhausted or self.stopped or len(self.trials) >= self.study.trials

    @property
    def done(self) -> bool:
        return self.all_begun and not self._running

    def orders(self, *, idle: bool) -> list[Order]:
        """Returns the scheduler's orders for paused trials. `idle`: nothing else can happen."""
        return self.scheduler.orders(idle=idle)

    def paused(self, trial: str) -> bool:
        """Returns whether the trial waits for an order of the scheduler."""
        return self._decisions.get(trial) is Decision.PAUSE

    def kept(self, trial: str) -> set[str]:
        """Returns the checkpoints of a trial to keep, as paths in the study directory.

        These are the latest one and that of its best epoch, where "best" is determined as for the
        whole study.
        """
        checkpoints = self.trials[trial].checkpoints
        if not checkpoints:
            return set()
        kept = {checkpoints[max(checkpoints)]}
        if trial in self._bests and (best := checkpoints.get(self._bests[trial][1])):
            kept.add(best)
        if self.best and self.best.trial == trial and self.best.checkpoint:
            kept.add(self.best.checkpoint)
        return kept

    def overdue(self) -> list[str]:
        """Returns the trials that should have stopped when the study was interrupted."""
        return [name for name in self.unfinished() if self._decisions.get(name) is Decision.STOP]

    # ── Events ──────────────────────────────────────────────────────────────────────────────────

    def replay(self, events: Iterable[Event]) -> None:
        """Replays the events of an interrupted study."""
        for event in events:
            self._take(event)

    def begin(self) -> Trial | None:
        """Begins the next new trial; None if none is left or its config is not ready yet."""
        if self.all_begun:
            return None
        number = len(self.trials)
        since = time.monotonic() if self._waiting_since is None else self._waiting_since
        self._waiting_since = None
        try:
            proposal = self.proposals.ask(number, prefetch=math.ceil(self.slots / 2))
        except NotYet:
            self._waiting_since = time.monotonic()
            return None
        except SpaceExhausted:
            self.exhausted = True
            return None
        finally:
            idle = max(0, self.slots - len(self._running))
            self.suggest_wait_s += idle * (time.monotonic() - since)
        name = trial_name(number)
        self._record({"event": "start", "trial": name} | proposal.to_event())
        return self.trials[name]

    def report(
        self,
        trial: str,
        epoch: int,
        metrics: Mapping[str, Any],
        *,
        seconds: float,
        node: str | None = None,
        gpu: str | None = None,
        gpu_mib: float | None = None,
        checkpoint: str | None = None,
    ) -> Decision:
        """Records one trained epoch of a trial and returns how the trial continues.

        An epoch that is trained again, after a restart without a checkpoint, is not reported to
        the searcher and the scheduler again.
        """
        if problem := self._problem(metrics, epoch):
            self.end(trial, "failed", problem)
            return Decision.STOP
        event = {"event": "epoch", "trial": trial, "epoch": epoch, "metrics": dict(metrics)}
        where = {"node": node, "gpu": gpu, "gpu_mib": gpu_mib, "checkpoint": checkpoint}
        again = epoch in self.trials[trial].epochs
        self._record(event | {"seconds": round(seconds, 4)} | {k: v for k, v in where.items() if v})
        decision = Decision.CONTINUE if again else self._decisions[trial]
        if decision is Decision.STOP:
            self.end(trial, "pruned")
        elif decision is Decision.PAUSE:
            self.pause(trial)
        return decision

    def pause(self, trial: str) -> None:
        """Records that the trial waits for an order of the scheduler."""
        self._record({"event": "pause", "trial": trial})

    def resume(self, trial: str) -> None:
        """Records that the paused trial continues by an order of the scheduler."""
        self._record({"event": "resume", "trial": trial})

    def restart(
        self, trial: str, epoch: int, *, cause: str = "interrupted", error: str | None = None
    ) -> None:
        """Records that the trial continues after this epoch, because the study was interrupted or
        the trial failed."""
        event = {"event": "restart", "trial": trial, "epoch": epoch, "cause": cause}
        self._record(event | ({} if error is None else {"error": error}))

    def clone(
        self, trial: str, epoch: int, *, donor: str, config: Config, checkpoint: str | None
    ) -> None:
        """Records that the trial continues after this epoch with this config, and with a copy of
        the donor's checkpoint if there is one."""
        event: Event = {"event": "restart", "trial": trial, "epoch": epoch, "cause": "cloned"}
        event |= {"donor": donor, "config": config}
        self._record(event | ({"checkpoint": checkpoint} if checkpoint else {}))

    def end(self, trial: str, state: str, error: str | None = None) -> None:
        """Records the end of the trial. Does nothing if it has already ended."""
        if trial not in self._running:
            return
        if state == "completed" and not self.trials[trial].epochs:
            state = "failed"
            error = (
                f"the trainable ended without reporting {self.study.metric!r}: "
                f"{how_to_report(self.study.trainable, self.study.metric)}"
            )
        event = {"event": "end", "trial": trial, "state": state}
        self._record(event | ({"error": error} if error else {}))

    def stop(self, trial: str) -> None:
        """Records the end of a trial that ends because the study has stopped early."""
        record = self.trials[trial]
        if record.epoch >= (self.study.last_epoch(record.config) or math.inf):
            self.end(trial, "completed")
        else:
            self._record({"event": "end", "trial": trial, "state": "pruned", "cause": STOPPED})

    # ── Internals ───────────────────────────────────────────────────────────────────────────────

    def _record(self, event: Event) -> None:
        event["time"] = round(time.time(), 3)
        self._write(event)
        self._take(event)
        if event["event"] == "end" and event["state"] == "failed":
            self._count_failure(event.get("error", ""))
        for sink in self._sinks:
            sink(event, self)

    def _count_failure(self, error: str) -> None:
        """Finds out whether trials fail alike. The last line of an error says what it is."""
        states, most = self.by_state(), self.study.max_failures
        self._failures.append(error)
        if not most or states["completed"] or states["pruned"]:
            return
        last = [failure.strip().rpartition("\n")[2] for failure in self._failures[-most:]]
        if len(last) == most and len(set(last)) == 1:
            self.hopeless = (
                f"{most} trials in a row failed with the same error, and none has succeeded:\n"
                f"{error.strip()}"
            )

    def _take(self, event: Event) -> None:
        name, kind = event["trial"], event["event"]
        again = kind == "epoch" and event["epoch"] in self.trials[name].epochs
        trial = fold(self.trials, event)
        if kind == "start":
            self._running.add(name)
            self.proposals.begin(name, trial.config)
            self.scheduler.begin(name, trial.config)
        elif kind == "epoch" and not again:
            self._take_epoch(trial, event)
        elif kind == "epoch" and self.best and self.best.is_of(name, event["epoch"]):
            # The epoch was trained again because its earlier checkpoint is gone.
            self.best = replace(self.best, checkpoint=event.get("checkpoint"))
        elif kind == "restart":
            self.proposals.know(trial.config)
        elif kind == "end":
            self._running.discard(name)
            failed = trial.state == "failed"
            # A trial without an epoch that ended with its study has not failed. In a resumed study
            # it counts as running for the searcher.
            if trial.epochs or event.get("cause") != STOPPED:
                self.proposals.end(name, None if failed else self._bests.get(name, (None,))[0])
            self.scheduler.end(name)
            self.stopping.end(name, event)

    def _take_epoch(self, trial: Trial, event: Event) -> None:
        name, epoch, metrics = trial.trial, event["epoch"], event["metrics"]
        score = self.study.sign() * float(metrics[self.study.metric])
        if score < self._bests.get(name, (math.inf,))[0]:
            self._bests[name] = (score, epoch)
        if self.best is None or score < self._score_of(self.best):
            self.best = Best(name, epoch, trial.config, metrics, trial.checkpoints.get(epoch))
        self.proposals.report(name, epoch, score, event.get("seconds", 0.0))
        self.stopping.report(name, epoch, metrics, score)
        decision = self.scheduler.report(name, epoch, score)
        # A trial ends after its last epoch, so there is nothing to stop or pause.
        last = epoch >= (self.study.last_epoch(trial.config) or math.inf)
        self._decisions[name] = Decision.CONTINUE if last else decision

    def _score_of(self, best: Best) -> float:
        return self.study.sign() * float(best.metrics[self.study.metric])

    def _problem(self, metrics: Mapping[str, Any], epoch: int) -> str | None:
        metric = self.study.metric
        if metric not in metrics:
            return (
                f"the trainable reported {', '.join(sorted(metrics))}, but not {metric!r}: "
                f"pass one of these to --metric, or report {metric!r}"
            )
        for name in dict.fromkeys((metric, "loss")):
            value = metrics.get(name, 0.0)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return f"{name} is {value!r} after epoch {epoch}: a finite number is needed"
        return None
