"""A pool of daemon threads: a call that hangs cannot keep the interpreter from exiting."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from attrs import frozen

from .. import forks
from .futures import cancel_future, end_future
from .thread_start import start_thread

T = TypeVar("T")


class DaemonThreads:
    """Runs calls in threads, which are started as they are needed and go on until `shutdown`.

    Those of `concurrent.futures.ThreadPoolExecutor` are joined when the interpreter exits. A forked child starts
    threads of its own.

    Args:
        max_workers: How many threads there are at the most.
        name: The name of each.
    """

    def __init__(self, max_workers: int, name: str) -> None:
        self._max_workers = max_workers
        self._name = name
        self._is_shut_down = False
        self.disown()
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Have no threads and no calls."""
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], T], context: contextvars.Context) -> Future[T]:
        """Have `function()` called in `context`.

        Raises:
            RuntimeError: The pool is shut down, or the system has no threads; nothing is called then.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_workers:
                self._add_thread()
            self._calls.put(_Call(future, context, function))
        return future

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_serve_calls, args=(self._calls, self._idle), name=self._name, daemon=True)
        try:
            start_thread(thread)
        except RuntimeError:  # the system has no more threads: calls wait for those that run, if there are any
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def shutdown(self, *, wait: bool, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the threads when they have run those that there are.

        Args:
            wait: Whether to wait for that.
            cancel_futures: Whether to cancel the calls that have not begun.
        """
        with self._lock:
            self._is_shut_down = True
        # Nothing can be submitted any more. The lock is released: callbacks of cancelled futures may use this pool.
        if cancel_futures:
            _cancel_all(self._calls)
        for _ in self._threads:
            self._calls.put(None)
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
        forks_before = forks.count
        try:
            result = self.context.run(self.function)
        except BaseException as error:  # a future has whatever its function raised
            _end_if_forked(forks_before)
            end_future(self.future, None, error)
        else:
            _end_if_forked(forks_before)
            end_future(self.future, result)


def _end_if_forked(forks_before: int) -> None:
    # The call has forked, and this is the child: all other calls belong to its parent.
    if forks.count != forks_before:
        os._exit(0)


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
