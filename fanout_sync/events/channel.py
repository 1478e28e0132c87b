"""A channel that carries events from many senders to many receivers; it behaves as tokio's broadcast channel.

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

from .. import forks
from ..errors import OptionError
from .senders import check_event
from .types import Event

__all__ = ["EventChannel", "EventReceiver", "Lagged"]

logger = logging.getLogger(__name__)


@frozen
class Lagged:
    """Tells a receiver that was too slow how many events it lost; it comes once, in place of those events.

    Attributes:
        n: The number of lost events.
    """

    n: int


Item = Event | Lagged
"""What a receiver returns."""


class EventChannel:
    """A bounded channel: each event goes to all receivers that have subscribed before it is sent.

    A sender never blocks: a receiver that is more than `capacity` events behind loses the oldest ones. Any thread
    and any signal handler may send. The channel is closed by `close`, at the end of a `with` block, or when nothing
    refers to it any more; receivers still get the events sent before. It lives in one process: give it to a runner as
    `event_tx`, and it gets the events of worker processes, too.

    Args:
        capacity: How many events it keeps for receivers that are behind; at least 1.

    Raises:
        OptionError: `capacity` is no int of at least 1.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if type(capacity) is not int or capacity < 1:  # type(), because True is an int, too
            raise OptionError(f"capacity must be an int of at least 1, got {capacity!r:.60}")
        self._ring = _Ring(capacity)
        # Not at exit: a forked child that exits would wait for a lock that a thread of its parent holds.
        weakref.finalize(self, self._ring.close).atexit = False

    def send(self, event: Event) -> None:
        """Send `event` to all receivers; after `close` it is dropped, so that an abandoned step may still send.

        Raises:
            TypeError: `event` is no `Event`.
        """
        check_event(event)
        self._ring.push(event)

    def subscribe(self) -> EventReceiver:
        """Return a receiver of all events sent from now on."""
        return EventReceiver(self._ring)

    def listen(self, callback: Callable[[Item], object]) -> EventReceiver:
        """Call `callback` with each event sent from now on, and each `Lagged`, in a daemon thread of its own.

        Args:
            callback: Called with one item at a time, in order. An exception in it is logged; the next item follows.

        Returns:
            The receiver that the thread reads; closing it ends the thread after the current call.

        Raises:
            TypeError: `callback` is not callable.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        listener = _Listener(self._ring, callback)
        listener.start()
        return listener.receiver

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every listener has handled all events sent before this call.

        A call in the callback of a listener does not wait for that listener.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether all listeners have done so in time.
        """
        return self._ring.flush(timeout)

    def close(self) -> None:
        """Close the channel; a second call does nothing. Receivers still get the events sent before."""
        self._ring.close()

    def __enter__(self) -> EventChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: object) -> EventChannel:
        return self  # the copies of an executor share it, as threads may

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EventChannel lives in one process: give it to the runner as event_tx, not to the executor")


class EventReceiver:
    """A reader of a channel: an iterator that ends when the channel is closed and drained, or the receiver is closed.

    It yields each `Event`, and a `Lagged` with the number of events it lost. `EventChannel.subscribe` makes it.
    """

    def __init__(self, ring: _Ring) -> None:
        self._ring = ring
        self._closed = False
        with ring.lock:
            self._next = ring.sent

    def recv(self, timeout: float | None = None) -> Item:
        """Wait for the next item.

        Args:
            timeout: Seconds to wait at most; 0 does not wait, `None` waits without limit.

        Raises:
            TimeoutError: No item came in time.
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
        """Close this receiver; a second call does nothing. Threads that wait for an item are woken."""
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
    """The state that a channel and its receivers share.

    It has no references to receivers: each receiver keeps its own position, and one that is dropped costs nothing. It
    is separate from `EventChannel`, so that receivers do not keep a channel alive that nobody can send to any more.
    """

    def __init__(self, capacity: int) -> None:
        self.events: deque[Event] = deque(maxlen=capacity)
        self.sent = 0
        self.closed = False
        self.listeners: list[_Listener] = []
        self._make_lock()
        forks.disown_in_child(self)

    def _make_lock(self) -> None:
        # Reentrant: a signal handler or a finalizer may send, or close the channel, in a thread that holds the lock.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.handled = threading.Condition(self.lock)

    def disown(self) -> None:
        """Have no listeners, in a forked child: their threads are in the parent, and one of them may hold the lock."""
        self.listeners = []
        self._make_lock()

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
    """The thread that reads a channel and calls a callback."""

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
        except RuntimeError:  # the system allows no more threads
            self._unregister()
            raise

    def is_past(self, sent: int) -> bool:
        return self._handled >= sent or self is threading.current_thread()

    def run(self) -> None:
        for item in self.receiver:
            try:
                self._callback(item)
            except BaseException:  # SystemExit as well: it would end this thread silently
                logger.exception("a listener raised for a %s", type(item).__name__)
            with self._ring.lock:
                self._handled = self.receiver._next
                self._ring.handled.notify_all()
        self._unregister()

    def _unregister(self) -> None:
        with self._ring.lock:
            self._ring.listeners.remove(self)
            self._ring.handled.notify_all()
