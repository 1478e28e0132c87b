"""Listeners: threads that call a callback with the events of a channel."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import cast

from ..checks import refuse_signature
from ..errors import OptionError
from ..tracebacks import ShortTypeError
from .receiver import AFTER_INTERRUPT_S, EventReceiver, Inbox, Ring
from .senders import is_async
from .types import Event

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Seconds without any progress of a listener, after which the end of a run, or of a channel, waits no more for it."""

EXIT_PATIENCE_S = 1.0
"""The same for the end of the program."""


def listen(ring: Ring, callback: Callable[[Event], object]) -> EventReceiver:
    """Start a listener; see `EventChannel.listen`.

    Raises:
        TypeError: `callback` is not callable, or is an `async` function.
        RuntimeError: The system allows no more threads.
    """
    if not callable(callback):
        raise ShortTypeError(f"callback must be callable, got {type(callback).__name__}")
    if is_async(callback):
        raise ShortTypeError("callback must be a plain function, got an async one, which nobody would await")
    try:
        refuse_signature("callback", callback, "(event)", None)
    except OptionError as error:
        raise ShortTypeError(str(error)) from None
    listener = _Listener(ring, callback)
    listener.start()
    # A daemon thread ends with the program, also in the middle of its unread events.
    atexit.unregister(_settle_all)
    atexit.register(_settle_all)
    return listener.inbox


class _Listener(threading.Thread):
    """The thread that reads a channel and calls a callback."""

    def __init__(self, ring: Ring, callback: Callable[[Event], object]) -> None:
        super().__init__(name="fanout-sync-listener", daemon=True)
        self.ring = ring
        self.inbox = Inbox(ring, _name_of(callback), self)
        self._callback = callback

    def start(self) -> None:
        self.inbox.register()
        try:
            super().start()
        except RuntimeError:  # the system allows no more threads
            self.inbox.unregister()
            raise

    def run(self) -> None:
        for item in self.inbox:
            try:
                self._callback(cast("Event", item))
            except BaseException:  # SystemExit as well: it would end this thread silently
                logger.exception("a listener raised for a %s", type(item).__name__)
            self.inbox.note_handled()
        self.inbox.unregister()


def _name_of(callback: Callable[[Event], object]) -> str:
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    code = getattr(callback, "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def _settle_all() -> None:
    """Let listeners finish at the end of the program, each as long as it makes progress; after Ctrl-C for a second."""
    rings = {thread.ring: None for thread in threading.enumerate() if isinstance(thread, _Listener)}
    until = time.monotonic() + AFTER_INTERRUPT_S
    # Python sets it when it shows an uncaught exception.
    is_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    with contextlib.suppress(KeyboardInterrupt):  # the user wants no more of it
        for ring in rings:
            ring.settle(EXIT_PATIENCE_S, until=until if is_interrupted or ring.was_interrupted else None)
