"""The state of a worker process that is put back after each step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_CHANGE_EVENTS = frozenset(("os.chdir", "os.putenv", "os.unsetenv"))
_OPEN_EVENTS = frozenset(("open", "socket.__new__", "subprocess.Popen"))
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP") if hasattr(signal, name)]
# The C function: the public one makes an enum of each result, which is slow for a call after every step.
_handler_of = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Surroundings:
    """Working directory, environment, standard streams, timers, signal handlers and recursion limit.

    An audit hook notes when the directory or the environment is changed, and when anything is opened that may have
    taken the number of an output descriptor. So a step that does none of that costs no system call for them.

    Args:
        watches_output: Whether to check the files behind the outputs after every step, whatever it does.
    """

    def __init__(self, *, watches_output: bool) -> None:
        self._watches_output = watches_output
        self._is_changed = False
        self._has_opened = False
        self.remember()
        sys.addaudithook(self._notice)

    def remember(self) -> None:
        """Remember the state of now: every step is to find it like that."""
        self._directory = working_directory()
        self._environment = dict(os.environ)
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._outputs = _files_behind_output()
        self._has_opened = False
        self._handlers: list[_Handler] = [_handler_of(number) for number in _SIGNALS]
        self._recursion_limit = sys.getrecursionlimit()
        self._is_changed = False

    def can_be_restored(self) -> bool:
        """Return whether all that a step changed can be put back: a closed stream or descriptor cannot."""
        if any(stream is not None and stream.closed for stream in self._streams):
            return False
        if self._watches_output or self._has_opened:
            return _files_behind_output() == self._outputs
        return _has_output()

    def restore(self) -> None:
        """Put back what a step changed."""
        self._stop_timers()
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            if _handler_of(number) is not handler and handler is not None:
                signal.signal(number, handler)
        if self._is_changed:
            self._restore_directory_and_environment()

    def _stop_timers(self) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _restore_directory_and_environment(self) -> None:
        if self._directory is not None:
            with contextlib.suppress(OSError):  # it may have been deleted
                os.chdir(self._directory)
        os.environ.clear()
        os.environ.update(self._environment)
        self._is_changed = False

    def _notice(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGE_EVENTS:
            self._is_changed = True
        elif event in _OPEN_EVENTS:
            self._has_opened = True


def _has_output() -> bool:
    try:
        os.get_blocking(1)
        os.get_blocking(2)
    except OSError:
        return False
    return True


def _files_behind_output() -> list[int]:
    """Return the inodes behind the descriptors of standard output and standard error."""
    try:
        return [os.fstat(1).st_ino, os.fstat(2).st_ino]
    except OSError:
        return []


def working_directory() -> str | None:
    """Return the working directory; `None` if it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None
