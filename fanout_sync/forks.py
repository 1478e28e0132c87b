"""Forks of this process: what a child inherits of its parent's runs, threads and workers is not its own.

`os.fork` copies every object, but none of the threads behind them, and it shares what lies outside of the memory:
sockets, epoll objects, files. So each object that stands for one of these registers itself here, and in a forked child,
before anything else runs there, it is disowned: it lets go of what is its parent's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol

count = 0
"""How many forks lie between this process and the one that imported the package: has it changed, this is a child."""


LONGEST_DELAY_S = 5.0
"""For so many seconds at most a fork waits for other threads to release locks that would stay locked in the child."""

_CHECK_INTERVAL_S = 0.001


class Inheritable(Protocol):
    """An object that stands for something outside of the memory of this process, or for a thread of it."""

    def disown(self) -> None:
        """Let go of what belongs to the parent, without touching it. Called in the child, which has one thread."""


_inheritable: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def disown_in_child(thing: Inheritable) -> None:
    """Have `thing.disown()` called in each forked child, as long as the object exists; it may be called repeatedly."""
    _inheritable.add(thing)


def keep_in_child(thing: Inheritable) -> None:
    """Undo `disown_in_child`: nothing stands behind the object any more."""
    _inheritable.discard(thing)


def pass_on_in_child(forks_before: int) -> None:
    """Raise again what is being handled, if there was a fork since and this is the child.

    What a run does about errors of the caller's code, it does in the process that has begun it; its children end.

    Args:
        forks_before: `count` as it was when that process called the code.
    """
    if count != forks_before:
        raise


def call_in_child(function: Callable[[], object]) -> None:
    """Have `function()` called in each forked child."""
    if hasattr(os, "register_at_fork"):  # Windows has neither this function nor fork
        os.register_at_fork(after_in_child=function)


def call_around_fork(before: Callable[[], object], after: Callable[[], object]) -> None:
    """Have `before()` called before each fork, and `after()` after it, in the parent and in the child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


class ForkDelay:
    """Delays forks while other threads are in a `with` block of this object, and keeps them out during a fork.

    It is for calls of C code with locks of its own, which nobody could release in the child.
    """

    def __init__(self) -> None:
        self._entry = threading.RLock()
        self._inside: list[int] = []
        call_around_fork(self._close, self._entry.release)
        call_in_child(self._forget_others)

    def __enter__(self) -> None:
        with self._entry:
            self._inside.append(get_ident())

    def __exit__(self, *exc_info: object) -> None:
        self._inside.remove(get_ident())

    def _close(self) -> None:
        self._entry.acquire()
        _wait_while(lambda: any(thread != get_ident() for thread in list(self._inside)))

    def _forget_others(self) -> None:
        self._inside = [thread for thread in self._inside if thread == get_ident()]


def _wait_while(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST_DELAY_S
    while condition() and time.monotonic() < until:
        time.sleep(_CHECK_INTERVAL_S)


def _is_importing() -> bool:
    """Return whether another thread is importing a module of this package, which the child could never import then."""
    locks: dict[str, Any] = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    ours = [reference() for name, reference in list(locks.items()) if name.startswith(f"{__package__}.")]
    return any(lock is not None and getattr(lock, "owner", None) not in (None, get_ident()) for lock in ours)


def _disown_all() -> None:
    global count
    count += 1
    for thing in list(_inheritable):
        thing.disown()


call_in_child(_disown_all)
call_around_fork(lambda: _wait_while(_is_importing), lambda: None)
