"""Steps, and the calls of `submit`, on daemon threads of this process."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from attrs import frozen

from .. import forks
from ..checks import flag, positive_int
from ..executors.current_step import own_context
from ..workers.futures import cancel_future, end_future
from ..workers.thread_start import start_thread
from .backend import Backend, RunContext
from .copies import copier_of
from .thread_session import ThreadSession

__all__ = ["ThreadBackend"]

P = ParamSpec("P")
T = TypeVar("T")


class ThreadBackend(Backend):
    """Steps on daemon threads: cheap, nothing is pickled, made for steps that wait (LLM calls, subprocesses).

    A step that kills its process kills yours, and a thread cannot be stopped from outside. The threads are daemons, so
    that a hung step cannot keep the interpreter from exiting; those of `concurrent.futures.ThreadPoolExecutor` are
    joined at exit.

    Args:
        max_workers: The number of threads for `submit`; a `Runner` has its own bound.
        copies: Whether each thread of a run has a copy of the executor (`copy.deepcopy`), with its own `setup` and
            `teardown`, for an executor that is not yours and not thread-safe. An executor whose `thread_safe` is
            `False` is copied in any case.

    Raises:
        OptionError: An argument is not valid; the error names it.
    """

    def __init__(self, max_workers: int | None = None, *, copies: bool = False) -> None:
        self._max_workers = (
            min(32, (os.cpu_count() or 1) + 4) if max_workers is None else positive_int("max_workers", max_workers)
        )
        self._copies = flag("copies", copies)
        self._is_shut_down = False
        self._begin()
        forks.disown_in_child(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _end_threads, self._threads, self._calls)

    def disown(self) -> None:
        """Have no threads yet, in a forked child: those that there are belong to the parent (see `forks`)."""
        self._finalizer.detach()
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        # Its threads stay here: a copy, in a worker whose step uses a runner, starts its own.
        return partial(ThreadBackend, copies=self._copies), (self._max_workers,)

    def open(self, context: RunContext) -> ThreadSession:
        copier = context.ask(lambda: copier_of(context.executor, always=self._copies), None)
        return ThreadSession(context, copier)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` in a copy of the caller's context; see `concurrent.futures.Executor`.

        Raises:
            RuntimeError: The backend is shut down, or the system has no threads; nothing is scheduled then.
        """
        future: Future[T] = Future()
        call = _Call(future, own_context(), partial(fn, *args, **kwargs))
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_workers:
                self._add_thread()
            self._calls.put(call)
        return future

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_serve_calls, args=(self._calls, self._idle), daemon=True)
        try:
            start_thread(thread)
        except RuntimeError:  # the system has no more threads: calls wait for those that run, if there are any
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads of `submit`; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._is_shut_down = True
        # Nothing can be submitted any more. The lock is released: callbacks of cancelled futures may use this backend.
        if cancel_futures:
            _cancel_all(self._calls)
        _end_threads(self._threads, self._calls)
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
        except BaseException as error:  # a future has whatever its function raised
            end_future(self.future, None, error)
        else:
            end_future(self.future, result)


def _serve_calls(calls: SimpleQueue[_Call | None], idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # so that this thread keeps no result alive while it waits
        idle.release()


def _cancel_all(calls: SimpleQueue[_Call | None]) -> None:
    try:
        while True:
            if (call := calls.get_nowait()) is not None:  # an earlier shutdown puts `None` there
                cancel_future(call.future)
    except Empty:
        return


def _end_threads(threads: list[threading.Thread], calls: SimpleQueue[_Call | None]) -> None:
    for _ in threads:
        calls.put(None)
