"""Runs of steps over a set of lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from ..attempt import Report, failure
from ..errors import WireError
from ..records import StepError
from ..steps import AgentStepSpec
from ..workers.keeper import LaneKeeper
from ..workers.lanes import Lanes, Lost
from ..workers.messages import pack_step, read_report
from .backend import Session


class ProcessSession(Session):
    """A run whose caller waits in `wait`, and looks after the workers while it does."""

    def __init__(self, lanes: Lanes, retire: Callable[[Lanes], None]) -> None:
        self._lanes = lanes
        self._retire = retire
        self._specs: dict[int, AgentStepSpec] = {}
        self._refused: deque[Report] = deque()

    def start(self, ticket: int, spec: AgentStepSpec) -> None:
        try:
            message = pack_step(ticket, spec)
        except Exception as error:  # WireError, or MemoryError, or what a class of the caller's own raises
            reason = error if isinstance(error, WireError) else StepError.of(error)
            refusal = StepError("InvalidSpec", f"the spec cannot be sent to a worker: {reason}")
            self._refused.append(failure(ticket, spec, "invalid", refusal))
            return
        self._specs[ticket] = spec
        self._lanes.start(ticket, message)

    def wait(self) -> Report:
        while (report := self.take()) is None:
            self._lanes.turn()
        return report

    def poll(self) -> Report | None:
        if (report := self.take()) is None:
            self._lanes.turn(0)
            report = self.take()
        return report

    def close(self) -> None:
        self._retire(self._lanes)

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
            return failure(ticket, spec, answer.status, answer.error, answer.started, answer.duration_s, answer.pid)
        return read_report(ticket, spec, answer)


class UnattendedProcessSession(Session):
    """A run whose caller may be away between calls: a thread of ours looks after the workers."""

    def __init__(self, lanes: Lanes, retire: Callable[[Lanes], None]) -> None:
        self._inner = ProcessSession(lanes, retire)
        self._reports: SimpleQueue[Report | BaseException] = SimpleQueue()
        self._keeper = LaneKeeper(lanes, self._pass_on, self._reports.put)

    def start(self, ticket: int, spec: AgentStepSpec) -> None:
        self._keeper.do(lambda: self._inner.start(ticket, spec))

    def wait(self) -> Report:
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def poll(self) -> Report | None:
        return None if self._reports.empty() else self.wait()

    def close(self) -> None:
        self._keeper.stop()
        self._inner.close()

    def abort(self) -> None:
        self._keeper.stop()
        self._inner.abort()

    def _pass_on(self) -> None:
        while (report := self._inner.take()) is not None:
            self._reports.put(report)
