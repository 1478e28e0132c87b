"""Steps, and the calls of `submit`, on daemon threads of this process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ..checks import flag, positive_int
from ..executors.daemon_threads import DaemonThreads
from ..executors.step_context import own_context
from .backend import Backend, RunContext
from .copies import copier_of
from .thread_session import ThreadSession

__all__ = ["ThreadBackend"]

P = ParamSpec("P")
T = TypeVar("T")


class ThreadBackend(Backend):
    """Steps on daemon threads: cheap, nothing is pickled, made for steps that wait, such as calls of models.

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
        self._threads = DaemonThreads(self._max_workers, "fanout-sync-submit")
        weakref.finalize(self, self._threads.shutdown, wait=False).atexit = False

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
        return self._threads.submit(partial(fn, *args, **kwargs), own_context())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads of `submit`; see `concurrent.futures.Executor.shutdown`."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
