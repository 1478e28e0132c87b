"""Steps on daemon threads of this process."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any, ParamSpec, TypeVar

from attrs import frozen

from ..checks import positive_int
from ..executors.attempt import run_attempt, timed_out
from ..executors.current_step import RunningStep, begun, own_context
from ..executors.executor import TEARDOWN_GRACE_S, warn_of_teardown
from ..executors.step_events import RevocableSender
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..workers.futures import cancel_future, end_future
from .backend import POLL_S, SIGNALS_S, Backend, RunContext, Session
from .hooks import Hooks

__all__ = ["ThreadBackend"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

SOONEST_LOOK_S = 0.01
"""How much later than its deadline an overdue step may be found."""

LOOK_EVERY = 64
"""After so many reports that were there already, somebody has to look for overdue steps, though there are more."""

_session_numbers = itertools.count(1)
_NUDGE: Any = ()


class ThreadSession(Session):
    """Worker threads that take steps off one queue and put reports on another.

    The number of threads is the bound, so what waits in the queue beyond it never runs too early. The first worker
    in runs `setup`, the last one out `teardown`. A thread whose step is overdue is abandoned, and another one started
    in its place.
    """

    lookahead = 64

    def __init__(self, context: RunContext) -> None:
        self._executor = context.executor
        self._bound = context.bound
        self._event_tx = context.event_tx
        self._rule = context.retry_rule
        self._stop = context.stop
        self._meter = context.meter
        self._hooks = Hooks(context.executor)
        self._inbox: SimpleQueue[RunningStep | None] = SimpleQueue()
        # Tasks that go before those in the inbox; for each one more there is a nudge in the inbox.
        self._urgent: deque[RunningStep] = deque()
        self._outbox: SimpleQueue[Report | None] = SimpleQueue()
        self._on_end = context.on_end
        self._name = f"fanout-{next(_session_numbers)}"
        self._thread_numbers = itertools.count()
        self._threads: dict[str, threading.Thread] = {}
        # Places that `setup` is to stay for, of threads that could not be replaced.
        self._vacant = 0
        self._outstanding = 0
        # By their identity: steps with a deadline that are running, with their worker. Who takes one out reports it.
        self._limited: dict[int, tuple[RunningStep, str]] = {}
        self._shortest_s = math.inf
        self._look_at = math.inf
        self._look_in = LOOK_EVERY

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        self._outstanding += 1
        if len(self._threads) < min(self._bound, self._outstanding):
            self._add_thread()
        if timeout_s is not None:
            self._shortest_s = min(timeout_s, self._shortest_s)
            self._look_at = min(self._look_at, monotonic() + timeout_s)
        task = (spec, index, attempt, timeout_s, None, self._stop, self._meter)
        if attempt > 1:
            self._urgent.append(task)
            self._inbox.put(_NUDGE)
        else:
            self._inbox.put(task)

    def wait(self, timeout_s: float | None = None) -> Report | None:
        if timeout_s is None and self._look_in and not self._outbox.empty():
            self._look_in -= 1
            report = self._outbox.get()
        else:
            self._look_in = LOOK_EVERY
            report = self._wait_and_watch(timeout_s)
        if report is not None:
            self._outstanding -= 1
        return report

    def poll(self) -> Report | None:
        if self._outbox.empty() and monotonic() < self._look_at:
            return None
        return self.wait(0.0)

    def wake(self) -> None:
        self._outbox.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._drop_tasks()
        self._stop.set()
        self._dismiss()
        reports: list[Report] = []
        until = monotonic() + grace_s
        while (left := until - monotonic()) > 0 and any(thread.is_alive() for thread in self._threads.values()):
            if (report := self.wait(min(POLL_S, left))) is not None:
                reports.append(report)
        while not self._outbox.empty():
            if (report := self.poll()) is not None:
                reports.append(report)
        return reports

    def close(self) -> None:
        self._dismiss()
        until = monotonic() + TEARDOWN_GRACE_S
        for thread in self._threads.values():
            while thread.is_alive():
                thread.join(POLL_S)
                if not self._outbox.empty():  # woken
                    return
                if monotonic() >= until:
                    warn_of_teardown(logger, "its thread is abandoned")
                    return

    def abort(self) -> None:
        self._drop_tasks()
        self._stop.set()
        self._dismiss()

    def _drop_tasks(self) -> None:
        self._urgent.clear()
        with contextlib.suppress(Empty):
            while True:
                self._inbox.get_nowait()

    def _dismiss(self) -> None:
        while self._vacant:  # first, so that `teardown` is left to a thread, if there is one
            self._vacant -= 1
            self._hooks.depart()
        for _ in self._threads:
            self._inbox.put(None)

    def _add_thread(self) -> None:
        thread_number = next(self._thread_numbers)
        name = f"{self._name}_{thread_number}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        if not self._vacant:
            self._hooks.arrive()
            self._vacant += 1
        try:
            thread.start()
        except RuntimeError:
            if thread_number == 0:
                raise
            # The system gives no more threads; the steps wait for those that there are, or for better times.
            self._bound = max(1, len(self._threads))
        else:
            self._vacant -= 1
            self._threads[name] = thread

    def _wait_and_watch(self, timeout_s: float | None) -> Report | None:
        now = monotonic()
        until = math.inf if timeout_s is None else now + timeout_s
        while True:
            if now >= self._look_at:
                self._abandon_overdue(now)
            if self._outstanding and not self._threads:
                self._add_thread()
            try:
                return self._outbox.get(timeout=max(0.0, min(until, self._look_at, now + SIGNALS_S) - now))
            except Empty:
                now = monotonic()
                if now >= until or timeout_s is None:
                    return None

    def _abandon_overdue(self, now: float) -> None:
        # What has not begun yet, or is just beginning, has at least the shortest timeout left.
        have_all_begun = self._outstanding <= len(self._limited)
        self._look_at = math.inf if have_all_begun else now + max(self._shortest_s, SOONEST_LOOK_S)
        for key, (step, worker) in list(self._limited.items()):
            deadline = step[4] or math.inf
            if now < deadline:
                self._look_at = min(self._look_at, deadline)
            elif self._limited.pop(key, None) is not None:
                self._abandon(step, worker, now)

    def _abandon(self, step: RunningStep, worker: str, now: float) -> None:
        _, _, _, timeout_s, deadline, _, _ = step
        duration_s = (timeout_s or 0.0) + now - (deadline or now)
        del self._threads[worker]
        and_then = f"; its thread {worker} is abandoned and replaced"
        self._outbox.put(timed_out(step, time() - duration_s, duration_s, worker, and_then))
        self._vacant += 1
        self._add_thread()

    def _work(self) -> None:
        setup_error = self._hooks.set_up()
        take, urgent = self._inbox.get, self._urgent
        give = self._outbox.put if self._on_end is None else self._give
        executor, event_tx, rule = self._executor, self._event_tx, self._rule
        context, name = self._hooks.context, threading.current_thread().name
        while True:
            task = None
            try:
                if (task := take()) is None:
                    break
                if (urgent or task is _NUDGE) and (task := self._swapped(task)) is None:
                    continue
                if setup_error is not None:
                    give(failure(task[1], task[0], "raised", setup_error))
                elif task[3] is None:  # no timeout
                    give(context.copy().run(run_attempt, executor, task, event_tx, name, rule))
                elif not self._run_limited(begun(task), name):
                    return
            except BaseException as error:
                # Ours, or memory ran out, or somebody raised it in this thread from outside (as watchdogs do), just
                # now. The run must not wait for ever.
                if task is not None:
                    give(failure(task[1], task[0], "raised", StepError.of(error)))
        self._hooks.depart()

    def _give(self, report: Report) -> None:
        if self._on_end is not None:
            self._on_end(report)
        self._outbox.put(report)

    def _swapped(self, task: RunningStep) -> RunningStep | None:
        """Return the most urgent task in place of this one; `None` if it has been dropped."""
        if task is not _NUDGE:
            self._urgent.append(task)
        return self._urgent.popleft() if self._urgent else None

    def _run_limited(self, step: RunningStep, worker: str) -> bool:
        """Run a step that has a deadline; return whether this thread still has its place."""
        key = id(step)
        self._limited[key] = step, worker
        event_tx = None if self._event_tx is None else RevocableSender(self._event_tx, lambda: key in self._limited)
        try:
            report = self._hooks.context.copy().run(run_attempt, self._executor, step, event_tx, worker, self._rule)
        except BaseException as error:  # as in `_work`
            report = failure(step[1], step[0], "raised", StepError.of(error))
        if self._limited.pop(key, None) is None:
            return False  # abandoned: reported, replaced, and gone from the count
        self._give(report)
        return True


class ThreadBackend(Backend):
    """Steps on daemon threads: cheap, nothing is pickled, made for steps that wait (LLM calls, subprocesses).

    What it cannot do: a step that kills its process kills yours, and a thread cannot be stopped from outside.
    Its threads are daemons, so that a hung step cannot keep the interpreter from exiting; the threads of
    `concurrent.futures.ThreadPoolExecutor` are joined at exit.

    Args:
        max_workers: The number of threads for `submit`; a `Runner` brings its own bound.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._max_workers = (
            min(32, (os.cpu_count() or 1) + 4) if max_workers is None else positive_int("max_workers", max_workers)
        )
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._waiting = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._is_shut_down = False
        weakref.finalize(self, _dismiss, self._threads, self._calls)

    def open(self, context: RunContext) -> ThreadSession:
        return ThreadSession(context)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` in a copy of the caller's context; see `concurrent.futures.Executor`.

        Raises:
            RuntimeError: The backend is shut down, or there are no threads to be had; nothing is scheduled then.
        """
        future: Future[T] = Future()
        call = _Call(future, own_context(), partial(fn, *args, **kwargs))
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._waiting.acquire(blocking=False) and len(self._threads) < self._max_workers:
                self._add_thread()
            self._calls.put(call)
        return future

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_serve_calls, args=(self._calls, self._waiting), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had: calls wait for those that there are, if there are any
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of the threads of `submit`; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._is_shut_down = True
        # Nothing is submitted from here on, and callbacks of what is cancelled may do as they like.
        if cancel_futures:
            _cancel_all(self._calls)
        _dismiss(self._threads, self._calls)
        if wait:
            for thread in self._threads:
                thread.join()


@frozen
class _Call:
    future: Future[Any]
    context: contextvars.Context
    function: Callable[[], Any]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.context.run(self.function)
        except BaseException as error:  # a future hands on what its function raised, whatever it is
            end_future(self.future, None, error)
        else:
            end_future(self.future, result)


def _serve_calls(calls: SimpleQueue[_Call | None], waiting: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # the result belongs to the future alone while this thread waits
        waiting.release()


def _cancel_all(calls: SimpleQueue[_Call | None]) -> None:
    try:
        while True:
            if (call := calls.get_nowait()) is not None:  # which is what an earlier shutdown put there
                cancel_future(call.future)
    except Empty:
        return


def _dismiss(threads: list[threading.Thread], calls: SimpleQueue[_Call | None]) -> None:
    for _ in threads:
        calls.put(None)
