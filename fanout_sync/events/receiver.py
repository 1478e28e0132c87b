"""What a channel keeps for those who receive its events, and the receivers; it behaves as tokio's broadcast channel.

https://docs.rs/tokio/latest/tokio/sync/broadcast/
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from attrs import frozen

from .. import forks
from .types import Event

logger = logging.getLogger(__name__)

MOST_UNREAD = 100_000
"""How many events are kept for a listener that is behind."""

INTERRUPTED_WAIT_S = 0.2
"""Seconds that an interrupted run waits at most for its listeners."""

AFTER_INTERRUPT_S = 1.0
"""Seconds that the end of the program, or of a channel, waits at most for listeners if its last run was interrupted."""

_CHECK_INTERVAL_S = 0.05


@frozen
class Lagged:
    """Tells a receiver that was too slow how many events it lost; it comes once, in place of those events.

    Attributes:
        n: The number of lost events.
    """

    n: int


Item = Event | Lagged
"""What a receiver returns."""


class Ring:
    """The state that a channel and its receivers share.

    It has no references to receivers: each receiver keeps its own position, and one that is dropped costs nothing. It
    is separate from `EventChannel`, so that receivers do not keep a channel alive that nobody can send to any more.

    Attributes:
        events: The latest events, for all receivers but those of listeners.
        sent: How many events were sent.
        closed: Whether the channel is closed.
        was_interrupted: Whether the last run that sent events was interrupted.
        inboxes: The receivers of the listeners, each with the events that are unread there.
        lock: Held to read or change any of it.
        changed: Notified when there is something to read, or nothing more to come.
        handled: Notified when a listener has handled all of its events.
    """

    def __init__(self, capacity: int) -> None:
        self.events: deque[Event] = deque(maxlen=capacity)
        self.sent = 0
        self.closed = False
        self.was_interrupted = False
        self.inboxes: list[Inbox] = []
        self._make_lock()
        forks.disown_in_child(self)

    def _make_lock(self) -> None:
        # Reentrant: a signal handler or a finalizer may send, or close the channel, in a thread that holds the lock.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.handled = threading.Condition(self.lock)
        self._is_pushing = False

    def disown(self) -> None:
        """Have no listeners, in a forked child: their threads are in the parent, and one of them may hold the lock."""
        self.inboxes = []
        self._make_lock()

    def push(self, event: Event) -> None:
        with self.lock:
            self._is_pushing = True
            try:
                overrun = self._push(event)
            finally:
                self._is_pushing = False
        for inbox in overrun:  # without the lock, because a log handler may take long
            logger.warning(
                "listener %s is more than %d events behind; the oldest ones are dropped", inbox.name, MOST_UNREAD
            )

    def _push(self, event: Event) -> list[Inbox]:
        """Keep `event`; return the inboxes that lose one for the first time."""
        if self.closed:
            return []
        self.events.append(event)
        self.sent += 1
        overrun = [inbox for inbox in self.inboxes if inbox.put(event)] if self.inboxes else []
        self.changed.notify_all()
        return overrun

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until every listener has handled what was sent before; return whether all have done so in time."""
        deadline = time.monotonic() + timeout
        with self.lock:
            behind = self._behind()
            while behind := _still(behind):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self.handled.wait(min(left_s, _CHECK_INTERVAL_S))
        return True

    def settle_run(self, patience_s: float, is_interrupted: Callable[[], bool]) -> None:
        """Settle at the end of a run, of which `is_interrupted` tells whether it was, or is by now."""
        self.was_interrupted = False
        self.settle(patience_s, is_interrupted)
        self.was_interrupted = is_interrupted()

    def settle(
        self, patience_s: float, is_interrupted: Callable[[], bool] = lambda: False, until: float | None = None
    ) -> None:
        """Wait until every listener has handled what was sent before, for as long as it makes progress.

        One that has handled nothing for a while is not waited for again until it has handled something. If the last run
        was interrupted, the wait is short, whatever progress there is.

        Args:
            patience_s: Seconds to wait for one that makes no progress.
            is_interrupted: Returns whether to wait no longer than `INTERRUPTED_WAIT_S` from now on.
            until: When to stop waiting at the latest, on the clock of `time.monotonic()`; `None` for any time.
        """
        given_up = []
        with self.lock:
            # In a signal handler that has interrupted `push`, the state is half changed; at the very end of the
            # interpreter, when it closes streams that are still open, the threads of listeners have stopped.
            if self._is_pushing or sys.is_finalizing():
                return
            behind = {inbox: end for inbox, end in self._behind().items() if inbox.handled != inbox.stuck_at}
            began = time.monotonic()
            if until is None and self.was_interrupted:
                until = began + AFTER_INTERRUPT_S
            while behind := _still(behind):
                now = time.monotonic()
                if until is None and is_interrupted():
                    patience_s, until = INTERRUPTED_WAIT_S, now + INTERRUPTED_WAIT_S
                for inbox in [inbox for inbox in behind if now >= max(began, inbox.handled_at) + patience_s]:
                    inbox.stuck_at = inbox.handled
                    given_up.append((inbox.name, len(inbox.unread)))
                    del behind[inbox]
                if until is not None and now >= until:
                    return
                if behind:
                    self.handled.wait(_CHECK_INTERVAL_S)
        for name, unread in given_up if until is None else ():
            logger.warning(
                "listener %s has not returned for %s s and is not waited for; %d events are unread",
                *(name, patience_s, unread),
            )

    def _behind(self) -> dict[Inbox, int]:
        """Return, for each listener but that of this thread, up to where it has to read."""
        return {inbox: inbox.received for inbox in self.inboxes if inbox.thread is not threading.current_thread()}


def _still(behind: dict[Inbox, int]) -> dict[Inbox, int]:
    return {inbox: end for inbox, end in behind.items() if inbox.handled < end and not inbox.is_gone}


class EventReceiver:
    """A reader of a channel: an iterator that ends when the channel is closed and drained, or the receiver is closed.

    It yields each `Event`, and a `Lagged` with the number of events it lost. `EventChannel.subscribe` makes it.
    """

    def __init__(self, ring: Ring) -> None:
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
                if self._has_unread():
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

    def _has_unread(self) -> bool:  # with the lock held
        return self._next < self._ring.sent

    def _take(self) -> Item:  # with the lock held
        oldest = self._ring.sent - len(self._ring.events)
        if self._next < oldest:
            lost, self._next = oldest - self._next, oldest
            return Lagged(lost)
        self._next += 1
        return self._ring.events[self._next - 1 - oldest]


class Inbox(EventReceiver):
    """The receiver of a listener: it has the unread events for itself, and tells of lost ones only in the log.

    Attributes:
        name: Says which listener it is.
        thread: The thread of the listener.
        unread: The events that were sent and not taken.
        received: How many were sent, those that were dropped included.
        handled: How many of them are handled or dropped.
        handled_at: When the last one was handled, on the clock of `time.monotonic()`.
        stuck_at: What `handled` was when it was last given up; -1 if it never was.
        is_gone: Whether its thread has ended.
    """

    def __init__(self, ring: Ring, name: str, thread: threading.Thread) -> None:
        super().__init__(ring)
        self.name = name
        self.thread = thread
        self.unread: deque[Event] = deque(maxlen=MOST_UNREAD)
        self.received = 0
        self.handled = 0
        self.handled_at = 0.0
        self.stuck_at = -1
        self.is_gone = False
        self._has_lost = False

    def put(self, event: Event) -> bool:
        """Keep `event`, with the lock held; return whether another one is dropped for it, for the first time."""
        if self._closed:
            return False
        is_full = len(self.unread) == MOST_UNREAD
        self.unread.append(event)
        self.received += 1
        is_first_loss = is_full and not self._has_lost
        self._has_lost |= is_full
        return is_first_loss

    def note_handled(self) -> None:
        """Note that the listener is done with the event that it took last."""
        with self._ring.lock:
            self.handled = self.received - len(self.unread)
            self.handled_at = time.monotonic()
            if not self.unread:  # to wake a thread for each event would slow the listener down
                self._ring.handled.notify_all()

    def close(self) -> None:
        """Close this receiver, whose unread events are dropped; a second call does nothing."""
        with self._ring.lock:
            self.unread.clear()
            super().close()

    def register(self) -> None:
        """Receive all events that are sent from now on."""
        with self._ring.lock:
            self._ring.inboxes.append(self)

    def unregister(self) -> None:
        """Receive no more events, and have nobody wait for this listener."""
        with self._ring.lock:
            self.is_gone = True
            if self in self._ring.inboxes:  # a forked child has forgotten them
                self._ring.inboxes.remove(self)
            self._ring.handled.notify_all()

    def _has_unread(self) -> bool:
        return bool(self.unread)

    def _take(self) -> Event:
        return self.unread.popleft()
