"""One run on any other `concurrent.futures.Executor`, used as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from queue import Empty, SimpleQueue
from time import monotonic, time

from ..executors.async_steps import is_waiting, note_if_blocked
from ..executors.step_events import EventForwarder
from ..executors.stopping import STOP_BOUND_S, patience_with
from ..records.report import Report, failure
from ..records.status import Status, StepError
from ..records.steps import AgentStepSpec
from .backend import POLL_S, SIGNALS_S, RunContext, Session
from .copies import copier_of
from .foreign_step import ForeignRun, ForeignStep, Result
from .foreign_worker import RemoteResult
from .large_payload import warn_of_large_payload
from .left_programs import LeftPrograms
from .places import places_of
from .state_file import StateFile

UNSEEN_S = 30.0
"""If no step has set a state for so many seconds, the processes of the pool are presumed unable to open the file."""


class ForeignSession(Session):
    """One run on a foreign pool, which need not isolate its steps and cannot kill them.

    The pool may run steps in this process or in others; a step that it pickles runs in another one. In each of those
    `setup` runs once, `teardown` runs when the process ends, and the events of a step come together with its report. A
    step that is overdue is given up: it is reported, and its later result is dropped.

    If the executor is not thread-safe, each thread that calls a step sets up a copy. No thread of a pool can be chosen
    to tear its copy down, so that is done by whoever closes the run.
    """

    may_run_inline = True

    def __init__(self, pool: Executor, context: RunContext) -> None:
        self._pool = pool
        self._context = context
        self._forward = None if context.event_tx is None else EventForwarder(context.event_tx)
        is_remote = _runs_in_processes(pool)
        make_copy = None if is_remote else context.ask(lambda: copier_of(context.executor), None)
        self._run = ForeignRun(context, make_copy)
        if is_remote:
            # Now, so that an executor that does not pickle is refused before any step runs.
            warn_of_large_payload(pool, self._run.payload)
        self._places = places_of(pool)
        self._numbers = itertools.count(1)
        self._given_up: list[ForeignStep] = []
        self._left_programs = LeftPrograms()
        self._steps: dict[int, ForeignStep] = {}
        self._ended: SimpleQueue[tuple[ForeignStep, BaseException | None, Result | None] | None] = SimpleQueue()
        # How to find out which steps have begun: see `_find_begun`.
        self._has_seen_state = False
        self._is_out_of_reach = False
        self._has_said_running = False
        self._last_end = -math.inf
        self._gave_up_waiting_at = math.inf

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        step = self._steps[index] = ForeignStep(self._run, (spec, index, attempt, timeout_s), next(self._numbers))
        try:
            future = self._pool.submit(step)
        except Exception as error:  # the pool is broken or shut down; the report of the step says so
            step.withdraw()  # some pools have queued it by then, and must not run it any more
            self._ended.put((step, error, None))
        else:
            step.future = future
            self._run.count_in()
            self._places.add(step)
            future.add_done_callback(lambda done: self._on_done(step, done))

    def wait(self, timeout_s: float | None = None) -> Report | None:
        until = math.inf if timeout_s is None else monotonic() + timeout_s
        while True:
            check_at, report = self._check() if self._ended.empty() else (0.0, None)
            if report is not None:
                return report
            left = min(until, check_at) - monotonic()
            try:
                ended = self._ended.get(timeout=max(0.0, min(left, SIGNALS_S)))
            except Empty:
                if monotonic() >= until or timeout_s is None:
                    return None
                continue
            if ended is None:
                return None
            if (report := self._report_of(*ended)) is not None:
                return report

    def wake(self) -> None:
        self._ended.put(None)

    def cancel(self, grace_s: float) -> list[Report]:
        self._run.end()
        running = [step for step in self._steps.values() if step.future is not None and not step.future.cancel()]
        reports: list[Report] = []
        until = monotonic() + grace_s
        while (left := until - monotonic()) > 0 and any(self._steps.get(step.index) is step for step in running):
            if (report := self.wait(min(POLL_S, left))) is not None and report.status != "cancelled":
                reports.append(report)
        while not self._ended.empty():  # the steps that have ended since; without any grace all that have ended
            if (report := self.wait(0.0)) is not None and report.status != "cancelled":
                reports.append(report)
        return reports

    def close(self) -> None:
        self._run.close()

    def abort(self) -> None:
        self._run.end()
        for step in self._steps.values():
            if step.future is not None:
                step.future.cancel()
        self._run.close()
        self._await_steps_that_stop()

    def _await_steps_that_stop(self) -> None:
        """Wait a moment for the steps that stop by themselves: they kill their programs. `wake` cuts it short."""
        until, stop = monotonic() + STOP_BOUND_S, self._context.stop
        steps = [step for step in self._steps.values() if patience_with(stop, step.index, step.attempt)]
        while (left := until - monotonic()) > 0 and not all(step.is_done for step in steps):
            try:
                if self._ended.get(timeout=min(POLL_S, left)) is None:
                    return
            except Empty:
                continue

    def left_programs(self) -> str | None:
        interrupted: Iterable[ForeignStep] = ()
        if self._context.stop.is_set():
            self._left_programs.note_interrupt([])
            interrupted = self._steps.values()
        for step in (*self._given_up, *interrupted):
            if not step.is_done:
                self._left_programs.note(step.thread, step.spec.task_id)
        return self._left_programs.warning()

    def _on_done(self, step: ForeignStep, done: Future[Result]) -> None:
        """Note that the pool has ended a step. Called in any thread."""
        self._places.discard(step)
        self._run.count_out(is_dropped=not (step.is_remote and done.cancelled()))
        self._ended.put((step, *_result_of(done)))

    def _report_of(self, step: ForeignStep, error: BaseException | None, result: Result | None) -> Report | None:
        """Return the report of a step that its pool has ended; `None` if the step was given up before."""
        if not step.is_withdrawn:
            self._last_end = monotonic()
        if isinstance(result, RemoteResult):
            self._is_out_of_reach |= not result.is_state_visible
            for usage in result.usages:  # counts also for a step that was given up
                self._context.meter.add(step.index, usage)
        if self._steps.get(step.index) is not step:
            return None
        del self._steps[step.index]
        if isinstance(result, RemoteResult):
            return self._read_remote(step, result)
        return _ended_in_the_pool(step, error) if result is None else result

    def _read_remote(self, step: ForeignStep, result: RemoteResult) -> Report:
        from ..workers.messages import read_report, unpack

        if self._forward is not None:
            for text in result.events:
                self._forward(text)
        return read_report(step.index, step.spec, unpack(result.packed))

    # Steps that take too long, or never begin -------------------------------------------------------------------------

    def _check(self) -> tuple[float, Report | None]:
        """Return when to check the steps again, or the report of one that is given up."""
        check_at, now = math.inf, monotonic()
        self._find_begun(now)
        for step in self._steps.values():
            if step.timeout_s is None or step.is_done:
                continue
            began = step.presumed if step.began is None else step.began
            if began is None:
                check_at = min(check_at, now + POLL_S)
            elif now < (give_up_at := self._give_up_at(step, began + step.timeout_s, now)):
                check_at = min(check_at, give_up_at)
            elif step.began is not None or step.withdraw():
                return now, self._give_up(step, now - began)
            else:  # only now it is seen that the pool has called it
                step.presumed = None
        return check_at, self._cancel_one_without_place(now)

    def _give_up_at(self, step: ForeignStep, deadline: float, now: float) -> float:
        return deadline if now < deadline else deadline + patience_with(self._context.stop, step.index, step.attempt)

    def _find_begun(self, now: float) -> None:
        """Find out which steps have begun.

        A step in this process sets `began` itself. A step in another process sets its state in the file, if it can open
        it. If it cannot, it is presumed to have begun when the pool says that it is running and has a place for it. If
        the pool says neither how many places it has nor that any step is running, it is presumed to begin at once.
        """
        unseen = []
        for step in self._steps.values():
            if step.began is None and step.is_remote and not step.is_done:
                if state := step.state:
                    self._has_seen_state, step.presumed = True, None
                if state == StateFile.BEGUN:
                    step.began = now
                elif not state:
                    unseen.append(step)
        if self._is_out_of_reach or self._run.states is None:
            self._presume(unseen, now)
        elif not self._has_seen_state:
            self._presume([step for step in unseen if now >= step.submitted + UNSEEN_S], now)
        else:
            for step in unseen:
                step.presumed = None

    def _presume(self, unseen: list[ForeignStep], now: float) -> None:
        """Presume which of the steps without a state have begun."""
        size, free = _size_of(self._pool), math.inf
        if size is not None:
            taken = sum(step.began is not None and not step.is_done for step in self._steps.values())
            free = size - len(self._places.given_up()) - taken
        for step in unseen:
            if step.future is not None and step.future.running():
                self._has_said_running = True
                free -= 1
                has_begun = free >= 0
            else:
                has_begun = size is None and not self._has_said_running
            if has_begun and step.presumed is None:
                step.presumed = now

    def _give_up(self, step: ForeignStep, duration_s: float) -> Report:
        del self._steps[step.index]
        is_async = is_waiting(self._context.stop, step.index)
        step.is_given_up = True
        self._given_up.append(step)
        reason = f"timed out after {step.timeout_s:g} s"
        if step.began is None:
            reason += " in its pool, which does not tell when a step begins"
        note = note_if_blocked(self._context.stop, step.index)
        and_then = "its task is cancelled" if is_async else "its pool cannot stop it, so it is left to itself"
        error = StepError("TimeoutError", f"{reason}{note}; {and_then}")
        return failure(step.index, step.spec, "timed_out", error, time() - duration_s, duration_s)

    def _cancel_one_without_place(self, now: float) -> Report | None:
        """Return the report of a step that is cancelled because steps that were given up occupy every place."""
        lost = self._places.lost(_size_of(self._pool), now)
        if lost is None:
            self._gave_up_waiting_at = math.inf
            return None
        since, patience_s, reason = lost
        since = max(since, self._last_end)
        if self._gave_up_waiting_at < since:  # since then a step has ended
            self._gave_up_waiting_at = math.inf
        for step in self._steps.values():
            if step.future is None or step.is_done or step.has_place:
                continue
            # After one has waited long enough, the steps that were submitted later need not wait as well.
            if now >= min(max(since, step.submitted) + patience_s, self._gave_up_waiting_at) and step.withdraw():
                self._gave_up_waiting_at = min(now, self._gave_up_waiting_at)
                del self._steps[step.index]
                return failure(step.index, step.spec, "cancelled", StepError("CancelledError", reason))
        return None


def _ended_in_the_pool(step: ForeignStep, error: BaseException | None) -> Report:
    if error is None or isinstance(error, CancelledError):
        reason = StepError("CancelledError", "the pool cancelled the step")
        return failure(step.index, step.spec, "cancelled", reason)
    status: Status = "crashed" if isinstance(error, BrokenExecutor) else "raised"
    return failure(step.index, step.spec, status, StepError.of(error))


def _size_of(pool: Executor) -> int | None:
    """Return how many steps `pool` can run at once; `None` if it does not say."""
    size = getattr(pool, "_max_workers", None)  # of the pools of the standard library, and of similar ones
    return size if isinstance(size, int) and size > 0 else None


def _runs_in_processes(pool: Executor) -> bool:
    # By name: the standard library, loky and others each have one, and to import them just for this would be slow.
    return any("ProcessPool" in kind.__name__ for kind in type(pool).__mro__)


def _result_of(done: Future[Result]) -> tuple[BaseException | None, Result | None]:
    if done.cancelled():
        return None, None
    error = done.exception()
    return (None, done.result()) if error is None else (error, None)
