"""The event loops of this process: which there are, and whether this thread is one of theirs.

Imports little: every worker needs to know, and few have a loop.
"""

from __future__ import annotations

import atexit
import contextvars
import sys
import threading
import weakref
from typing import Any, Protocol

from .. import forks

THREAD_NAME = "fanout-sync-event-loop"
TO_THREAD_NAME = "fanout-sync-to-thread"


class Loop(Protocol):
    """See `EventLoop`."""

    nesting: int

    @property
    def runs_here(self) -> bool: ...
    def close(self) -> None: ...


current: dict[int, Loop] = {}
"""The loops for new steps, by nesting."""

lock = threading.RLock()
"""Held to change `current`, or who uses a loop."""

_all: weakref.WeakSet[Loop] = weakref.WeakSet()
_nesting: contextvars.ContextVar[int] = contextvars.ContextVar("fanout_sync_loop_nesting", default=0)


def add(loop: Loop) -> None:
    """Have a loop closed at the end of the process."""
    _all.add(loop)
    atexit.unregister(close_event_loops)
    atexit.register(close_event_loops)
    # A process of `multiprocessing`, which has imported this, runs no hook of `atexit`.
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, close_event_loops, exitpriority=0)  # after the executors of pools are torn down


def is_event_loop_thread() -> bool:
    """Return whether this is the thread of one of the loops, which must not wait for what runs in it."""
    return any(loop.runs_here for loop in list(_all))


def note_nesting() -> None:
    """Note in the current context whether this is the thread of a loop, for what runs in the context elsewhere."""
    nesting = nesting_here()
    if nesting != _nesting.get():
        _nesting.set(nesting)


def nesting_here() -> int:
    """Return how many loops the code blocks that waits here for async code."""
    for loop in list(current.values()):
        if loop.runs_here:
            return loop.nesting + 1
    return _nesting.get()


def close_event_loops() -> None:
    """Cancel what is pending in all loops, close their async generators, and end their threads."""
    with lock:
        loops = list(_all)
        current.clear()
    for loop in loops:
        loop.close()


def _have_none() -> None:
    """Have none in a forked child, where nothing runs the loops of its parent."""
    global lock, _all
    lock, _all = threading.RLock(), weakref.WeakSet()
    current.clear()


forks.call_in_child(_have_none)
