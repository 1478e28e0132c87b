"""Steps on any other `concurrent.futures.Executor`, used as it is."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections import OrderedDict
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from ..attempt import Report, failure, run_attempt
from ..events import Event
from ..executor import AgentExecutor, EventSender
from ..records import StepError
from ..steps import AgentStepSpec
from .backend import Session
from .forwarding import EventForwarder
from .hooks import Hooks

MAX_REMOTE_EXECUTORS = 8
"""How many executors, the latest ones, a process of a foreign pool keeps set up."""


class ForeignSession(Session):
    """One run on somebody else's pool. What the pool cannot promise (isolation, killing) stays so.

    The pool may run steps in this process or in others: which, it tells by pickling them or not. In other processes
    `setup` runs once each, `teardown` when they end, and the events of a step come together with its report.
    """

    def __init__(self, pool: Executor, executor: AgentExecutor, event_tx: EventSender | None) -> None:
        self._pool = pool
        self._forward = None if event_tx is None else EventForwarder(event_tx)
        self._home = _Home(executor, event_tx)
        self._home.hooks.arrive()
        if _runs_in_processes(pool):
            self._home.payload  # noqa: B018 - refused now, before any step runs, if it does not pickle
        self._begun: dict[int, tuple[AgentStepSpec, Future[_Result] | None]] = {}
        self._ended: SimpleQueue[tuple[int, BaseException | None, _Result | None]] = SimpleQueue()

    def start(self, ticket: int, spec: AgentStepSpec) -> None:
        try:
            future = self._pool.submit(_ForeignStep(self._home, ticket, spec))
        except Exception as error:  # a pool that is broken or shut down: the step says so
            self._begun[ticket] = (spec, None)
            self._ended.put((ticket, error, None))
        else:
            self._begun[ticket] = (spec, future)
            future.add_done_callback(lambda done: self._ended.put((ticket, *_result_of(done))))

    def wait(self) -> Report:
        return self._report(*self._ended.get())

    def poll(self) -> Report | None:
        return None if self._ended.empty() else self.wait()

    def close(self) -> None:
        self._home.hooks.depart()

    def abort(self) -> None:
        for _, future in self._begun.values():
            if future is not None:
                future.cancel()
        self._home.hooks.depart()

    def _report(self, ticket: int, error: BaseException | None, result: _Result | None) -> Report:
        spec, _ = self._begun.pop(ticket)
        if isinstance(result, Report):
            return result
        if result is not None:
            return self._arrived(ticket, spec, *result)
        if error is None or isinstance(error, CancelledError):
            return failure(ticket, spec, "cancelled", StepError("CancelledError", "the pool cancelled the step"))
        return failure(ticket, spec, "crashed" if isinstance(error, BrokenExecutor) else "raised", StepError.of(error))

    def _arrived(self, ticket: int, spec: AgentStepSpec, packed: bytes, events: list[str]) -> Report:
        from ..workers.messages import read_report, unpack

        if self._forward is not None:
            for text in events:
                self._forward(text)
        return read_report(ticket, spec, unpack(packed))


_Result = Report | tuple[bytes, list[str]]
"""What a step in this process returns, or one in another: the packed report and the events as JSON."""


class _Home:
    """What the steps of one run share in the process that they started from."""

    def __init__(self, executor: AgentExecutor, event_tx: EventSender | None) -> None:
        self.executor = executor
        self.event_tx = event_tx
        self.hooks = Hooks(executor)
        self.token = f"{os.getpid()}-{next(_home_numbers)}"

    @cached_property
    def payload(self) -> bytes:
        from ..workers.pickling import pickle_executor

        return pickle_executor(self.executor)

    def run(self, ticket: int, spec: AgentStepSpec, event_tx: EventSender | None, worker: str | int) -> Report:
        self.hooks.arrive()
        try:
            setup_error = self.hooks.set_up()
            if setup_error is not None:
                return failure(ticket, spec, "raised", setup_error)
            return self.hooks.context.copy().run(run_attempt, self.executor, ticket, spec, event_tx, worker)
        finally:
            self.hooks.depart()


_home_numbers = itertools.count(1)


class _ForeignStep:
    """What a foreign pool is given to call. Pickling it, which only a pool of processes does, makes it a remote one."""

    def __init__(self, home: _Home, ticket: int, spec: AgentStepSpec) -> None:
        self._home = home
        self._ticket = ticket
        self._spec = spec

    def __call__(self) -> _Result:
        worker = threading.current_thread().name
        return self._home.run(self._ticket, self._spec, self._home.event_tx, worker)

    def __reduce__(self) -> tuple[Any, ...]:
        home = self._home
        wants_events = home.event_tx is not None
        return _RemoteStep, (home.token, home.payload, wants_events, self._ticket, self._spec)


class _RemoteStep:
    def __init__(self, token: str, payload: bytes, wants_events: bool, ticket: int, spec: AgentStepSpec) -> None:
        self._token = token
        self._payload = payload
        self._wants_events = wants_events
        self._ticket = ticket
        self._spec = spec

    def __call__(self) -> tuple[bytes, list[str]]:
        from ..workers.messages import pack_report

        events = _EventList()
        event_tx = events if self._wants_events else None
        home = _remote_home(self._token, self._payload)
        report = home.run(self._ticket, self._spec, event_tx, os.getpid())
        return pack_report(report, self._spec), events.items


class _EventList:
    def __init__(self) -> None:
        self.items: list[str] = []

    def send(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"an Event is sent, got {type(event).__name__}")
        self.items.append(str.__str__(event.to_json()))


_remote_homes: OrderedDict[str, _Home] = OrderedDict()
_remote_lock = threading.Lock()


def _remote_home(token: str, payload: bytes) -> _Home:
    with _remote_lock:
        if token not in _remote_homes:
            if not _remote_homes:
                from multiprocessing.util import Finalize  # runs at the end of forked processes too, unlike atexit

                Finalize(None, _leave_remote_homes, exitpriority=10)
            home = _remote_homes[token] = _Home(pickle.loads(payload), None)
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
