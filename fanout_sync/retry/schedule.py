"""The steps of a run that failed so far: what was tried, and when each is due again."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from ..interrupts import InterruptScope
from ..records.report import Report, failure
from ..records.status import Status, StepError
from ..records.step_record import AttemptRecord
from ..records.steps import AgentStepSpec

if TYPE_CHECKING:
    from .policy import RetryPolicy


@define(eq=False)
class _History:
    """The attempts at a step that failed so far."""

    first_began: float
    idle_s: float = 0.0
    attempts: list[AttemptRecord] = field(factory=list)


class RetrySchedule:
    """Decides whether there is another attempt, and keeps the steps that wait for it.

    Args:
        policy: Whether and when there is another attempt; `None` for never.
        scope: Told when the caller's own strategies run.
        on_interrupt: Called when an interrupt was raised in one.
        clock: Seconds, monotonic.

    Attributes:
        histories: What is known of each step that failed and is not done, by its index.
    """

    def __init__(
        self,
        policy: RetryPolicy | None,
        scope: InterruptScope,
        on_interrupt: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._scope = scope
        self._on_interrupt = on_interrupt
        self._clock = clock
        self._waiting: list[tuple[float, int, AgentStepSpec]] = []
        self.histories: dict[int, _History] = {}

    def __len__(self) -> int:
        """How many steps wait for their next attempt."""
        return len(self._waiting)

    @property
    def due_at(self) -> float:
        """When the next attempt is due, on the clock; `inf` if no step waits."""
        return self._waiting[0][0] if self._waiting else math.inf

    def pop_due(self, now: float) -> tuple[int, AgentStepSpec, int] | None:
        """Return a step whose next attempt is due, with its index and the number of that attempt."""
        if self.due_at > now:
            return None
        _, index, spec = heapq.heappop(self._waiting)
        return index, spec, self.failed_attempts(index) + 1

    def failed_attempts(self, index: int) -> int:
        """Return how many attempts at a step failed so far, the one just reported not counted."""
        history = self.histories.get(index)
        return 0 if history is None else len(history.attempts)

    def wait_after(self, report: Report, spec: AgentStepSpec) -> float | None:
        """Return how long to wait before another attempt, in seconds; `None` if there is to be none."""
        policy = self._policy
        if policy is None or (report.status == "succeeded" and report.retry_in is None):
            return None
        history = self.histories.get(report.index)
        number = self.failed_attempts(report.index) + 1
        began = self._clock() - (report.duration_s or 0.0) if history is None else history.first_began
        idle_s = 0.0 if history is None else history.idle_s
        try:
            wait_s = report.retry_in
            if wait_s is None and report.started is not None:
                wait_s = policy.rule.wait_after_loss(spec, number, report.status, report.reason or "")
            if wait_s is None:
                return None
            with self._scope.callers_code():
                is_over = policy.is_over(
                    spec,
                    number,
                    report.outcome,
                    report.error,
                    first_began=began,
                    idle_s=idle_s,
                    upcoming_s=wait_s,
                )
        except KeyboardInterrupt:
            self._on_interrupt()
            return None
        except BaseException as error:  # the caller's own strategies: what they raise costs the other attempts alone
            from .policy import told_of_strategy

            told_of_strategy(error)
            return None
        return None if is_over else wait_s

    def postpone(self, report: Report, spec: AgentStepSpec, wait_s: float) -> AttemptRecord:
        """Have the step tried again after `wait_s` seconds; return the record of the attempt that failed."""
        began = self._clock() - (report.duration_s or 0.0)
        history = self.histories.setdefault(report.index, _History(began))
        reason = report.reason or "the retry strategy wants another attempt"
        attempt = AttemptRecord(len(history.attempts) + 1, report.status, reason, report.duration_s, wait_s)
        history.attempts.append(attempt)
        history.idle_s += wait_s
        heapq.heappush(self._waiting, (self._clock() + wait_s, report.index, spec))
        return attempt

    def completed(self, report: Report) -> Report:
        """Return the last report of a step with the attempts before it."""
        history = self.histories.pop(report.index, None) if self.histories else None
        if history is None:
            return report
        outcome = report.outcome
        if not outcome.success:
            outcome = evolve(outcome, output=f"{outcome.output} (after {len(history.attempts) + 1} attempts)")
        return evolve(report, outcome=outcome, attempts=tuple(history.attempts))

    def cut_short(self, index: int, spec: AgentStepSpec, error: StepError, status: Status = "cancelled") -> Report:
        """Report a step that gets no other attempt, nor a first one; its error tells of the last attempt, too."""
        history = self.histories.pop(index, None)
        if history is None:
            return failure(index, spec, status, error)
        last = history.attempts[-1]
        told = evolve(error, message=f"{error.message}; attempt {last.number}: {last.reason}")
        return evolve(failure(index, spec, status, told), attempts=tuple(history.attempts))

    def drain(self) -> list[tuple[int, AgentStepSpec]]:
        """Return the steps that wait, with their indices, and forget that they do."""
        waiting = [(index, spec) for _, index, spec in sorted(self._waiting, key=lambda item: item[1])]
        self._waiting.clear()
        return waiting
