"""A channel that carries events from many senders to many receivers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from ..errors import OptionError
from .listener import PATIENCE_S, listen
from .receiver import EventReceiver, Lagged, Ring
from .senders import check_event
from .types import Event

__all__ = ["EventChannel", "EventReceiver", "Lagged"]


class EventChannel:
    """A bounded channel: each event goes to all receivers that have subscribed before it is sent.

    A sender never blocks: a receiver that is more than `capacity` events behind loses the oldest ones; a listener is
    called with all of them. Any thread and any signal handler may send. The channel is closed by `close`, at the end of
    a `with` block, or when nothing refers to it any more; receivers still get the events sent before. It lives in one
    process: give it to a runner as `event_tx`, and it gets the events of worker processes, too.

    Args:
        capacity: How many events it keeps for receivers that are behind; at least 1.

    Raises:
        OptionError: `capacity` is no int of at least 1.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if type(capacity) is not int or capacity < 1:  # type(), because True is an int, too
            raise OptionError(f"capacity must be an int of at least 1, got {capacity!r:.60}")
        self._ring = Ring(capacity)
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

    def listen(self, callback: Callable[[Event], object]) -> EventReceiver:
        """Call `callback` with each event sent from now on, in a daemon thread of its own.

        A listener may be slower than the events: unlike a receiver, it loses none as long as no more than 100 000 are
        unread. Beyond that the oldest are dropped, which is logged once. Other listeners and receivers do not matter.
        The end of a run waits until the callback has handled all events, as long as each takes less than five seconds.

        Args:
            callback: Called with one event at a time, in order. An exception in it is logged, or shown on standard
                error if logging is not configured; the next event follows.

        Returns:
            The receiver that the thread reads; closing it ends the thread after the current call.

        Raises:
            TypeError: `callback` is not callable, or is an `async` function.
        """
        return listen(self._ring, callback)

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
        """Close the channel, and wait for its listeners, as the end of a run does; a second call does nothing.

        Receivers still get the events sent before.
        """
        self._ring.close()
        self._ring.settle(PATIENCE_S)

    def __enter__(self) -> EventChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._ring.close()
        else:
            self.close()

    def __deepcopy__(self, memo: object) -> EventChannel:
        return self  # the copies of an executor share it, as threads may

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EventChannel lives in one process: give it to the runner as event_tx, not to the executor")


def settle_listeners(channel: EventChannel, is_interrupted: Callable[[], bool]) -> None:
    """Wait until every listener has handled all events sent before, each as long as it makes progress.

    Args:
        channel: Whose listeners they are.
        is_interrupted: Returns whether to wait only a fraction of a second from now on.
    """
    channel._ring.settle_run(PATIENCE_S, is_interrupted)
