"""One run on daemon threads of this process."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
from collections import deque
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any

from ..executors.async_steps import is_waiting, note_if_blocked
from ..executors.attempt import run_attempt, timed_out
from ..executors.current_step import RunningStep, begun
from ..executors.executor import TEARDOWN_GRACE_S, warn_of_teardown
from ..executors.step_events import RevocableSender
from ..executors.stopping import STOP_BOUND_S, patience_with, threads_that_stop
from ..executors.thread_start import start_thread
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from .backend import POLL_S, SIGNALS_S, RunContext, Session
from .copies import MakeCopy, ThreadCopies
from .hooks import Hooks
from .left_programs import LeftPrograms

logger = logging.getLogger(__name__)

MIN_CHECK_INTERVAL_S = 0.01
"""How many seconds after its deadline an overdue step may be found."""

CHECK_AFTER_REPORTS = 64
"""After so many reports without a wait there is a check for overdue steps, even if more reports are ready."""

_session_numbers = itertools.count(1)
_TAKE_URGENT: Any = ()
"""Stands in the inbox for a task among the urgent ones."""


class ThreadSession(Session):
    """Worker threads that take steps off one queue and put reports on another.

    The number of threads is the bound, so no more steps than that run at once. The first thread runs `setup`, the last
    one to end runs `teardown`. A thread whose step is overdue is abandoned, and another one is started in its place;
    only a step that stops by itself is waited for, for a moment.

    If the executor is copied, each thread sets up a copy before it takes a step, and tears it down when it ends; an
    abandoned one too.

    Args:
        context: What there is to know of the run.
        make_copy: Makes the copies of the executor; `None` if the threads share it.
    """

    lookahead = 64

    def __init__(self, context: RunContext, make_copy: MakeCopy | None = None) -> None:
        self._bound = context.bound
        self._event_tx = context.event_tx
        self._rule = context.retry_rule
        self._stop = context.stop
        self._meter = context.meter
        self._hooks = Hooks(context.executor)
        self._copies = None if make_copy is None else ThreadCopies(make_copy)
        self._inbox: SimpleQueue[RunningStep | None] = SimpleQueue()
        # Tasks that go before those in the inbox; for each one that is added, a `_TAKE_URGENT` goes into the inbox.
        self._urgent: deque[RunningStep] = deque()
        self._outbox: SimpleQueue[Report | None] = SimpleQueue()
        self._on_end = context.on_end
        self._name = f"fanout-{next(_session_numbers)}"
        self._thread_numbers = itertools.count()
        self._threads: dict[str, threading.Thread] = {}
        # The threads of overdue async steps, which end when their tasks have handled the cancellation.
        self._cancelling: dict[str, threading.Thread] = {}
        # Registrations of threads that were not started yet: until then the executor must not be torn down.
        self._unstarted = 0
        self._outstanding = 0
        # The running steps with a deadline and their worker, by the identity of the step. Who removes one reports it.
        self._limited: dict[int, tuple[RunningStep, str]] = {}
        self._left_programs = LeftPrograms()
        self._shortest_s = math.inf
        self._check_at = math.inf
        self._reports_until_check = CHECK_AFTER_REPORTS

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        self._outstanding += 1
        if len(self._threads) < min(self._bound, self._outstanding):
            self._add_thread()
        if timeout_s is not None:
            self._shortest_s = min(timeout_s, self._shortest_s)
            self._check_at = min(self._check_at, monotonic() + timeout_s)
        task = (spec, index, attempt, timeout_s, None, self._stop, self._meter)
        if attempt > 1:
            self._urgent.append(task)
            self._inbox.put(_TAKE_URGENT)
        else:
            self._inbox.put(task)

    def wait(self, timeout_s: float | None = None) -> Report | None:
        if timeout_s is None and self._reports_until_check and not self._outbox.empty():
            self._reports_until_check -= 1
            report = self._outbox.get()
        else:
            self._reports_until_check = CHECK_AFTER_REPORTS
            report = self._wait_and_check(timeout_s)
        if report is not None:
            self._outstanding -= 1
        return report

    def poll(self) -> Report | None:
        if self._outbox.empty() and monotonic() < self._check_at:
            return None
        return self.wait(0.0)

    def wake(self) -> None:
        self._outbox.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._drop_tasks()
        self._stop.set()
        self._end_threads()
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
        self._end_threads()
        until = monotonic() + TEARDOWN_GRACE_S
        for name, thread in (*self._threads.items(), *self._cancelling.items()):
            if self._copies is not None and not self._copies.is_ready(name):
                continue  # it is still in setup() and has run no step
            while thread.is_alive():
                thread.join(POLL_S)
                if not self._outbox.empty():  # `wake` was called
                    return
                if monotonic() >= until:
                    warn_of_teardown(logger, "its thread is abandoned")
                    return

    def abort(self) -> None:
        self._drop_tasks()
        self._stop.set()
        self._end_threads()
        self._await_steps_that_stop()

    def _await_steps_that_stop(self) -> None:
        """Wait a moment for threads whose steps kill their programs and stop by themselves; `wake` cuts it short."""
        until = monotonic() + STOP_BOUND_S
        stopping = threads_that_stop(self._stop)
        threads = [thread for thread in self._threads.values() if thread.ident in stopping]
        while (left := until - monotonic()) > 0 and any(thread.is_alive() for thread in threads):
            with contextlib.suppress(Empty):
                if self._outbox.get(timeout=min(POLL_S, left)) is None:
                    return

    def left_programs(self) -> str | None:
        if self._stop.is_set():
            self._left_programs.note_interrupt([thread for thread in self._threads.values() if thread.is_alive()])
        return self._left_programs.warning()

    def _drop_tasks(self) -> None:
        self._urgent.clear()
        with contextlib.suppress(Empty):
            while True:
                self._inbox.get_nowait()

    def _end_threads(self) -> None:
        while self._unstarted:  # first, so that `teardown` runs on a thread, if there is one
            self._unstarted -= 1
            self._hooks.unregister()
        if self._copies is not None:
            self._copies.end()
        for _ in self._threads:
            self._inbox.put(None)

    def _add_thread(self) -> None:
        thread_number = next(self._thread_numbers)
        name = f"{self._name}_{thread_number}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        if not self._unstarted:
            self._hooks.register()
            self._unstarted += 1
        try:
            start_thread(thread)
        except RuntimeError:
            if thread_number == 0:
                raise
            # The system has no more threads: the steps wait for the threads that run, or for a later try.
            self._bound = max(1, len(self._threads))
        else:
            self._unstarted -= 1
            self._threads[name] = thread

    def _ensure_thread(self) -> None:
        """Start a thread if there is none: none could be started before, or those without a copy have ended."""
        if not any(thread.is_alive() for thread in self._threads.values()):
            self._threads.clear()
            self._add_thread()

    def _wait_and_check(self, timeout_s: float | None) -> Report | None:
        now = monotonic()
        until = math.inf if timeout_s is None else now + timeout_s
        while True:
            if now >= self._check_at:
                self._abandon_overdue(now)
            if self._outstanding and (not self._threads or self._copies is not None):
                self._ensure_thread()
            try:
                return self._outbox.get(timeout=max(0.0, min(until, self._check_at, now + SIGNALS_S) - now))
            except Empty:
                now = monotonic()
                if now >= until or timeout_s is None:
                    return None

    def _abandon_overdue(self, now: float) -> None:
        # A step that has not begun yet, or is just beginning, has at least the shortest timeout left.
        have_all_begun = self._outstanding <= len(self._limited)
        self._check_at = math.inf if have_all_begun else now + max(self._shortest_s, MIN_CHECK_INTERVAL_S)
        for key, (step, worker) in list(self._limited.items()):
            deadline = step[4] or math.inf
            abandon_at = deadline if now < deadline else deadline + patience_with(step[5], step[1], step[2])
            if now < abandon_at:
                self._check_at = min(self._check_at, abandon_at)
            else:
                self._begin_to_cancel(step, worker)
                if self._limited.pop(key, None) is not None:
                    self._abandon(step, worker, now)
                elif self._cancelling.pop(worker, None) is not None:
                    self._hooks.unregister()

    def _begin_to_cancel(self, step: RunningStep, worker: str) -> None:
        """Let the thread of an async step go on until its task has ended: its executor is not torn down before."""
        if is_waiting(step[5], step[1]):
            self._cancelling[worker] = self._threads[worker]
            self._hooks.register()

    def _abandon(self, step: RunningStep, worker: str, now: float) -> None:
        _, _, _, timeout_s, deadline, _, _ = step
        duration_s = (timeout_s or 0.0) + now - (deadline or now)
        self._left_programs.note(self._threads.pop(worker).native_id, step[0].task_id)
        if self._copies is not None:
            self._copies.abandon(worker)
        and_then = f"; its thread {worker} is abandoned and replaced"
        if worker in self._cancelling:
            and_then = f"{note_if_blocked(step[5], step[1])}; its task is cancelled"
        self._outbox.put(timed_out(step, time() - duration_s, duration_s, worker, and_then))
        self._unstarted += 1
        self._add_thread()

    def _work(self) -> None:
        if self._copies is None:
            is_abandoned = self._serve(self._hooks, self._hooks.set_up())
        else:
            is_abandoned = self._work_on_copy(self._copies)
        # The registration of an abandoned thread is that of its replacement, unless it has got another one.
        if not is_abandoned or threading.current_thread().name in self._cancelling:
            self._hooks.unregister()

    def _work_on_copy(self, copies: ThreadCopies) -> bool:
        own = copies.prepare(threading.current_thread().name)
        if own is None:  # other threads run the steps
            return False
        if isinstance(own, StepError):
            return self._serve(self._hooks, own)
        try:
            return self._serve(own, None)
        finally:
            own.unregister()

    def _serve(self, hooks: Hooks, setup_error: StepError | None) -> bool:
        """Run steps on the executor of `hooks` until there are no more; return whether this thread was abandoned."""
        take, urgent = self._inbox.get, self._urgent
        report = self._outbox.put if self._on_end is None else self._report
        executor, event_tx, rule = hooks.executor, self._event_tx, self._rule
        context, name = hooks.context, threading.current_thread().name
        while True:
            task = None
            try:
                if (task := take()) is None:
                    return False
                if (urgent or task is _TAKE_URGENT) and (task := self._most_urgent(task)) is None:
                    continue
                if setup_error is not None:
                    report(failure(task[1], task[0], "raised", setup_error))
                elif task[3] is None:  # no timeout
                    report(context.copy().run(run_attempt, executor, task, event_tx, name, rule))
                elif not self._run_limited(hooks, begun(task), name):
                    return True
            except BaseException as error:
                # An internal error, or memory ran out, or other code raised it in this thread, as watchdogs do. The
                # run must not wait for ever.
                if task is not None:
                    report(failure(task[1], task[0], "raised", StepError.of(error)))

    def _report(self, report: Report) -> None:
        if self._on_end is not None:
            self._on_end(report)
        self._outbox.put(report)

    def _most_urgent(self, task: RunningStep) -> RunningStep | None:
        """Return the task to run first, and queue this one if it is another; `None` if tasks have been dropped."""
        if task is not _TAKE_URGENT:
            self._urgent.append(task)
        return self._urgent.popleft() if self._urgent else None

    def _run_limited(self, hooks: Hooks, step: RunningStep, worker: str) -> bool:
        """Run a step that has a deadline; return false if this thread was abandoned meanwhile."""
        key = id(step)
        self._limited[key] = step, worker
        event_tx = None if self._event_tx is None else RevocableSender(self._event_tx, lambda: key in self._limited)
        try:
            report = hooks.context.copy().run(run_attempt, hooks.executor, step, event_tx, worker, self._rule)
        except BaseException as error:  # as in `_work`
            report = failure(step[1], step[0], "raised", StepError.of(error))
        if self._limited.pop(key, None) is None:
            return False  # the step was reported when this thread was abandoned
        self._report(report)
        return True
