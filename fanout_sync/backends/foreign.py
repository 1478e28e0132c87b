"""Steps on any other `concurrent.futures.Executor`, used as it is."""

from __future__ import annotations

import itertools
import math
import os
import threading
import uuid
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from functools import cached_property
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any

from ..executors.step_events import EventForwarder, RevocableSender
from ..records.report import Report, failure
from ..records.status import Status, StepError
from ..records.steps import AgentStepSpec
from .backend import POLL_S, SIGNALS_S, RunContext, Session
from .foreign_worker import ExecutorInUse, RemoteCaller, RemoteResult, RemoteRun, RemoteStep, Step, too_late
from .places import places_of
from .state_file import StateFile

UNHEARD_S = 30.0
"""After so long without a word from any step it is presumed that the processes of a pool cannot reach this one."""


class ForeignSession(Session):
    """One run on somebody else's pool. What the pool cannot promise (isolation, killing) stays so.

    The pool may run steps in this process or in others: which, it tells by pickling them or not. In other processes
    `setup` runs once each, `teardown` when they end, and the events of a step come together with its report. A step
    that is overdue is given up: it is reported, and what comes of it later is dropped.
    """

    may_run_inline = True

    def __init__(self, pool: Executor, context: RunContext) -> None:
        self._pool = pool
        self._context = context
        self._forward = None if context.event_tx is None else EventForwarder(context.event_tx)
        self._run = _ForeignRun(context)
        if _runs_in_processes(pool):
            self._run.payload  # noqa: B018 - refused now, before any step runs, if it does not pickle
        self._places = places_of(pool)
        self._numbers = itertools.count(1)
        self._steps: dict[int, _ForeignStep] = {}
        self._ended: SimpleQueue[tuple[_ForeignStep, BaseException | None, _Result | None] | None] = SimpleQueue()
        # What is known of how this pool tells that a step has begun: see `_listen`.
        self._was_heard = False
        self._is_out_of_reach = False
        self._has_said_running = False
        self._last_end = -math.inf
        self._gave_up_waiting_at = math.inf

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        step = self._steps[index] = _ForeignStep(self._run, (spec, index, attempt, timeout_s), next(self._numbers))
        try:
            future = self._pool.submit(step)
        except Exception as error:  # a pool that is broken or shut down: the step says so
            self._ended.put((step, error, None))
        else:
            step.future = future
            self._run.enter()
            self._places.add(step)
            future.add_done_callback(lambda done: self._leave(step, done))

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
            if (report := self._taken(*ended)) is not None:
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
        while not self._ended.empty():  # what has ended since, and without any grace what had ended before
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

    def _leave(self, step: _ForeignStep, done: Future[_Result]) -> None:
        """Take note that the pool is done with a step; called in any thread."""
        self._places.discard(step)
        self._run.leave(is_dropped=not (step.is_remote and done.cancelled()))
        self._ended.put((step, *_result_of(done)))

    def _taken(self, step: _ForeignStep, error: BaseException | None, result: _Result | None) -> Report | None:
        """Return the report of a step that its pool has ended; `None` if it was given up before."""
        if not step.is_withdrawn:
            self._last_end = monotonic()
        if isinstance(result, RemoteResult):
            self._is_out_of_reach |= not result.is_heard
            for usage in result.usages:  # also of a step that was given up: it is used up all the same
                self._context.meter.add(step.index, usage)
        if self._steps.get(step.index) is not step:
            return None
        del self._steps[step.index]
        if isinstance(result, RemoteResult):
            return self._arrived(step, result)
        return _ended_in_the_pool(step, error) if result is None else result

    def _arrived(self, step: _ForeignStep, result: RemoteResult) -> Report:
        from ..workers.messages import read_report, unpack

        if self._forward is not None:
            for text in result.events:
                self._forward(text)
        return read_report(step.index, step.spec, unpack(result.packed))

    # Steps that take too long, or never begin -------------------------------------------------------------------------

    def _look(self) -> tuple[float, Report | None]:
        """Return when to look at the steps again, or the report of one that is given up."""
        look_at, now = math.inf, monotonic()
        self._listen(now)
        for step in self._steps.values():
            if step.timeout_s is None or step.is_done:
                continue
            began = step.presumed if step.began is None else step.began
            if began is None:
                look_at = min(look_at, now + POLL_S)
            elif now < began + step.timeout_s:
                look_at = min(look_at, began + step.timeout_s)
            elif step.began is not None or step.withdraw():
                return now, self._give_up(step, now - began)
            else:  # it was not heard until now
                step.presumed = None
        return look_at, self._end_what_gets_no_place(now)

    def _listen(self, now: float) -> None:
        """Find out which steps have begun.

        A step in this process says so itself, and one in another process does in the state file, if it can reach it.
        If it cannot, it is presumed to have begun when the pool says that it is running and has a place for it. A pool
        that says neither how many places it has nor that anything runs leaves only the moment of its submission.
        """
        silent = []
        for step in self._steps.values():
            if step.began is None and step.is_remote and not step.is_done:
                if state := step.state:
                    self._was_heard, step.presumed = True, None
                if state == StateFile.BEGUN:
                    step.began = now
                elif not state:
                    silent.append(step)
        if self._is_out_of_reach or self._run.states is None:
            self._presume(silent, now)
        elif not self._was_heard:
            self._presume([step for step in silent if now >= step.submitted + UNHEARD_S], now)
        else:
            for step in silent:
                step.presumed = None

    def _presume(self, silent: list[_ForeignStep], now: float) -> None:
        """Take those steps for begun that nobody has heard of and that have probably begun."""
        size, free = _size_of(self._pool), math.inf
        if size is not None:
            taken = sum(step.began is not None and not step.is_done for step in self._steps.values())
            free = size - len(self._places.given_up()) - taken
        for step in silent:
            if step.future is not None and step.future.running():
                self._has_said_running = True
                free -= 1
                has_begun = free >= 0
            else:
                has_begun = size is None and not self._has_said_running
            if has_begun and step.presumed is None:
                step.presumed = now

    def _give_up(self, step: _ForeignStep, duration_s: float) -> Report:
        del self._steps[step.index]
        step.is_given_up = True
        reason = f"timed out after {step.timeout_s:g} s"
        if step.began is None:
            reason += " in its pool, which does not tell when a step begins"
        error = StepError("TimeoutError", f"{reason}; its pool cannot stop it, so it is left to itself")
        return failure(step.index, step.spec, "timed_out", error, time() - duration_s, duration_s)

    def _end_what_gets_no_place(self, now: float) -> Report | None:
        """Return the report of a step that waits in vain, because steps that were given up hold every place."""
        lost = self._places.lost(_size_of(self._pool), now)
        if lost is None:
            self._gave_up_waiting_at = math.inf
            return None
        since, patience_s, reason = lost
        since = max(since, self._last_end)
        if self._gave_up_waiting_at < since:  # something has moved since then
            self._gave_up_waiting_at = math.inf
        for step in self._steps.values():
            if step.future is None or step.is_done or step.has_place:
                continue
            # When one has waited long enough, those that are submitted later need not.
            if now >= min(max(since, step.submitted) + patience_s, self._gave_up_waiting_at) and step.withdraw():
                self._gave_up_waiting_at = min(now, self._gave_up_waiting_at)
                del self._steps[step.index]
                return failure(step.index, step.spec, "cancelled", StepError("CancelledError", reason))
        return None


def _ended_in_the_pool(step: _ForeignStep, error: BaseException | None) -> Report:
    if error is None or isinstance(error, CancelledError):
        reason = StepError("CancelledError", "the pool cancelled the step")
        return failure(step.index, step.spec, "cancelled", reason)
    status: Status = "crashed" if isinstance(error, BrokenExecutor) else "raised"
    return failure(step.index, step.spec, status, StepError.of(error))


_Result = Report | RemoteResult
"""What a step in this process returns, or one in another."""


class _ForeignRun:
    """What the steps of one run share in the process that they started from."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.executor = ExecutorInUse(context.executor, context.retry_rule, context.stop)
        # Other processes keep executors under this name. Containers may all have the same process ids.
        self.token = uuid.uuid4().hex
        # Guards the claim on each step, and the state file.
        self.lock = threading.Lock()
        self.states: StateFile | None = None
        self._has_tried_states = False
        self._in_the_pool = 0
        self._may_be_called = False
        self.is_over = False

    @cached_property
    def payload(self) -> bytes:
        from ..workers.pickling import pickle_executor

        return pickle_executor(self.context.executor, self.context.retry_rule)

    def remote(self) -> RemoteRun:
        """Return what goes to other processes; in any thread, as pools pickle in theirs."""
        payload = self.payload
        with self.lock:
            if not self._has_tried_states and not self.is_over:
                self._has_tried_states = True
                self.states = StateFile.create()
                _open_runs.add(self.token)
            path = None if self.states is None else self.states.path
        return RemoteRun(self.token, payload, self.context.event_tx is not None, path)

    def end(self) -> None:
        """Have no step begin any more, and those that run know."""
        self.context.stop.set()
        self._say_that_it_is_over()

    def enter(self) -> None:
        """Count a step that the pool has taken."""
        with self.lock:
            self._in_the_pool += 1

    def leave(self, *, is_dropped: bool) -> None:
        """Count a step that the pool is done with.

        Args:
            is_dropped: Whether it is sure not to call it any more.
        """
        with self.lock:
            self._in_the_pool -= 1
            self._may_be_called |= not is_dropped
            self._remove_states_if_unused()

    def close(self) -> None:
        """Tear the executor down when its last step has ended."""
        self._say_that_it_is_over()
        self.executor.close()

    def _say_that_it_is_over(self) -> None:
        with self.lock:
            self.is_over = True
            _open_runs.discard(self.token)
            if self.states is not None:
                self.states.end()
            self._remove_states_if_unused()

    def _remove_states_if_unused(self) -> None:
        # As long as the pool may still call a step, that has to find out that the run is over.
        if self.states is not None and self.is_over and not self._in_the_pool:
            if not self._may_be_called:
                self.states.remove()
            self.states.close()
            self.states = None


_open_runs: set[str] = set()
"""The tokens of the runs that go on in this process, so that others keep their executors."""

_PROCESS = uuid.uuid4().hex
"""Names this process, together with its id: a forked one has the same name."""


class _ForeignStep:
    """What a foreign pool is given to call. Pickling it, which only a pool of processes does, makes it a remote one.

    Attributes:
        future: The pool's; `None` until it has taken the step.
        submitted: When it was handed to the pool, on the clock of `time.monotonic()`, as the next two.
        began: When the step began; `None` as long as that is not known.
        presumed: When it was taken for begun, though nothing is known.
        is_remote: Whether it was sent to another process.
        is_given_up: Whether it was reported before it ended.
        is_withdrawn: Whether it never begins, because that was reported already.
    """

    def __init__(self, run: _ForeignRun, step: Step, number: int) -> None:
        self.spec, self.index, _, self.timeout_s = step
        self.future: Future[_Result] | None = None
        self.submitted = monotonic()
        self.began: float | None = None
        self.presumed: float | None = None
        self.is_remote = False
        self.is_given_up = False
        self.is_withdrawn = False
        self._run = run
        self._step = step
        self._number = number
        self._has_arrived = False

    def __call__(self) -> _Result:
        run = self._run
        with run.lock:
            if self.is_withdrawn:
                return too_late(self._step)
            self._has_arrived = True
        event_tx = run.context.event_tx
        if event_tx is not None and self.timeout_s is not None:
            event_tx = RevocableSender(event_tx, lambda: not self.is_given_up)
        worker = threading.current_thread().name
        return run.executor.run(self._step, event_tx, worker, run.context.meter, self._begin)

    def _begin(self) -> None:
        self.began = monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        run = self._run.remote()
        self.is_remote = True  # only now: pickling the executor takes none of the step's time
        caller = RemoteCaller(f"{_PROCESS}-{os.getpid()}", tuple(_open_runs))
        return RemoteStep, (run, caller, self._step, self._number, self.is_withdrawn or self._run.is_over)

    @property
    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    @property
    def state(self) -> int:
        """How far it is, as it has said itself in another process; see `StateFile`."""
        if not self.is_remote:
            return 0
        with self._run.lock:
            return 0 if self._run.states is None else self._run.states.of(self._number)

    @property
    def has_place(self) -> bool:
        """Whether it is running in the pool, as far as is known."""
        return self._has_arrived or self.began is not None or self.presumed is not None or self.state > 0

    def withdraw(self) -> bool:
        """Have it never begin; return whether it had not."""
        with self._run.lock:
            states = self._run.states if self.is_remote else None
            if self._has_arrived or (states is not None and not states.withdraw(self._number)):
                return False
            self.is_withdrawn = True
        if self.future is not None:
            self.future.cancel()
        return True


def _size_of(pool: Executor) -> int | None:
    """Return how many steps can run in `pool` at once; `None` if it does not say."""
    size = getattr(pool, "_max_workers", None)  # of the standard library's pools, and of those made like them
    return size if isinstance(size, int) and size > 0 else None


def _runs_in_processes(pool: Executor) -> bool:
    # By name: there is one in the standard library, in loky and elsewhere, and none is worth importing just to ask.
    return any("ProcessPool" in kind.__name__ for kind in type(pool).__mro__)


def _result_of(done: Future[_Result]) -> tuple[BaseException | None, _Result | None]:
    if done.cancelled():
        return None, None
    error = done.exception()
    return (None, done.result()) if error is None else (error, None)
