"""Runs of steps over a set of lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ..attempt import Report, failure
from ..errors import WireError
from ..status import StepError
from ..steps import AgentStepSpec
from ..workers.keeper import LaneKeeper
from ..workers.lanes import Lanes
from ..workers.loss import Lost
from ..workers.messages import pack_step, read_report
from .backend import SIGNALS_S, Session

Retire = Callable[[Lanes, Callable[[], bool]], None]
"""Ends lanes or keeps them; it is also given what tells whether the end is urgent."""


class ProcessSession(Session):
    """A run whose caller waits in `wait`, and looks after the workers while it does."""

    def __init__(self, lanes: Lanes, retire: Retire) -> None:
        self._lanes = lanes
        self._retire = retire
        self._is_woken = False
        self._specs: dict[int, AgentStepSpec] = {}
        self._refused: deque[Report] = deque()

    def start(self, ticket: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        try:
            message = pack_step(ticket, spec, attempt, timeout_s)
        except Exception as error:  # WireError, or MemoryError, or what a class of the caller's own raises
            reason = error if isinstance(error, WireError) else StepError.of(error)
            refusal = StepError("InvalidSpec", f"the spec cannot be sent to a worker: {reason}")
            self._refused.append(failure(ticket, spec, "invalid", refusal))
            return
        self._specs[ticket] = spec
        self._lanes.start(ticket, message, timeout_s, spec.task_id)

    def wait(self, timeout_s: float | None = None) -> Report | None:
        if (report := self.take()) is None:
            self._lanes.turn(SIGNALS_S if timeout_s is None else min(timeout_s, SIGNALS_S))
            report = self.take()
        return report

    def wake(self) -> None:
        self._is_woken = True
        self._lanes.wake()

    def cancel(self, grace_s: float) -> list[Report]:
        self._lanes.turn(0)
        reports = []
        while (report := self.take()) is not None:
            reports.append(report)
        self._lanes.abort()
        return reports

    def close(self) -> None:
        self._retire(self._lanes, lambda: self._is_woken)

    def abort(self) -> None:
        self._lanes.abort()

    def take(self) -> Report | None:
        if self._refused:
            return self._refused.popleft()
        if not self._lanes.answers:
            return None
        ticket, answer = self._lanes.answers.popleft()
        spec = self._specs.pop(ticket)
        if isinstance(answer, Lost):
            report = failure(ticket, spec, answer.status, answer.error, answer.started, answer.duration_s, answer.pid)
            return report._replace(exit_code=answer.exit_code, signal=answer.signal)
        return read_report(ticket, spec, answer)


class UnattendedProcessSession(Session):
    """A run whose caller may be away between calls: a thread of ours looks after the workers."""

    def __init__(self, lanes: Lanes, retire: Retire, on_end: Callable[[Report], None] | None = None) -> None:
        self._on_end = on_end
        self._inner = ProcessSession(lanes, retire)
        self._reports: SimpleQueue[Report | BaseException | None] = SimpleQueue()
        self._keeper = LaneKeeper(lanes, self._pass_on, self._reports.put)

    def start(self, ticket: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        self._keeper.do(lambda: self._inner.start(ticket, spec, attempt, timeout_s))

    def wait(self, timeout_s: float | None = None) -> Report | None:
        try:
            report = self._reports.get(timeout=SIGNALS_S if timeout_s is None else min(timeout_s, SIGNALS_S))
        except Empty:
            return None
        if isinstance(report, BaseException):
            raise report
        return report

    def wake(self) -> None:
        self._inner.wake()  # for its end
        self._reports.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._keeper.stop()
        return [*self._arrived(), *self._inner.cancel(grace_s)]

    def close(self) -> None:
        self._keeper.stop()
        self._inner.close()

    def abort(self) -> None:
        self._keeper.stop()
        self._inner.abort()

    def _pass_on(self) -> None:
        while (report := self._inner.take()) is not None:
            if self._on_end is not None:
                self._on_end(report)
            self._reports.put(report)

    def _arrived(self) -> list[Report]:
        reports = []
        while not self._reports.empty():
            if isinstance(report := self._reports.get(), Report):
                reports.append(report)
        return reports
