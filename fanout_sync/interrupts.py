"""Ctrl-C during a run: noted instead of raised, so that it cannot interrupt code of this package halfway."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from . import forks
from .errors import FanoutInterrupted

PATIENCE_S = 1.0
"""Seconds after an interrupt that is not being handled; another one that comes later than that is raised."""

NOTED_BY = "interrupts_noted_by"
"""The name of the local variable by which a function says which scope notes interrupts that strike it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_scopes: list[InterruptScope] = []
_ours: dict[int, partial[None]] = {}


class InterruptScope:
    """Notes interrupts instead of raising them; while the caller's own code runs, they are raised as usual.

    Each call of a runner has one scope, from before its journal is opened until after its last worker has ended.

    Python's own handler raises `KeyboardInterrupt` wherever the main thread is. In code of this package that could lose
    an outcome that is just being passed on. The program's own handler still works: it is called first, and only if it
    raises `KeyboardInterrupt`, as the default one does, the signal counts as an interrupt. A signal that has no Python
    handler, or that a program that embeds Python handles itself, gets none. Outside the main thread of the main
    interpreter a scope does nothing.

    Args:
        encloses_others: Whether the calls of runners that go on within it are interrupted with it, as for the command
            line. Otherwise scopes that were entered later are of other streams, which are just not being read.

    Attributes:
        in_package_code: Whether code of this package is running; false while the caller's own code is, such as its
            generator.
        is_interrupted: Whether an interrupt came while code of this package was running.
        was_raised: Whether an interrupt came while the caller's own code was running.
        is_handled: Whether the interrupt is being handled. If it is not, another interrupt after `PATIENCE_S` is
            raised, because some call does not return.
    """

    def __init__(self, *, encloses_others: bool = False) -> None:
        self.encloses_others = encloses_others
        self._own_frame: int | None = None
        self.in_package_code = True
        self.is_interrupted = False
        self.was_raised = False
        self.is_handled = False
        self._interrupted_at = 0.0
        self._listeners: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def callers_code(self) -> Iterator[None]:
        """Raise interrupts in the `with` block, because it runs the caller's own code."""
        self.in_package_code = False
        try:
            yield
        finally:
            self.in_package_code = True

    @contextlib.contextmanager
    def calling(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call `listener`, in the signal handler, if the block is interrupted; at once if there was one before."""
        self._listeners.append(listener)
        try:
            if self.is_interrupted:
                listener()
            yield
        finally:
            self._listeners.remove(listener)

    def own(self, frame: FrameType) -> None:
        """Always note interrupts that strike this frame: just before a `yield`, one would lose what is yielded.

        The same holds for a frame with this scope in the local variable that `NOTED_BY` names.
        """
        self._own_frame = id(frame)  # not the frame itself, whose generator would live as long as this

    def takes(self, frame: FrameType | None) -> bool:
        """Return whether an interrupt that strikes this frame is to be noted here."""
        if self.in_package_code or frame is None:
            return self.in_package_code
        if id(frame) == self._own_frame:
            return True
        # The names are looked at first: the locals of the caller's frames may be anything that is a mapping.
        return NOTED_BY in frame.f_code.co_varnames and frame.f_locals.get(NOTED_BY) is self

    def note(self) -> bool:
        """Note an interrupt; return whether noting it is enough, or it has to be raised."""
        now = time.monotonic()
        if self.is_interrupted and not self.is_handled and now > self._interrupted_at + PATIENCE_S:
            self._interrupted_at = now  # the code that it ends gets as much time
            return False
        if not self.is_interrupted:
            self.is_interrupted, self._interrupted_at = True, now
        for listener in list(self._listeners):
            listener()
        return True

    def __enter__(self) -> InterruptScope:
        if threading.current_thread() is threading.main_thread():
            _scopes.append(self)
            _install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self in _scopes:
            if _scopes == [self]:
                _put_back()  # before the scope is removed, so that an interrupt in between is still noted
            _scopes.remove(self)


def is_interrupted() -> bool:
    """Return whether an interrupt was noted, in whatever scope. Any thread may ask."""
    return any(scope.is_interrupted for scope in _scopes)


def _install() -> None:
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and handler is not _ours.get(number):
            ours = partial(_handle, handler)
            try:
                if _is_embedded() and _is_handled_by_host(number):
                    continue
                signal.signal(number, ours)
            except ValueError:  # a subinterpreter
                return
            _ours[number] = ours


def _is_embedded() -> bool:
    if sys.platform == "win32":  # where a handler cannot be looked at
        return False
    try:
        program = Path("/proc/self/exe").readlink()
    except OSError:  # no Linux
        program = Path(sys.executable or "")
    return not program.name.lower().startswith(("python", "pypy"))


def _is_handled_by_host(number: int) -> bool:
    """Return whether the program that embeds Python has a handler of its own, of which Python does not know.

    uWSGI ends its workers by SIGINT. A handler of ours, and later Python's own instead of it, would replace uWSGI's.

    Raises:
        ValueError: Python does not let this interpreter handle signals.
    """
    import ctypes  # only here: slow to import

    size = ctypes.sizeof(ctypes.c_void_p)  # the handler is the first field of `struct sigaction`
    before, pythons = ctypes.create_string_buffer(512), ctypes.create_string_buffer(512)
    sigaction = ctypes.CDLL(None).sigaction
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    try:
        sigaction(number, None, before)
        signal.signal(number, signal.getsignal(number))
        sigaction(number, None, pythons)
        is_hosts = before[:size] != pythons[:size]
        if is_hosts:
            sigaction(number, before, None)
        return is_hosts
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _put_back() -> None:
    for number, ours in list(_ours.items()):
        is_in_place = signal.getsignal(number) is ours
        if is_in_place:
            try:
                signal.signal(number, ours.args[0])
            except ValueError:  # another thread collects a stream; our handler passes signals on until the next run
                return
        del _ours[number]


def _end_inherited_scopes() -> None:
    """In a forked child, handle signals as the program does: the runs that have scopes are those of its parent."""
    _put_back()
    _scopes.clear()


forks.call_in_child(_end_inherited_scopes)


def _handle(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    # It keeps the handler that it replaced: a program that replaces ours during a run may call it, or install it again,
    # long after the run.
    try:
        handler(number, frame)
    except KeyboardInterrupt:
        in_ours = [place for place, scope in enumerate(_scopes) if scope.takes(frame)]
        if not in_ours:
            for scope in _scopes:
                scope.was_raised = True
            raise
        place = in_ours[-1]
        for outer in _scopes[:place]:
            outer.was_raised |= not outer.in_package_code
        if not _scopes[place].note():
            raise
        for inner in _scopes[place + 1 :] if _scopes[place].encloses_others else ():
            inner.note()


def was_raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program raised the error, as handlers do that limit the time of a call."""
    handlers = [code for number in signal.valid_signals() if (code := _code_of(signal.getsignal(number))) is not None]
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: Any) -> CodeType | None:
    if isinstance(handler, partial):
        handler = handler.args[0] if handler.func is _handle else handler.func
    if not callable(handler):
        return None
    function: Any = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = type(handler).__call__
    code: CodeType | None = getattr(function, "__code__", None)
    return code


def interrupt_again() -> None:
    """Give an interrupt that was noted back to the program, whose handler gets it a moment later."""
    # From another thread, so that it does not strike here: the garbage collector may have called, which drops it.
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread as well, should it wait by then
        _thread.start_new_thread(signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGINT))
    else:
        _thread.start_new_thread(_thread.interrupt_main, ())


def end_as_if_killed() -> None:
    """Let SIGINT kill the program, after its exit handlers, if it ends with an uncaught `FanoutInterrupted`.

    Python does that for an uncaught plain `KeyboardInterrupt`, but not for its subclasses: they give exit status 1. It
    matters to shells: they end a loop or a script only if the program in it was killed by the signal.
    """
    atexit.unregister(_end_by_sigint)
    atexit.register(_end_by_sigint)


def _end_by_sigint() -> None:
    # Python sets it when it shows an uncaught exception. An interactive prompt (sys.ps1) goes on after that.
    if isinstance(getattr(sys, "last_value", None), FanoutInterrupted) and not hasattr(sys, "ps1"):
        with contextlib.suppress(KeyboardInterrupt):
            # If source text ends with this error, be it the script or an argument of exec, Python later dies of SIGINT.
            exec("raise KeyboardInterrupt")
