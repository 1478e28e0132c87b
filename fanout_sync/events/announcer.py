"""Sends the runner's own events, such as the start and the end of a run and of each step."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from ..events.senders import EventSink
from ..records.report import Report
from ..records.step_record import AttemptRecord
from ..records.steps import AgentStepSpec, session_id_of
from .channel import EventChannel, settle_listeners
from .types import BudgetExhausted, Event, RunEnd, RunStart, StepRetry, StepReused, SubagentEnd, SubagentStart

logger = logging.getLogger(__name__)


class Announcer:
    """Sends the runner's own events of one run to `event_tx`. Exactly one end follows every start."""

    def __init__(self, event_tx: EventSink, total: int | None) -> None:
        self._event_tx = event_tx
        self._open: dict[int, AgentStepSpec] = {}
        self._run_id = os.urandom(16).hex()
        self._began = time.monotonic()
        self._succeeded = 0
        self._failed = 0
        self._reused = 0
        self._cancelled = 0
        self._total = total
        self._send(RunStart(self._run_id, total))

    def started(self, index: int, spec: AgentStepSpec) -> None:
        self._open[index] = spec
        parent = spec.parent_session_id or ""
        session_id = session_id_of(spec.task_id)
        self._send(SubagentStart(spec.task_id, session_id, parent, spec.agent, spec.description, _now_ms()))

    def tried_again(self, spec: AgentStepSpec, attempt: AttemptRecord) -> None:
        self._send(StepRetry(spec.task_id, attempt.number, attempt.wait_s or 0.0, attempt.reason or ""))

    def exhausted(self, resource: str, limit: float, used: float) -> None:
        self._send(BudgetExhausted(resource, limit, used))

    def ended(self, report: Report) -> None:
        """Send the end of a step, and count it; a step that was never started is only counted."""
        outcome = report.outcome
        self._count(outcome.success, report.status == "cancelled")
        spec = self._open.pop(report.index, None)
        if spec is None:
            if report.journalled is not None:
                self._reused += 1
                self._send(StepReused(outcome.task_id, outcome.session_id, outcome.agent, outcome.success))
            return
        if report.started is None or report.duration_s is None:
            finished_ms = _now_ms()
        else:
            finished_ms = int((report.started + report.duration_s) * 1000)
        self._end(spec, outcome.session_id, outcome.output, outcome.success, finished_ms)

    def close(self, is_interrupted: Callable[[], bool]) -> None:
        """Send the end of each step that has none yet, and then the end of the run; wait for listeners.

        Args:
            is_interrupted: Returns whether to wait only a fraction of a second from now on.
        """
        for spec in self._open.values():
            self._count(False, True)
            self._end(spec, session_id_of(spec.task_id), "the run ended before the step did", False, _now_ms())
        self._open.clear()
        if self._total is not None and is_interrupted():  # steps that were never read, and will not be
            self._cancelled = max(self._cancelled, self._total - self._succeeded - self._failed)
        elapsed_s = time.monotonic() - self._began
        self._send(RunEnd(self._run_id, self._succeeded, self._failed, elapsed_s, self._reused, self._cancelled))
        if isinstance(self._event_tx, EventChannel):
            settle_listeners(self._event_tx, is_interrupted)

    def _end(self, spec: AgentStepSpec, session_id: str, output: str, success: bool, finished_ms: int) -> None:
        self._send(SubagentEnd(spec.task_id, session_id, spec.agent, output, success, finished_ms))

    def _count(self, success: bool, is_cancelled: bool) -> None:
        if success:
            self._succeeded += 1
        elif is_cancelled:
            self._cancelled += 1
        else:
            self._failed += 1

    def _send(self, event: Event) -> None:
        # The sender may be the caller's own class: an error in it must not cost an outcome.
        try:
            self._event_tx.send(event)
        except (Exception, SystemExit):
            logger.exception("the event %s could not be sent", type(event).__name__)


def _now_ms() -> int:
    return int(time.time() * 1000)
