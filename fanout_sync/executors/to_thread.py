"""The threads of `asyncio.to_thread` and the like, in the event loop of this process."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from .daemon_threads import DaemonThreads

P = ParamSpec("P")
T = TypeVar("T")


MOST_THREADS = 1000
"""So many calls run at once at the most."""


class DaemonThreadPool(ThreadPoolExecutor):
    """Daemon threads in the shape that `loop.set_default_executor` demands.

    A call that hangs in a step whose timeout is over cannot keep the program from ending. There are as many as are
    needed: the number of steps is bounded already, and if calls had to wait for others to end, those that hang would
    stop all that follow, and steps that wait for steps of their own would never end.

    Args:
        name: The name of each thread.
    """

    def __init__(self, name: str) -> None:
        # Nothing of the base class is used, whose threads the interpreter joins when it exits.
        self._daemon_threads = DaemonThreads(MOST_THREADS, name)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)`; see `concurrent.futures.Executor`."""
        return self._daemon_threads.submit(partial(fn, *args, **kwargs), contextvars.Context())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when they have run what was submitted; wait for none of them."""
        self._daemon_threads.shutdown(wait=False, cancel_futures=cancel_futures)
