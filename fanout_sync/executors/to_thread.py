"""The threads of `asyncio.to_thread` and the like, in the event loop of this process."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from .daemon_threads import DaemonThreads

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreadPool(ThreadPoolExecutor):
    """Daemon threads in the shape that `loop.set_default_executor` demands.

    A call that hangs in a step whose timeout is over cannot keep the program from ending.

    Args:
        name: The name of each thread.
    """

    def __init__(self, name: str) -> None:
        # Nothing of the base class is used, whose threads the interpreter joins when it exits.
        most = min(32, (os.cpu_count() or 1) + 4)  # as asyncio has by default
        self._daemon_threads = DaemonThreads(most, name)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)`; see `concurrent.futures.Executor`."""
        return self._daemon_threads.submit(partial(fn, *args, **kwargs), contextvars.Context())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when they have run what was submitted; wait for none of them."""
        self._daemon_threads.shutdown(wait=False, cancel_futures=cancel_futures)
