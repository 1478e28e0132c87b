"""Steps in worker processes that may die."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import forks
from ..checks import flag, positive_int
from ..interrupts import InterruptScope
from .backend import Backend, RunContext, Session
from .kept_workers import KeptWorkers
from .large_payload import warn_of_large_payload

# The modules of worker processes are imported where they are used, so that `import fanout_sync` stays fast.
if TYPE_CHECKING:
    from ..workers.calls import Calls
    from ..workers.lanes import Lanes
    from ..workers.worker_start import StartedWorker

__all__ = ["ProcessBackend"]

P = ParamSpec("P")
T = TypeVar("T")


class ProcessBackend(Backend):
    """Steps in loky worker processes: a step may crash, leak or be killed, and no other step is affected.

    The executor is pickled once per run (by cloudpickle, so that one from a script's `__main__` or a notebook cell
    works) and sent once to each worker; specs and outcomes are sent as plain data.

    As a `concurrent.futures.Executor` it runs any function, each call in a context of its own. When a worker dies, only
    the future of the call that it was running gets a `concurrent.futures.BrokenExecutor`.

    Args:
        max_workers: The number of processes for `submit`, by default the number of CPUs. A `Runner` has its own bound;
            if `max_workers` is given, it limits that bound.
        max_tasks_per_child: After how many steps (or calls) a worker is replaced, against leaks; by default never. The
            replacement starts while the last one runs, so that there is no pause; for a while there are more workers.
        capture_output: Whether the output of steps, and of the programs that they start, is written to this process's
            `sys.stdout` and `sys.stderr`, line by line, each line after the `task_id` of its step (for calls, after the
            process id of the worker); so a notebook shows it in the cell. By default workers print where this process
            does.

    Raises:
        OptionError: An argument is not valid; the error names it.
    """

    def __init__(
        self, max_workers: int | None = None, *, max_tasks_per_child: int | None = None, capture_output: bool = False
    ) -> None:
        self._cap = None if max_workers is None else positive_int("max_workers", max_workers)
        self._max_tasks = (
            None if max_tasks_per_child is None else positive_int("max_tasks_per_child", max_tasks_per_child)
        )
        self._captures_output = flag("capture_output", capture_output)
        self._kept = KeptWorkers()
        self._lock = threading.RLock()  # a finalizer may end a session in a thread that holds it
        self._calls: Calls | None = None
        self._end_of_calls: weakref.finalize[..., Any] | None = None
        self._is_shut_down = False
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Have no workers yet, in a forked child: those that there are belong to the parent (see `forks`)."""
        self._lock = threading.RLock()  # a thread of the parent may hold the other one
        self._kept = KeptWorkers(self._kept.holds)
        self._calls = None
        if self._end_of_calls is not None:
            self._end_of_calls.detach()

    def __reduce__(self) -> tuple[Any, ...]:
        # Its workers and its calls stay here: a copy, in a worker whose step uses a runner, starts its own.
        options = partial(ProcessBackend, max_tasks_per_child=self._max_tasks, capture_output=self._captures_output)
        return options, (self._cap,)

    def open(self, context: RunContext) -> Session:
        from ..workers.pickling.loading import refuse_while_loading
        from ..workers.worker_start import start_early

        refuse_while_loading()
        size = context.bound if self._cap is None else min(context.bound, self._cap)
        started = start_early(min(size, context.expected) - len(self._kept), self._captures_output)
        # While the first workers start: all of this takes as long as they do.
        try:
            from ..executors.step_events import EventForwarder
            from ..workers.module_versions import look_for_edited_modules
            from ..workers.pickling.code_dump import dump_rest, sent_code
            from ..workers.pickling.executor import pickle_executor
            from ..workers.pickling.item import item_pickler
            from .process_session import ProcessSession, UnattendedProcessSession

            look_for_edited_modules()
            payload, sent = pickle_executor(context.executor, context.retry_rule)
            warn_of_large_payload(self, payload, min(size, context.expected or size))
            on_event = None if context.event_tx is None else EventForwarder(context.event_tx)
            rest, sent_with_rest = dump_rest(sent)
            pickle_item = item_pickler(sent_code(sent, sent_with_rest))
            lanes = self._lanes(context, size, payload, rest, on_event, started)
        except BaseException:
            for worker in started:
                worker.discard()
            raise
        if context.unattended:
            return UnattendedProcessSession(lanes, self._retire, pickle_item, context.on_end)
        return ProcessSession(lanes, self._retire, pickle_item)

    def _lanes(
        self,
        context: RunContext,
        size: int,
        payload: bytes,
        rest: bytes,
        on_event: Callable[[str], None] | None,
        started: list[StartedWorker],
    ) -> Lanes:
        from ..workers.lane import kill_and_reap
        from ..workers.lanes import Lanes

        warm = self._kept.take()
        try:
            lanes = Lanes(
                size,
                payload,
                on_event,
                warm[:size],
                rest=rest,
                started=started,
                meter=context.meter,
                max_tasks=self._max_tasks,
                captures_output=self._captures_output,
            )
        except BaseException:
            kill_and_reap([lane for lane in warm if lane.state != "gone"])
            raise
        self._kept.keep(warm[size:], size)
        return lanes

    def keep_warm(self) -> None:
        self._kept.hold()

    def cool_down(self, scope: InterruptScope, *, is_urgent: bool = False) -> None:
        self._kept.let_go(scope, is_urgent=is_urgent)

    def _retire(self, lanes: Lanes, is_urgent: Callable[[], bool]) -> None:
        """End the workers of a run that is over, or keep them for the next one."""
        if self._kept.is_held:
            self._kept.keep(lanes.release(), lanes.bound)
        lanes.close(is_urgent)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` in a worker process; see `concurrent.futures.Executor`.

        Raises:
            Exception: Any that pickling the function or its arguments raises; nothing is scheduled then.
            RuntimeError: The backend is shut down, or the system has no more threads; nothing is scheduled then.
        """
        from ..workers.calls import Calls
        from ..workers.pickling.code_dump import dump
        from ..workers.pickling.loading import refuse_while_loading

        refuse_while_loading()
        payload, _ = dump((fn, args, kwargs))
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._calls is None:
                self._calls = Calls(self._cap or os.cpu_count() or 1, self._max_tasks, self._captures_output)
                self._end_of_calls = weakref.finalize(self, self._calls.shutdown, False, False)
            # Still with the lock held, or a shutdown might come between.
            return self._calls.submit(payload)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers of `submit`; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._is_shut_down = True
            calls = self._calls
        if calls is not None:
            calls.shutdown(wait, cancel_futures)
