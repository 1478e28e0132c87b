"""Runs of steps over a set of lanes, with or without a thread that watches the workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ..errors import ExecutorNotPicklable
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..wire.item_spec import ItemSpec
from ..wire.schema_text import NotASchema
from ..workers.lanes import Lanes
from ..workers.loss import Lost
from ..workers.messages import pack_item_step, pack_step, read_report
from ..workers.pickling.item import ItemNotPicklable, PickleItem
from ..workers.watcher_thread import WatcherThread
from .backend import SIGNALS_S, Session

Retire = Callable[[Lanes, Callable[[], bool]], None]
"""Ends lanes, or keeps their workers; its second argument returns whether to kill them at once."""


class ProcessSession(Session):
    """A run whose caller handles what workers send while it waits in `wait`."""

    def __init__(self, lanes: Lanes, retire: Retire, pickle_item: PickleItem) -> None:
        self._lanes = lanes
        self._retire = retire
        self._pickle_item = pickle_item
        self._is_woken = False
        self._specs: dict[int, AgentStepSpec] = {}
        self._refused: deque[Report] = deque()

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        try:
            if type(spec) is ItemSpec:
                message = pack_item_step(index, spec, attempt, timeout_s, self._pickle_item)
            else:
                message = pack_step(index, spec, attempt, timeout_s)
        except ItemNotPicklable as error:
            self._refused.append(failure(index, spec, "invalid", StepError("InvalidItem", str(error))))
            return
        except NotASchema as fault:
            self._refused.append(failure(index, spec, "invalid", fault.error))
            return
        except Exception as error:  # such as MemoryError
            refusal = StepError("InvalidSpec", f"the spec cannot be sent to a worker: {StepError.of(error)}")
            self._refused.append(failure(index, spec, "invalid", refusal))
            return
        self._specs[index] = spec
        self._lanes.start(index, message, timeout_s, spec.task_id)

    def wait(self, timeout_s: float | None = None) -> Report | None:
        if (report := self.take()) is None:
            self._lanes.turn(SIGNALS_S if timeout_s is None else min(timeout_s, SIGNALS_S))
            if (refusal := self.refusal()) is not None:
                raise refusal
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

    def refusal(self) -> ExecutorNotPicklable | None:
        """Return the error that ends the run because no worker can load the executor; `None` if there is none."""
        if self._lanes.load_failure is None:
            return None
        from ..workers.pickling.unpicklable import refuse_unloadable  # imported lazily: only to say what is wrong

        return refuse_unloadable(self._lanes.load_failure)

    def take(self) -> Report | None:
        if self._refused:
            return self._refused.popleft()
        if not self._lanes.answers:
            return None
        index, answer = self._lanes.answers.popleft()
        spec = self._specs.pop(index)
        if isinstance(answer, Lost):
            report = failure(index, spec, answer.status, answer.error, answer.started, answer.duration_s, answer.pid)
            report.exit_code, report.signal = answer.exit_code, answer.signal
            return report
        return read_report(index, spec, answer)


class UnattendedProcessSession(Session):
    """A run whose caller may be elsewhere between calls: a watcher thread handles what workers send."""

    def __init__(
        self,
        lanes: Lanes,
        retire: Retire,
        pickle_item: PickleItem,
        on_end: Callable[[Report], None] | None = None,
    ) -> None:
        self._on_end = on_end
        self._inner = ProcessSession(lanes, retire, pickle_item)
        self._reports: SimpleQueue[Report | BaseException | None] = SimpleQueue()
        self._watcher = WatcherThread(lanes, self._take_all, self._reports.put)

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        self._watcher.do(lambda: self._inner.start(index, spec, attempt, timeout_s))

    def wait(self, timeout_s: float | None = None) -> Report | None:
        try:
            report = self._reports.get(timeout=SIGNALS_S if timeout_s is None else min(timeout_s, SIGNALS_S))
        except Empty:
            return None
        if isinstance(report, BaseException):
            raise report
        return report

    def wake(self) -> None:
        self._inner.wake()  # this cuts its `close` short
        self._reports.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._watcher.stop()
        return [*self._received(), *self._inner.cancel(grace_s)]

    def close(self) -> None:
        self._watcher.stop()
        self._inner.close()

    def abort(self) -> None:
        self._watcher.stop()
        self._inner.abort()

    def _take_all(self) -> None:
        while (report := self._inner.take()) is not None:
            if self._on_end is not None:
                self._on_end(report)
            self._reports.put(report)
        if (refusal := self._inner.refusal()) is not None:
            self._reports.put(refusal)

    def _received(self) -> list[Report]:
        reports = []
        while not self._reports.empty():
            if isinstance(report := self._reports.get(), Report):
                reports.append(report)
        return reports
