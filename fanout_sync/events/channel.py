"""Events from many senders to many receivers, with the semantics of tokio's broadcast channel.

https://docs.rs/tokio/latest/tokio/sync/broadcast/
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from attrs import frozen

from ..errors import OptionError
from .senders import check_event
from .types import Event

__all__ = ["EventChannel", "EventReceiver", "Lagged"]

logger = logging.getLogger(__name__)


@frozen
class Lagged:
    """What a receiver that was too slow gets, once, in place of the events it lost.

    Attributes:
        n: How many.
    """

    n: int


Item = Event | Lagged
"""What a receiver gets."""


class EventChannel:
    """A bounded channel; everything sent goes to every receiver that has subscribed by then.

    A sender never blocks: a receiver that is more than `capacity` events behind loses the oldest ones. Any thread
    may send, a signal handler too. The channel is closed by `close`, at the end of a `with` block, or when nothing
    refers to it any more; receivers still get what was sent before. It lives in one process: give it to a runner as
    `event_tx`, and events arrive from worker processes as well.

    Args:
        capacity: How many events are held for receivers that are behind; at least 1.

    Raises:
        OptionError: `capacity` is no such number.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if type(capacity) is not int or capacity < 1:  # True is an int too, and no capacity
            raise OptionError(f"capacity must be an int of at least 1, got {capacity!r:.60}")
        self._ring = _Ring(capacity)
        # Not at exit: a forked child that leaves would wait for a lock whose owner stayed behind in the parent.
        weakref.finalize(self, self._ring.close).atexit = False

    def send(self, event: Event) -> None:
        """Send `event` to all receivers; after `close` it is dropped, so that an abandoned step costs nothing.

        Raises:
            TypeError: `event` is no `Event`.
        """
        check_event(event)
        self._ring.push(event)

    def subscribe(self) -> EventReceiver:
        """Return a receiver of everything sent from now on."""
        return EventReceiver(self._ring)

    def listen(self, callback: Callable[[Item], object]) -> EventReceiver:
        """Call `callback` with each event sent from now on, and each `Lagged`, in a daemon thread of its own.

        Args:
            callback: Called with one item at a time, in order. What it raises is logged, and it is called again.

        Returns:
            The receiver that the thread reads; closing it ends the thread after the call that is under way.

        Raises:
            TypeError: `callback` is not callable.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        listener = _Listener(self._ring, callback)
        listener.start()
        return listener.receiver

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every listener has handled everything sent before this call.

        In a listener's own callback, that listener is not waited for.

        Args:
            timeout: How long to wait at most, in seconds.

        Returns:
            Whether they have; `False` when the time was up.
        """
        return self._ring.flush(timeout)

    def close(self) -> None:
        """Close the channel; once more does nothing. Receivers still get what was sent before."""
        self._ring.close()

    def __enter__(self) -> EventChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EventChannel lives in one process: give it to the runner as event_tx, not to the executor")


class EventReceiver:
    """One reader of a channel: an iterator that ends when the channel is closed and drained, or itself is closed.

    What it gives is an `Event`, or a `Lagged` that tells how many events it lost. `EventChannel.subscribe` makes it.
    """

    def __init__(self, ring: _Ring) -> None:
        self._ring = ring
        self._closed = False
        with ring.lock:
            self._next = ring.sent

    def recv(self, timeout: float | None = None) -> Item:
        """Wait for the next item.

        Args:
            timeout: How long to wait at most, in seconds; 0 only looks, `None` waits for ever.

        Raises:
            TimeoutError: Nothing came in time.
            EOFError: The channel is closed and drained, or the receiver is closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ring = self._ring
        with ring.lock:
            while not self._closed:
                if self._next < ring.sent:
                    return self._take()
                if ring.closed:
                    break
                wait_s = None if deadline is None else deadline - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    raise TimeoutError(f"no event within {timeout} s")
                ring.changed.wait(wait_s)
        raise EOFError("the receiver is closed" if self._closed else "the channel is closed and drained")

    def close(self) -> None:
        """Close this receiver; once more does nothing. Whoever waits in `recv` or iterates is woken and ends."""
        with self._ring.lock:
            self._closed = True
            self._ring.changed.notify_all()

    def __iter__(self) -> EventReceiver:
        return self

    def __next__(self) -> Item:
        try:
            return self.recv()
        except EOFError:
            raise StopIteration from None

    def __enter__(self) -> EventReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Item:  # with the lock held
        oldest = self._ring.sent - len(self._ring.events)
        if self._next < oldest:
            lost, self._next = oldest - self._next, oldest
            return Lagged(lost)
        self._next += 1
        return self._ring.events[self._next - 1 - oldest]


class _Ring:
    """What a channel and its receivers share.

    Receivers know it, and it does not know them: a receiver that was dropped costs nothing, and each keeps its own
    place. It is apart from `EventChannel`, so that receivers do not keep alive a channel that nobody can send to.
    """

    def __init__(self, capacity: int) -> None:
        self.events: deque[Event] = deque(maxlen=capacity)
        self.sent = 0
        self.closed = False
        self.listeners: list[_Listener] = []
        # Reentrant: a signal handler or a finalizer may send, or close the channel, in a thread that holds it.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.handled = threading.Condition(self.lock)

    def push(self, event: Event) -> None:
        with self.lock:
            if not self.closed:
                self.events.append(event)
                self.sent += 1
                self.changed.notify_all()

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    def flush(self, timeout: float) -> bool:
        with self.lock:
            sent = self.sent
            return self.handled.wait_for(lambda: all(listener.is_past(sent) for listener in self.listeners), timeout)


class _Listener(threading.Thread):
    """Reads a channel for a callback."""

    def __init__(self, ring: _Ring, callback: Callable[[Item], object]) -> None:
        super().__init__(name="fanout-sync-listener", daemon=True)
        self.receiver = EventReceiver(ring)
        self._ring = ring
        self._callback = callback
        self._handled = self.receiver._next

    def start(self) -> None:
        with self._ring.lock:
            self._ring.listeners.append(self)
        try:
            super().start()
        except RuntimeError:  # no more threads to be had
            self._leave()
            raise

    def is_past(self, sent: int) -> bool:
        return self._handled >= sent or self is threading.current_thread()

    def run(self) -> None:
        for item in self.receiver:
            try:
                self._callback(item)
            except BaseException:  # SystemExit as well: it would end this thread without a word
                logger.exception("a listener raised for a %s", type(item).__name__)
            with self._ring.lock:
                self._handled = self.receiver._next
                self._ring.handled.notify_all()
        self._leave()

    def _leave(self) -> None:
        with self._ring.lock:
            self._ring.listeners.remove(self)
            self._ring.handled.notify_all()
