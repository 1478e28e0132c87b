"""Steps on any other `concurrent.futures.Executor`, used as it is."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from functools import cached_property
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..events.senders import EventSender
from ..events.types import Event
from ..executors.attempt import run_attempt
from ..executors.current_step import Meter, StopSignal, begun, current_step
from ..executors.executor import AgentExecutor
from ..executors.step_events import EventForwarder, Gate
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from .backend import SIGNALS_S, RunContext, Session
from .hooks import Hooks

if TYPE_CHECKING:
    from ..limits.limiter import Limiter
    from ..records.usage import Usage
    from ..retry.policy import RetryRule

POLL_S = 0.05
"""How often to ask a pool whether a step has begun that has a timeout."""

MAX_REMOTE_EXECUTORS = 8
"""How many executors, the latest ones, a process of a foreign pool keeps set up."""


class ForeignSession(Session):
    """One run on somebody else's pool. What the pool cannot promise (isolation, killing) stays so.

    The pool may run steps in this process or in others: which, it tells by pickling them or not. In other processes
    `setup` runs once each, `teardown` when they end, and the events of a step come together with its report. A step
    that is overdue is given up: it is reported, and what comes of it later is dropped.
    """

    may_run_inline = True

    def __init__(self, pool: Executor, context: RunContext) -> None:
        self._pool = pool
        self._stop = context.stop
        self._meter = context.meter
        self._forward = None if context.event_tx is None else EventForwarder(context.event_tx)
        self._home = _Home(context.executor, context.event_tx, context.retry_rule, context.stop, context.meter)
        self._home.hooks.arrive()
        if _runs_in_processes(pool):
            self._home.payload  # noqa: B018 - refused now, before any step runs, if it does not pickle
        self._begun: dict[int, _ForeignStep] = {}
        self._given_up: list[Future[_Result]] = []
        self._ended: SimpleQueue[tuple[_ForeignStep, BaseException | None, _Result | None] | None] = SimpleQueue()

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        step = self._begun[index] = _ForeignStep(self._home, index, spec, attempt, timeout_s)
        try:
            future = self._pool.submit(step)
        except Exception as error:  # a pool that is broken or shut down: the step says so
            self._ended.put((step, error, None))
        else:
            step.future = future
            future.add_done_callback(lambda done: self._ended.put((step, *_result_of(done))))

    def wait(self, timeout_s: float | None = None) -> Report | None:
        until = math.inf if timeout_s is None else monotonic() + timeout_s
        while True:
            look_at, report = self._look() if self._ended.empty() else (0.0, None)
            if report is not None:
                return report
            left = min(until, look_at) - monotonic()
            try:
                ended = self._ended.get(timeout=max(0.0, min(left, SIGNALS_S)))
            except Empty:
                if monotonic() >= until or timeout_s is None:
                    return None
                continue
            if ended is None:
                return None
            step, error, result = ended
            if self._begun.get(step.index) is step:
                del self._begun[step.index]
                return self._report(step, error, result)
            if isinstance(result, tuple) and not isinstance(result, Report):  # given up, but it has used that up
                for usage in result[2]:
                    self._meter.add(step.index, usage)

    def wake(self) -> None:
        self._ended.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._stop.set()
        running = [step for step in self._begun.values() if step.future is not None and not step.future.cancel()]
        reports: list[Report] = []
        until = monotonic() + grace_s
        while (left := until - monotonic()) > 0 and any(self._begun.get(step.index) is step for step in running):
            if (report := self.wait(min(POLL_S, left))) is not None and report.status != "cancelled":
                reports.append(report)
        return reports

    def close(self) -> None:
        self._home.hooks.depart()

    def abort(self) -> None:
        self._stop.set()
        for step in self._begun.values():
            if step.future is not None:
                step.future.cancel()
        self._home.hooks.depart()

    def _look(self) -> tuple[float, Report | None]:
        """Return when to look for overdue steps again, or the report of one."""
        look_at, now = math.inf, monotonic()
        self._given_up = [future for future in self._given_up if not future.done()]
        free = getattr(self._pool, "_max_workers", 1) - len(self._given_up)
        for step in self._begun.values():
            if step.future is not None and step.is_remote and step.future.running():
                # One in this process tells when it begins. Of one in another it is known only that the pool has given
                # it away; it has begun when there is a worker for it.
                free -= 1
                if step.began is None and free >= 0:
                    step.began = now
            if step.timeout_s is None or (step.future is not None and step.future.done()):
                continue
            if step.began is None:
                look_at = min(look_at, now + POLL_S)
            elif now < step.began + step.timeout_s:
                look_at = min(look_at, step.began + step.timeout_s)
            else:
                del self._begun[step.index]
                step.is_given_up = True
                if step.future is not None:
                    self._given_up.append(step.future)
                return now, _given_up(step, now - step.began)
        return look_at, None

    def _report(self, step: _ForeignStep, error: BaseException | None, result: _Result | None) -> Report:
        index, spec = step.index, step.spec
        if isinstance(result, Report):
            return result
        if result is not None:
            return self._arrived(index, spec, *result)
        if error is None or isinstance(error, CancelledError):
            return failure(index, spec, "cancelled", StepError("CancelledError", "the pool cancelled the step"))
        return failure(index, spec, "crashed" if isinstance(error, BrokenExecutor) else "raised", StepError.of(error))

    def _arrived(
        self, index: int, spec: AgentStepSpec, packed: bytes, events: list[str], usages: list[Usage]
    ) -> Report:
        from ..workers.messages import read_report, unpack

        for usage in usages:
            self._meter.add(index, usage)
        if self._forward is not None:
            for text in events:
                self._forward(text)
        return read_report(index, spec, unpack(packed))


def _given_up(step: _ForeignStep, duration_s: float) -> Report:
    limit_s = f"{step.timeout_s:g}"
    error = StepError("TimeoutError", f"timed out after {limit_s} s; its pool cannot stop it, so it is left to itself")
    return failure(step.index, step.spec, "timed_out", error, time() - duration_s, duration_s)


_Step = tuple[AgentStepSpec, int, int, float | None]
"""Spec, index, attempt and timeout in seconds."""

_Result = Report | tuple[bytes, list[str], "list[Usage]"]
"""What a step in this process returns, or one in another: the packed report, the events as JSON, and the usage."""


class _Home:
    """What the steps of one run share in the process that they started from."""

    def __init__(
        self,
        executor: AgentExecutor,
        event_tx: EventSender | None,
        rule: RetryRule | None,
        stop: StopSignal,
        meter: Meter,
    ) -> None:
        self.executor = executor
        self.event_tx = event_tx
        self.rule = rule
        self.stop = stop
        self.meter = meter
        self.hooks = Hooks(executor)
        self.token = f"{os.getpid()}-{next(_home_numbers)}"

    @cached_property
    def payload(self) -> bytes:
        from ..workers.pickling import pickle_executor

        return pickle_executor(self.executor, self.rule)

    def run(
        self,
        step: _Step,
        event_tx: EventSender | None,
        worker: str | int,
        meter: Meter,
        on_begin: Callable[[], None] | None = None,
    ) -> Report:
        spec, index, attempt, timeout_s = step
        self.hooks.arrive()
        try:
            setup_error = self.hooks.set_up()
            if setup_error is not None:
                return failure(index, spec, "raised", setup_error)
            if on_begin is not None:
                on_begin()
            running = begun((spec, index, attempt, timeout_s, None, self.stop, meter))
            return self.hooks.context.copy().run(run_attempt, self.executor, running, event_tx, worker, self.rule)
        finally:
            self.hooks.depart()


_home_numbers = itertools.count(1)


class _ForeignStep:
    """What a foreign pool is given to call. Pickling it, which only a pool of processes does, makes it a remote one.

    Attributes:
        future: The pool's; `None` until it has taken the step.
        began: When the step began, on the clock of `time.monotonic()`; `None` as long as that is not known.
        is_remote: Whether it was sent to another process.
        is_given_up: Whether it was reported before it ended.
    """

    def __init__(self, home: _Home, index: int, spec: AgentStepSpec, attempt: int, timeout_s: float | None) -> None:
        self.index = index
        self.spec = spec
        self.attempt = attempt
        self.timeout_s = timeout_s
        self.future: Future[_Result] | None = None
        self.began: float | None = None
        self.is_remote = False
        self.is_given_up = False
        self._home = home

    def __call__(self) -> _Result:
        home = self._home
        event_tx = home.event_tx
        if event_tx is not None and self.timeout_s is not None:
            event_tx = Gate(event_tx, lambda: not self.is_given_up)
        step = self.spec, self.index, self.attempt, self.timeout_s
        return home.run(step, event_tx, threading.current_thread().name, home.meter, self._begin)

    def _begin(self) -> None:
        self.began = monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        self.is_remote = True
        home = self._home
        wants_events = home.event_tx is not None
        step = self.spec, self.index, self.attempt, self.timeout_s
        return _RemoteStep, (home.token, home.payload, wants_events, step)


class _RemoteStep:
    def __init__(self, token: str, payload: bytes, wants_events: bool, step: _Step) -> None:
        self._token = token
        self._payload = payload
        self._wants_events = wants_events
        self._step = step

    def __call__(self) -> tuple[bytes, list[str], list[Usage]]:
        from ..workers.messages import pack_report

        events, meter = _EventList(), _UsageList()
        event_tx = events if self._wants_events else None
        home = _remote_home(self._token, self._payload)
        report = home.run(self._step, event_tx, os.getpid(), meter)
        return pack_report(report, self._step[0]), events.items, meter.items


class _EventList:
    def __init__(self) -> None:
        self.items: list[str] = []

    def send(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"an Event is sent, got {type(event).__name__}")
        self.items.append(str.__str__(event.to_json()))

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        current_step().add_usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd)


class _UsageList:
    def __init__(self) -> None:
        self.items: list[Usage] = []

    def add(self, index: int, usage: Usage) -> None:
        self.items.append(usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        """Nothing: what holds in the caller's process does not hold in another one's own runs."""


_remote_homes: OrderedDict[str, _Home] = OrderedDict()
_remote_lock = threading.Lock()


def _remote_home(token: str, payload: bytes) -> _Home:
    with _remote_lock:
        if token not in _remote_homes:
            if not _remote_homes:
                from multiprocessing.util import Finalize  # runs at the end of forked processes too, unlike atexit

                Finalize(None, _leave_remote_homes, exitpriority=10)
            executor, rule = pickle.loads(payload)
            home = _remote_homes[token] = _Home(executor, None, rule, StopSignal(), _UsageList())
            home.hooks.arrive()
            if len(_remote_homes) > MAX_REMOTE_EXECUTORS:
                _remote_homes.popitem(last=False)[1].hooks.depart()
        return _remote_homes[token]


def _leave_remote_homes() -> None:
    while _remote_homes:
        _remote_homes.popitem()[1].hooks.depart()


def _runs_in_processes(pool: Executor) -> bool:
    # By name: there is one in the standard library, in loky and elsewhere, and none is worth importing just to ask.
    return any("ProcessPool" in kind.__name__ for kind in type(pool).__mro__)


def _result_of(done: Future[_Result]) -> tuple[BaseException | None, _Result | None]:
    if done.cancelled():
        return None, None
    error = done.exception()
    return (None, done.result()) if error is None else (error, None)
