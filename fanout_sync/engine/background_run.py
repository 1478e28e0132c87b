"""A run in a thread of its own, which ends with the program."""

from __future__ import annotations

import atexit
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

import attrs
from attrs import frozen

from .. import forks
from ..backends.backend import SIGNALS_S, refuse_inherited_run
from ..errors import FanoutInterrupted
from ..executors.step_context import own_context
from ..executors.thread_start import start_thread
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..results.failures import FailureGroups, first_line
from ..results.live_output import INTERVAL_S, HandleStatus, LiveOutput
from ..results.progress import Progress, RunView
from ..results.run import Run
from .call import Call
from .input import length_of, taken
from .plan import RunPlan
from .run import run_in

logger = logging.getLogger(__name__)

END_BOUND_S = 5.0
"""How many seconds runs that were cancelled are waited for when the program or the runner's `with` block ends.

It is more than they take, unless code of the caller's, such as its input, does not return.
"""

MAX_REASONS = 10
"""How many lines of reasons are logged for failed steps whose outcomes nobody has read."""

_numbers = itertools.count(1)
_threading: Any = threading

# Sets of runs are only added to and removed from, which needs no lock.
_running: set[BackgroundRun] = set()
_unread: set[BackgroundRun] = set()
_hooked: set[type] = set()


@frozen(eq=False)
class _End:
    """How a run has ended.

    Attributes:
        state: The same in a word or two.
        run: Its steps.
        error: What it has raised; `None` if nothing.
        traceback: Of the error, as it was raised in the thread of the run.
        progress: How far it was.
    """

    state: str
    run: Run
    error: BaseException | None
    traceback: TracebackType | None
    progress: Progress


class BackgroundRun:
    """One run, in a daemon thread. Any thread may ask for it.

    Args:
        plan: What the caller wants.
        specs: What to run; code of the caller's that makes them is called in the thread of the run.

    Raises:
        InputError: No step could run: the specs are not iterable, or the first of a list is no spec.
    """

    def __init__(self, plan: RunPlan, specs: Iterable[AgentStepSpec]) -> None:
        self._specs: Iterable[AgentStepSpec] = taken(specs)
        self._total = length_of(self._specs)
        # Shown and replaced as long as the run goes on. It refers back to this run, so it is forgotten then.
        self._output: LiveOutput | None = LiveOutput(self._rendered)
        screen = self._screen = _Screen(self._output)
        self._call = Call(plan, make_sink=lambda: screen)  # not of `self`, which refers to the call
        self._end: _End | None = None
        self._is_done = threading.Event()
        self._is_cancelled = False
        self._is_dropped = False
        self._is_inherited = False
        self._thread = threading.Thread(
            target=own_context().run, args=(self._main,), name=f"fanout-run-{next(_numbers)}", daemon=True
        )
        forks.disown_in_child(self)

    def begin(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: There are no more threads.
        """
        _cancel_at_exit(type(self._call.plan.backend))
        _running.add(self)
        _unread.add(self)
        try:
            start_thread(self._thread)
        except BaseException:
            _running.discard(self)
            _unread.discard(self)
            self._is_done.set()
            raise

    def disown(self) -> None:
        _running.discard(self)
        _unread.discard(self)
        self._is_inherited = not self._is_done.is_set()

    # In the thread ----------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        run, error = None, None
        try:
            run = run_in(self._call, self._specs)
        except BaseException as raised:
            if self._is_inherited:  # this is a child that the input has forked
                raise
            error = raised
        if run is None:
            so_far = getattr(error, "run", None)
            run = so_far if isinstance(so_far, Run) else self._call.run_of(self._call.reports.values())
        try:
            self._note_end(run, error)
        finally:  # whatever is wrong with what is shown: those who wait for the result get it
            self._is_done.set()
            _running.discard(self)
        if self._is_dropped:
            self.log_unread()

    def _note_end(self, run: Run, error: BaseException | None) -> None:
        state, traceback = self._state_after(error), None if error is None else error.__traceback__
        self._end = _End(state, run, error, traceback, Progress(total=self._total))
        self._end = attrs.evolve(self._end, progress=self._progress_of(self._screen.view))
        if self._output is not None:
            self._output.end()
        self._forget()

    def _forget(self) -> None:
        """Let go of the specs, and of what only the run itself needs."""
        self._specs, self._output = (), None
        self._screen.forget()
        self._call.dispatch = self._call.tracker = None
        self._call.reports = {}

    def _state_after(self, error: BaseException | None) -> str:
        if isinstance(error, FanoutInterrupted) or (error is None and self._call.is_interrupted):
            return "cancelled"
        return "done" if error is None else f"raised {type(error).__name__}"

    # For the handle ---------------------------------------------------------------------------------------------------

    def is_done(self) -> bool:
        self._refuse_if_inherited()
        return self._is_done.is_set()

    def result(self, timeout_s: float | None) -> Run:
        self._refuse_if_inherited()
        if threading.current_thread() is self._thread:
            raise RuntimeError("this is the thread of the run itself, which cannot wait for its own result")
        self.wait(timeout_s)
        if (end := self._end) is None or not self._is_done.is_set():
            raise TimeoutError(f"the run has not ended within {timeout_s} s, and goes on; {self.status()}")
        _unread.discard(self)
        if end.error is not None:
            raise end.error.with_traceback(end.traceback)
        return end.run

    def wait(self, timeout_s: float | None, gives_up: Callable[[], bool] = lambda: False) -> None:
        """Wait for the end of the run.

        Args:
            timeout_s: How many seconds at most; `None` for any time.
            gives_up: Asked now and then whether to wait no longer.
        """
        until = None if timeout_s is None else monotonic() + timeout_s
        while not (self._is_done.is_set() or gives_up()):
            left_s = SIGNALS_S if until is None else min(SIGNALS_S, until - monotonic())
            if left_s <= 0:
                return
            self._is_done.wait(left_s)

    def cancel(self) -> None:
        if not (self._is_cancelled or self._is_inherited or self._end is not None):
            self._is_cancelled = True
            self._call.scope.note()

    def cancel_and_wait(self, gives_up: Callable[[], bool]) -> None:
        """End the run; wait until it has, for a few seconds at most."""
        self.cancel()
        if not self._is_inherited and threading.current_thread() is not self._thread:
            self.wait(END_BOUND_S, gives_up)

    def snapshot(self) -> Run:
        self._refuse_if_inherited()
        reports = self._call.reports  # before the look at `_end`, after which they are forgotten
        if (end := self._end) is None:
            return self._call.run_of(reports.copy().values())
        _unread.discard(self)
        return end.run

    def progress(self) -> Progress:
        self._refuse_if_inherited()
        view = self._screen.view  # before the look at `_end`, after which it is forgotten
        return self._progress_of(view) if (end := self._end) is None else end.progress

    def _progress_of(self, view: RunView | None) -> Progress:
        if view is not None:
            return view.progress()
        return Progress(total=self._total, elapsed_s=monotonic() - self._call.began)

    def status(self) -> HandleStatus | str:
        """Return how far the run is, for people."""
        if self._is_inherited:
            return "of the parent process"
        end = self._end
        return HandleStatus("running" if end is None else end.state, self.progress())

    def show(self) -> None:
        """Show how far the run is as an output of the running notebook cell, which follows it.

        Raises:
            NotImplementedError: This is no notebook.
        """
        if self._is_inherited:
            raise NotImplementedError
        (self._output or LiveOutput(self._rendered)).show()

    def _rendered(self) -> dict[str, str]:
        status = self.status()
        return {
            "text/plain": f"<RunHandle {status}>",
            "text/html": status.html() if isinstance(status, HandleStatus) else status,
        }

    def _refuse_if_inherited(self) -> None:
        if self._is_inherited:
            refuse_inherited_run()

    # Failures that nobody reads ---------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Note that nobody can read the result any more."""
        self._is_dropped = True
        if self._is_done.is_set():
            self.log_unread()

    def log_unread(self) -> None:
        """Log, once, what went wrong, unless somebody has read it."""
        if (end := self._end) is None:
            return
        try:
            _unread.remove(self)
        except KeyError:
            return
        reasons = _reasons(end.run)
        if end.error is not None and not isinstance(end.error, FanoutInterrupted):
            error = end.error.with_traceback(end.traceback)
            logger.error(
                "a run whose result was never read has raised %s%s", StepError.of(error), reasons, exc_info=error
            )
        elif reasons:
            logger.error("the result of a run of %d steps was never read%s", len(end.run), reasons)


def _reasons(run: Run) -> str:
    """Return how many steps of a run have failed, and why; nothing if none has."""
    failures = FailureGroups(first_line)
    for index, outcome in enumerate(run):
        if not outcome.success and (status := run.records[index].status) != "cancelled":
            failures.add(outcome.task_id, outcome.agent, status, outcome.output)
    if not failures.count:
        return ""
    steps = "1 step" if failures.count == 1 else f"{failures.count} steps"
    return "\n".join([f"; {steps} failed:", *failures.lines(MAX_REASONS)])


class _Screen:
    """Shows a run as an output of a notebook cell, besides where its runner has its progress shown.

    Args:
        output: The output.

    Attributes:
        view: The run, once its first step may begin.
    """

    interval_s = INTERVAL_S
    shows_steps = False

    def __init__(self, output: LiveOutput) -> None:
        self._output: LiveOutput | None = output
        self.view: RunView | None = None

    def begin(self, view: RunView) -> None:
        self.view = view

    def update(self) -> None:
        if self._output is not None:
            self._output.update()

    def end(self) -> None:
        """Do nothing: the output is updated for the last time when the result is there."""

    def forget(self) -> None:
        """Let go of everything, after the end."""
        self.view = self._output = None


# The end of the program -----------------------------------------------------------------------------------------------


def _cancel_at_exit(backend: type) -> None:
    """Have runs cancelled when the main thread has ended, before what they need is.

    Pools of `concurrent.futures` wait then for their steps, by a hook of the same kind that was registered when their
    module was imported. The hooks are called in the reverse order, so ours has to be registered after that.
    """
    if backend not in _hooked:
        _hooked.add(backend)
        try:
            _threading._register_atexit(_end_all)
        except RuntimeError:  # the main thread has ended already, and this is another one
            atexit.unregister(_end_all)
            atexit.register(_end_all)
    _cancel_at_exit_of_multiprocessing()


def _cancel_at_exit_of_multiprocessing() -> None:
    """Do the same at the end of a process of `multiprocessing`, which ends its own children before its threads."""
    global _finalizer
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process is None or util is None or process.parent_process() is None:
        return
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = util.Finalize(None, _end_all, exitpriority=200)  # before worker processes are killed


_finalizer: Any = None


def _end_all() -> None:
    """Cancel what runs; log what nobody has read."""
    for run in list(_running):
        run.cancel()
    until = monotonic() + END_BOUND_S
    with suppress(KeyboardInterrupt):
        for run in list(_running):
            run.wait(max(0.0, until - monotonic()))
    for run in list(_unread):
        run.log_unread()
