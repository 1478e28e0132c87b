"""Ctrl-C while a run is at work: noted, so that it cannot strike in the middle of something."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FrameType, TracebackType
from typing import Any

from .errors import FanoutInterrupted

PATIENCE_S = 1.0
"""How long after a first interrupt that nobody attends to a second one is raised, in seconds."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_scopes: list[InterruptScope] = []
_ours: dict[int, partial[None]] = {}


class InterruptScope:
    """Within it an interrupt is noted; in code of the caller's that runs there it is raised as ever.

    There is one for each call of a runner, from before its journal is opened until after its last worker is gone.

    Python's own handler raises `KeyboardInterrupt` wherever the main thread happens to be. In code of this package that
    would lose what is just being passed on. What the program's handler does is up to it as before: it is called first,
    and only if it raises `KeyboardInterrupt`, as the default one does, is that an interrupt. Signals that have no
    Python handler keep what they have. Outside the main thread of the main interpreter a scope does nothing.

    Args:
        own_code: The code of a generator of this package that gives control to the caller at a `yield`. An interrupt
            that strikes it just before that is noted, so that what it is about to yield is not lost.
        encloses_others: Whether the calls of runners that go on within it are interrupted with it, as for the command
            line. Otherwise scopes that were entered later are of other streams, which are just not being read.

    Attributes:
        is_inside: Whether code of this package is running; false while the caller's own is, such as its generator.
        is_interrupted: Whether there was an interrupt while it was.
        was_raised: Whether there was one while it was not.
        is_attended: Whether the interrupt is being dealt with. As long as it is not, another one that comes after
            `PATIENCE_S` is raised: something does not return.
    """

    def __init__(self, own_code: CodeType | None = None, *, encloses_others: bool = False) -> None:
        self._own_code = own_code
        self.encloses_others = encloses_others
        self.is_inside = True
        self.is_interrupted = False
        self.was_raised = False
        self.is_attended = False
        self._interrupted_at = 0.0
        self._listeners: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def callers_code(self) -> Iterator[None]:
        """Have interrupts raised meanwhile: the caller's own code is about to run."""
        self.is_inside = False
        try:
            yield
        finally:
            self.is_inside = True

    @contextlib.contextmanager
    def calling(self, listener: Callable[[], object]) -> Iterator[None]:
        """Have `listener` called when an interrupt is noted meanwhile, in the signal handler; now if one was before."""
        self._listeners.append(listener)
        try:
            if self.is_interrupted:
                listener()
            yield
        finally:
            self._listeners.remove(listener)

    def takes(self, frame: FrameType | None) -> bool:
        """Return whether an interrupt that strikes this frame is to be noted here."""
        return self.is_inside or (frame is not None and frame.f_code is self._own_code)

    def note(self) -> bool:
        """Note an interrupt; return whether that will do."""
        now = time.monotonic()
        if self.is_interrupted and not self.is_attended and now > self._interrupted_at + PATIENCE_S:
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
                _put_back()  # and only then gone itself: until that is done, one more interrupt does no harm
            _scopes.remove(self)


def _install() -> None:
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and handler is not _ours.get(number):
            ours = partial(_handle, handler)
            try:
                signal.signal(number, ours)
            except ValueError:  # a subinterpreter
                return
            _ours[number] = ours


def _put_back() -> None:
    for number, ours in list(_ours.items()):
        is_in_place = signal.getsignal(number) is ours
        if is_in_place:
            try:
                signal.signal(number, ours.args[0])
            except ValueError:  # a stream that another thread collects; ours hands everything on until the next run
                return
        del _ours[number]


def _handle(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    # It knows whom it stands in for: who replaces it during a run may call it, or put it back, long after that.
    try:
        handler(number, frame)
    except KeyboardInterrupt:
        inside = [place for place, scope in enumerate(_scopes) if scope.takes(frame)]
        if not inside:
            for scope in _scopes:
                scope.was_raised = True
            raise
        innermost = _scopes[inside[-1]]
        others = _scopes[inside[-1] + 1 :] if innermost.encloses_others else []
        are_noted = [scope.note() for scope in (innermost, *others)]
        if not all(are_noted):
            raise


def interrupt_again() -> None:
    """Give an interrupt that was noted back to the program, whose handler gets it a moment later."""
    # From another thread, so that it does not strike here: the garbage collector may have called, which drops it.
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread as well, should it wait by then
        _thread.start_new_thread(signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGINT))
    else:
        _thread.start_new_thread(_thread.interrupt_main, ())


def end_as_if_killed() -> None:
    """Have the program die of SIGINT, after all else of its end, if it ends with a `FanoutInterrupted`.

    Python does so for a plain `KeyboardInterrupt` that nobody catches, and not for its subclasses: those are an exit
    status of 1. A shell goes by it: it ends a loop or a script only if what it ran in it died of the signal.
    """
    atexit.unregister(_pass_for_plain)
    atexit.register(_pass_for_plain)


def _pass_for_plain() -> None:
    # Set when Python shows an exception that nobody caught. An interactive prompt goes on after that.
    if isinstance(getattr(sys, "last_value", None), FanoutInterrupted) and not hasattr(sys, "ps1"):
        with contextlib.suppress(KeyboardInterrupt):
            # Python notes when source text ends like this, be it the script or the argument of exec, and dies of it.
            exec("raise KeyboardInterrupt")
