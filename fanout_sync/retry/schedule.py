"""The steps of a run that are to be tried again: their attempts so far, and when each is due."""

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
    """The failed attempts at a step so far."""

    first_began: float
    idle_s: float = 0.0
    attempts: list[AttemptRecord] = field(factory=list)


class RetrySchedule:
    """Decides whether there is another attempt, and keeps the steps that wait for one.

    Args:
        policy: Decides whether and when there is another attempt; `None` if there never is.
        scope: The interrupt scope of the call; it raises interrupts while the caller's own strategies run.
        on_interrupt: Called when an interrupt was raised in a strategy.
        clock: Returns the time of a monotonic clock, in seconds.

    Attributes:
        histories: The failed attempts at each step that is not done, by the index of the step.
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
        """The number of steps that wait for their next attempt."""
        return len(self._waiting)

    @property
    def due_at(self) -> float:
        """When the next attempt is due, in seconds on the clock; infinity if no step waits."""
        return self._waiting[0][0] if self._waiting else math.inf

    def pop_due(self, now: float) -> tuple[int, AgentStepSpec, int] | None:
        """Return index and spec of a step that is due, and the number of its next attempt; `None` if none is due."""
        if self.due_at > now:
            return None
        _, index, spec = heapq.heappop(self._waiting)
        return index, spec, self.failed_attempts(index) + 1

    def failed_attempts(self, index: int) -> int:
        """Return how many attempts at a step have failed so far, without the one that was just reported."""
        history = self.histories.get(index)
        return 0 if history is None else len(history.attempts)

    def wait_after(self, report: Report, spec: AgentStepSpec) -> float | None:
        """Return the seconds to wait before another attempt; `None` if there is to be none."""
        policy = self._policy
        if policy is None or (report.status == "succeeded" and report.retry_in is None):
            return None
        history = self.histories.get(report.index)
        number = self.failed_attempts(report.index) + 1
        began = self._clock() - (report.duration_s or 0.0) if history is None else history.first_began
        idle_s = 0.0 if history is None else history.idle_s
        wait_s = report.retry_in
        try:
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
            return wait_s  # nobody has said that this was the last attempt: the step is cancelled
        except BaseException as error:  # from a strategy of the caller: it costs the step only its other attempts
            from .policy import report_strategy_error

            report_strategy_error(error)
            return None
        return None if is_over else wait_s

    def postpone(self, report: Report, spec: AgentStepSpec, wait_s: float) -> AttemptRecord:
        """Keep the step for another attempt after `wait_s` seconds; return the record of the failed attempt."""
        began = self._clock() - (report.duration_s or 0.0)
        history = self.histories.setdefault(report.index, _History(began))
        reason = report.reason or "the retry strategy wants another attempt"
        attempt = AttemptRecord(len(history.attempts) + 1, report.status, reason, report.duration_s, wait_s)
        history.attempts.append(attempt)
        history.idle_s += wait_s
        heapq.heappush(self._waiting, (self._clock() + wait_s, report.index, spec))
        return attempt

    def completed(self, report: Report) -> Report:
        """Return the last report of a step, with the earlier attempts added."""
        history = self.histories.pop(report.index, None) if self.histories else None
        if history is None:
            return _refused(report) if self._policy is None and _asks_to_be_tried_again(report) else report
        outcome = report.outcome
        if not outcome.success:
            note = _note_of_attempts(report, len(history.attempts) + 1)
            outcome = evolve(outcome, output=f"{outcome.output}{note}")
        return evolve(report, outcome=outcome, attempts=tuple(history.attempts))

    def cut_short(self, index: int, spec: AgentStepSpec, error: StepError, status: Status = "cancelled") -> Report:
        """Return the report of a step that gets no further attempt; its error also has the last attempt's reason."""
        history = self.histories.pop(index, None)
        if history is None:
            return evolve(failure(index, spec, status, error), spec=spec)
        last = history.attempts[-1]
        error = evolve(error, message=f"{error.message}; attempt {last.number}: {last.reason}")
        return evolve(failure(index, spec, status, error), attempts=tuple(history.attempts), spec=spec)

    def drain(self) -> list[tuple[int, AgentStepSpec]]:
        """Remove the steps that wait, and return their indices and specs."""
        waiting = [(index, spec) for _, index, spec in sorted(self._waiting, key=lambda item: item[1])]
        self._waiting.clear()
        return waiting


def _asks_to_be_tried_again(report: Report) -> bool:
    """Return whether that is all that an error says, a `RetryAfter` that was raised from no other error."""
    if report.retry_after is None or report.error is None:
        return False
    from .policy import ASKED  # imported lazily: slow, and most runs see no `RetryAfter`

    return report.error.message.startswith(ASKED)


def _refused(report: Report) -> Report:
    """Return the report of a step that has asked to be tried again, where no step is."""
    outcome = report.outcome
    note = f"{_separator(outcome.output)}not tried again: that needs retry=, such as retry=3"
    return evolve(report, outcome=evolve(outcome, output=f"{outcome.output}{note}"))


def _separator(text: str) -> str:
    return "\n" if "\n" in text else "; "


def _note_of_attempts(report: Report, attempts: int) -> str:
    if report.status == "cancelled":
        return f" (after {attempts} attempts)"
    return f"{_separator(report.outcome.output)}gave up after {attempts} attempts"
