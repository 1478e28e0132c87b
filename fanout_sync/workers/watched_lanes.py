"""The lanes of one set: what one selector watches of them, and when they are killed."""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from .. import forks
from ..executors.executor import warn_of_teardown
from .lane import CLOSED_DESCRIPTORS, Lane, kill_lanes, open_pidfd
from .link import CallerLink
from .loss import STOP_BY_ITSELF_S
from .output import Output

logger = logging.getLogger(__name__)

READ_BYTES_PER_S = 50_000_000
"""How many bytes of a message a worker reads in a second, at least; the time of its step begins after that."""


class WatchedLanes:
    """The lanes of one set, watched by one selector. Not thread-safe, except for `wake`.

    Attributes:
        lanes: All of them.
        idle: Those whose worker waits for a message.
        select: Waits for events like `selectors.BaseSelector.select`. The data of each key is a function that takes the
            event mask.
        must_check: Whether some lanes have to be checked now and then, because no event says that their worker is dead
            or has to be killed since it does not exit.
        next_overdue_at: When the first step is overdue, or some time before, on the clock of `Lane.now`, which is never
            ahead of `time.monotonic()`.

    Raises:
        OSError: The system has no more descriptors.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.idle: list[Lane] = []
        self.must_check = False
        self.next_overdue_at = math.inf
        self._selector = selectors.DefaultSelector()
        self.select = self._selector.select
        self._wake_lock = threading.RLock()  # a signal handler may call `wake` in a thread that holds it
        self._wake_ends: tuple[socket.socket, socket.socket] | None = None
        try:
            self._wake_ends = self._open_wake_ends()
        except BaseException:
            self._selector.close()
            raise
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Close this process's descriptors, in a forked child; the epoll object behind one of them is its parent's."""
        self._wake_lock = threading.RLock()  # a thread of the parent may hold the other one
        self.lanes.clear()
        self.idle.clear()
        with contextlib.suppress(OSError):  # another thread of the parent was just closing them
            self.close()

    def _open_wake_ends(self) -> tuple[socket.socket, socket.socket]:
        # Sockets and no pipe: gevent and eventlet leave a socket alone that does not block, but not `os.write`.
        reader, writer = socket.socketpair()
        try:
            reader.setblocking(False)
            writer.setblocking(False)
            self._selector.register(reader, selectors.EVENT_READ, lambda mask: reader.recv(4096))
        except BaseException:
            reader.close()
            writer.close()
            raise
        return reader, writer

    def wake(self) -> None:
        """Make `select` return, now or when it is called next. From any thread, and from a signal handler."""
        with self._wake_lock:  # or `close` might close the sockets now
            if self._wake_ends is not None:
                with contextlib.suppress(BlockingIOError):  # it is full of earlier calls
                    self._wake_ends[1].send(b"!")

    def close(self) -> None:
        """Stop watching. All lanes are forgotten already."""
        self._selector.close()
        with self._wake_lock:
            # `None` comes first: a signal handler in this thread must not find closed sockets.
            ends, self._wake_ends = self._wake_ends, None
            for end in ends or ():
                end.close()

    def watch(
        self,
        lane: Lane,
        on_link: Callable[[Lane, int], None],
        on_death: Callable[[Lane, int], None],
        on_output: Callable[[Lane, Output, int], None],
    ) -> None:
        """Add a lane and watch it; `select` then yields the functions for its events.

        Raises:
            OSError: The system watches no more descriptors. The lane has to be forgotten then.
        """
        self.lanes.append(lane)
        self._selector.register(lane.link, selectors.EVENT_READ, partial(on_link, lane))
        if lane.pidfd is None:
            lane.pidfd = open_pidfd(lane.pid)
        if lane.pidfd is not None:
            self._selector.register(lane.pidfd, selectors.EVENT_READ, partial(on_death, lane))
        for output in lane.outputs:
            self._selector.register(output, selectors.EVENT_READ, partial(on_output, lane, output))
        self._update_must_check()

    def watch_link_for(self, lane: Lane, events: int) -> None:
        """Wait for other events of the lane's link."""
        self._selector.modify(lane.link, events, self._selector.get_key(lane.link).data)

    def unwatch(self, end: CallerLink | Output | int) -> None:
        """Stop watching one descriptor of a lane; nothing happens if it is not watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(end)

    def forget(self, lane: Lane) -> None:
        """Remove a lane, also one that could only be watched in part."""
        self.lanes.remove(lane)
        if lane in self.idle:
            self.idle.remove(lane)
        self.unwatch(lane.link)
        if lane.pidfd is not None:
            self.unwatch(lane.pidfd)
        for output in lane.outputs:
            self.unwatch(output)
        lane.state = "gone"
        self._update_must_check()

    def expect_exit(self, lane: Lane, patience_s: float) -> None:
        """Give the lane no more messages, and kill its worker if it has not exited after `patience_s` seconds."""
        if lane.state == "idle":
            self.idle.remove(lane)
        lane.state = "leaving"
        lane.kill_at = lane.now() + patience_s
        self.must_check = True

    def _update_must_check(self) -> None:
        self.must_check = any(lane.pidfd is None or lane.kill_at for lane in self.lanes)

    def dead_without_event(self) -> list[Lane]:
        """Return the lanes whose worker is dead, of those whose death no event tells."""
        return [lane for lane in self.lanes if lane.pidfd is None and lane.is_dead()]

    def kill_those_that_do_not_exit(self) -> None:
        """Kill the workers that should have exited by now."""
        for lane in self.lanes:
            if lane.kill_at and lane.now() >= lane.kill_at:
                if lane.is_tearing_down:
                    warn_of_teardown(logger, "its worker is killed")
                lane.kill_reason = lane.kill_reason or CLOSED_DESCRIPTORS
                kill_lanes([lane])

    def now(self) -> float:
        """Return the time that timeouts go by; see `Lane.now`."""
        return self.lanes[0].now() if self.lanes else time.monotonic()

    def start_clock(self, lane: Lane) -> None:
        """Have the worker killed when its step is overdue. Called once more when a long message has been sent."""
        assignment = lane.assignment
        if assignment is not None and assignment.timeout_s is not None:
            to_read_s = len(assignment.message) / READ_BYTES_PER_S
            lane.overdue_at = lane.now() + assignment.timeout_s + STOP_BY_ITSELF_S + to_read_s
            self.next_overdue_at = min(self.next_overdue_at, lane.overdue_at)

    def kill_overdue(self) -> None:
        """Kill the workers whose step is overdue."""
        overdue = [lane for lane in self.lanes if lane.overdue_at <= lane.now()]
        kill_lanes(overdue)
        for lane in overdue:
            lane.is_timed_out = True
            lane.overdue_at = math.inf
        self.next_overdue_at = min((lane.overdue_at for lane in self.lanes), default=math.inf)
