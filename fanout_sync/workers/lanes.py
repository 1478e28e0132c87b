"""A set of lanes: each runs one step at a time in a worker process of its own, and is replaced when that dies."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import selectors
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..executors.current_step import Meter
from ..executors.executor import TEARDOWN_GRACE_S, warn_of_teardown
from ..interrupts import InterruptScope
from ..records.status import StepError
from . import messages
from .guard_process import stand_guard
from .lane import CLOSED_DESCRIPTORS, LOOK_EVERY_S, Assignment, Lane, kill_lanes, open_pidfd, start_worker
from .link import CallerLink, LinkLost
from .log_records import emit_here, levels_here
from .loss import STOP_BY_ITSELF_S, Lost, kill_reason_for, loss_of
from .messages import Message, pack
from .output import Output

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""So many workers in a row that fail to start, with no step done between, and no more are started."""

MAX_DELIVERIES = 3
"""So many workers in a row that die before they have read the same step, and it is given up."""

MOST_LANES = 3
"""So many times the bound there may be workers, with those that are tearing down and those that get ready."""

READS_PER_S = 50_000_000
"""How many bytes of a message a worker reads in a second, at the least; its step's time begins after that."""

_START_AGAIN_S = 0.3
_EXIT_PATIENCE_S = 1.0  # from a worker's closed socket to its exit; a core dump takes its time


class Lanes:
    """Bounded, crash-isolating dispatch of messages over worker processes.

    A small event loop: `turn` waits on every worker's socket and pidfd at once. Not thread-safe but for `wake`; who
    turns it owns it. Each `start` puts exactly one `(index, answer)` into `answers`.

    Args:
        bound: The largest number of workers.
        payload: The pickled executor, sent once to each worker; empty when there is none.
        on_event: Takes each event that a worker sends, as JSON; `None` when nobody listens.
        warm: Workers of an earlier set.
        meter: Takes what steps report as used; where only calls are made, nobody does.
        max_tasks: How many messages a worker gets before it is replaced; `None` for any number.
        captures_output: Whether what workers print comes to this process's streams.

    Raises:
        OSError: There are no more descriptors to be had. `kill_all` ends the warm workers then.
    """

    def __init__(
        self,
        bound: int,
        payload: bytes,
        on_event: Callable[[str], None] | None = None,
        warm: Iterable[Lane] = (),
        *,
        meter: Meter | None = None,
        max_tasks: int | None = None,
        captures_output: bool = False,
    ) -> None:
        self.answers: deque[tuple[int, Message | Lost]] = deque()
        self._bound = bound
        self._prepare = pack((messages.PREPARE, payload, on_event is not None, levels_here()))
        self._on_event = on_event
        self._meter = meter
        self._max_tasks = max_tasks or math.inf
        self._captures_output = captures_output
        self._selector = selectors.DefaultSelector()
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._pending: deque[Assignment] = deque()
        self._failed_starts = 0
        self._last_failure: Lost | None = None
        self._start_at = 0.0
        self._must_look = False
        self._look_at = math.inf
        self._wake_lock = threading.RLock()  # a signal handler may wake the very thread that is just about to
        self._wake_fds: tuple[int, int] | None = None
        try:
            self._wake_fds = self._open_wake_pipe()
            for lane in warm:
                if lane.prepared != self._prepare:
                    lane.state, lane.start_is_known, lane.prepared = "starting", False, self._prepare
                self._adopt(lane)
        except BaseException:
            self.abort()
            raise

    def start(self, index: int, message: bytes, timeout_s: float | None = None, label: str = "") -> None:
        """Give `message` to a worker, as soon as one is free.

        Args:
            index: Comes with the answer.
            message: What it is to answer.
            timeout_s: How many seconds it may take before it is killed.
            label: What its output is marked with.
        """
        self._pending.append(Assignment(index, message, timeout_s, label))
        try:
            self._assign()
        except Exception as error:
            self._collapse(error)

    def turn(self, timeout: float | None = None) -> None:
        """Wait until something happens, at most `timeout` seconds, and see to it."""
        may_wait_for_more = timeout is None or timeout > LOOK_EVERY_S
        if may_wait_for_more and (self._must_look or (self._pending and not self._lanes)):
            timeout = LOOK_EVERY_S
        has_limits = self._look_at < math.inf
        if has_limits and may_wait_for_more:
            timeout = LOOK_EVERY_S
        try:
            for key, mask in self._selector.select(timeout):
                key.data(mask)
            if self._must_look:
                self._look_after_lanes()
            if has_limits and time.monotonic() >= self._look_at:
                self._kill_overdue()
            if self._pending and not self._lanes:
                self._assign()
        except Exception as error:
            self._collapse(error)

    def wake(self) -> None:
        """Make `turn` return, now or when it is called next. From any thread, and from a signal handler."""
        with self._wake_lock:  # or its owner might close the pipe just now, and somebody else get the number
            if self._wake_fds is not None:
                with contextlib.suppress(BlockingIOError):  # full of calls that are not answered yet
                    os.write(self._wake_fds[1], b"!")

    def _open_wake_pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            os.set_blocking(writer, False)
            self._selector.register(reader, selectors.EVENT_READ, lambda mask: os.read(reader, 4096))
        except BaseException:
            os.close(reader)
            os.close(writer)
            raise
        return reader, writer

    @classmethod
    def end(cls, warm: list[Lane], is_urgent: bool = False, scope: InterruptScope | None = None) -> None:
        """End the workers that an earlier set gave up: after `teardown`, or at once if that is urgent.

        Args:
            warm: The workers.
            is_urgent: Whether it is.
            scope: An interrupt that it notes makes it so.
        """
        try:
            lanes = cls(1, b"")
        except OSError as error:  # chiefly no more descriptors, and so none to wait with
            logger.warning("workers are killed without teardown(): %s", error)
            kill_all(warm)
            return
        for lane in warm:
            with contextlib.suppress(OSError):  # it is killed then
                lanes._adopt(lane)
        scope = scope or InterruptScope()
        with scope.calling(lanes.wake):
            lanes.close(lambda: is_urgent or scope.is_interrupted)

    def release(self) -> list[Lane]:
        """Give up the idle workers, alive, to be the `warm` ones of another set; `close` ends the rest."""
        kept = [lane for lane in self._idle if not lane.is_dead()]
        for lane in kept:
            self._forget(lane)
            lane.state = "idle"
        return kept

    def close(self, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """End every worker: idle ones after `teardown`, all others at once. Returns when none is left.

        Args:
            is_urgent: Asked now and after each turn whether to kill those, too.
        """
        self._pending.clear()
        kill_lanes([lane for lane in self._lanes if lane.state != "idle" and not lane.leaves_in_order])
        for lane in [] if is_urgent() else list(self._idle):
            self._dismiss(lane)
        deadline = time.monotonic() + TEARDOWN_GRACE_S
        while self._lanes and (left := deadline - time.monotonic()) > 0 and not is_urgent():
            self.turn(left)
        if self._lanes and not is_urgent():
            warn_of_teardown(logger, "its worker is killed")
        self.abort()

    def abort(self) -> None:
        """Kill every worker now. Returns when none is left."""
        self._pending.clear()
        kill_lanes(self._lanes)
        for lane in list(self._lanes):
            self._forget(lane)
            _see_off(lane)
        self._selector.close()
        with self._wake_lock:
            # Not even a signal handler of this very thread may find them closed.
            fds, self._wake_fds = self._wake_fds, None
            for fd in fds or ():
                os.close(fd)
        multiprocessing.active_children()  # makes it let go of those that ended

    def _assign(self) -> None:
        while self._pending and self._idle:
            self._give(self._idle.pop(), self._pending.popleft())
        if self._pending or self._max_tasks < math.inf:
            self._add_lanes()
        if (
            self._pending
            and self._failed_starts >= MAX_FAILED_STARTS
            and all(lane.state == "leaving" for lane in self._lanes)
        ):
            self._give_up()

    def _add_lanes(self) -> None:
        while self._needs_lane() and self._failed_starts < MAX_FAILED_STARTS and time.monotonic() >= self._start_at:
            self._add_lane()

    def _needs_lane(self) -> bool:
        coming = sum(lane.state in ("starting", "idle") for lane in self._lanes)
        spent = sum(lane.is_spent for lane in self._lanes)
        has_room = len(self._lanes) - spent < self._bound and len(self._lanes) < MOST_LANES * self._bound
        return coming < len(self._pending) + spent and has_room

    def _give(self, lane: Lane, assignment: Assignment) -> None:
        assignment.deliveries += 1
        lane.assignment = assignment
        lane.assigned_at = time.time()
        lane.state = "busy"
        if assignment.timeout_s is not None:
            self._start_clock(lane)
        lane.assignments += 1
        if lane.assignments >= self._max_tasks:
            lane.is_spent = True
            self._add_lanes()  # its replacement is to be there when it leaves
        self._send(lane, assignment.message)

    def _start_clock(self, lane: Lane) -> None:
        """Have the lane killed if its step is overdue. Called once more when a long message has gone out."""
        assignment = lane.assignment
        if assignment is not None and assignment.timeout_s is not None:
            to_read_s = len(assignment.message) / READS_PER_S
            lane.overdue_at = time.monotonic() + assignment.timeout_s + STOP_BY_ITSELF_S + to_read_s
            self._look_at = min(self._look_at, lane.overdue_at)

    def _give_up(self) -> None:
        assert self._last_failure is not None, "starts have failed"
        self.answers.extend((assignment.index, self._last_failure) for assignment in self._pending)
        self._pending.clear()

    def _collapse(self, error: Exception) -> None:
        """Answer everything that is open: what went wrong here is no step's fault, but nobody may wait for ever."""
        logger.error("the workers are given up: %s", error, exc_info=error)
        self._failed_starts = MAX_FAILED_STARTS
        self._last_failure = Lost(StepError.of(error), "crashed")
        kill_lanes(self._lanes)
        for lane in list(self._lanes):
            lane.await_exit(_EXIT_PATIENCE_S)
            self._forget(lane)
            lane.close()
            if lane.assignment is not None:
                self.answers.append((lane.assignment.index, self._last_failure))
        self._give_up()

    def _add_lane(self) -> None:
        try:
            self._adopt(start_worker(self._prepare, self._captures_output))
        except Exception as error:
            # No processes or descriptors to be had, chiefly. The workers there are do it alone; if there are none,
            # it is worth trying again, but not at once.
            self._start_at = time.monotonic() + _START_AGAIN_S
            if not self._lanes:
                self._start_failed(Lost(StepError.of(error), "crashed"))

    def _adopt(self, lane: Lane) -> None:
        """Make a worker one of these; it is killed if it cannot be watched.

        Raises:
            OSError: The system watches no more descriptors.
        """
        try:
            self._watch(lane)
        except BaseException:
            self._forget(lane)
            kill_all([lane])
            raise
        if lane.state == "idle":
            self._idle.append(lane)
        else:
            self._send(lane, self._prepare)

    def _watch(self, lane: Lane) -> None:
        self._lanes.append(lane)
        self._selector.register(lane.link, selectors.EVENT_READ, partial(self._on_link, lane))
        if lane.pidfd is None:
            lane.pidfd = open_pidfd(lane.pid)
        if lane.pidfd is not None:
            self._selector.register(lane.pidfd, selectors.EVENT_READ, partial(self._on_death, lane))
        for output in lane.outputs:
            self._selector.register(output, selectors.EVENT_READ, partial(self._on_output, lane, output))
        self._update_must_look()

    def _send(self, lane: Lane, message: bytes) -> None:
        try:
            if not lane.link.send(message):
                self._watch_link(lane, selectors.EVENT_READ | selectors.EVENT_WRITE)
        except LinkLost as loss:
            self._lose(lane, loss.unread)

    def _watch_link(self, lane: Lane, events: int) -> None:
        self._selector.modify(lane.link, events, partial(self._on_link, lane))

    def _on_link(self, lane: Lane, mask: int) -> None:
        if lane.state == "gone":  # buried a moment ago, by an event that came together with this one
            return
        try:
            if mask & selectors.EVENT_WRITE and lane.link.flush():
                self._watch_link(lane, selectors.EVENT_READ)
                self._start_clock(lane)
            received = lane.link.receive() if mask & selectors.EVENT_READ else []
        except LinkLost as loss:
            self._lose(lane, loss.unread)
            return
        except Exception as error:  # garbage, or more than there is memory for: this worker's fault alone
            lane.kill_reason = kill_reason_for(error)
            kill_lanes([lane])
            self._lose(lane, unread=False)
            return
        for message in received:
            self._on_message(lane, message)

    def _on_output(self, lane: Lane, output: Output, mask: int) -> None:
        if lane.state != "gone" and not output.pump(lane.label()):
            self._selector.unregister(output)

    def _on_usage(self, index: int, prompt_tokens: int, completion_tokens: int, cost_usd: float) -> None:
        if self._meter is not None:
            from ..records.usage import Usage  # most steps report none

            self._meter.add(index, Usage(prompt_tokens, completion_tokens, cost_usd))

    def _on_log(self, fields: dict[str, Any]) -> None:
        try:
            emit_here(fields)
        except (Exception, SystemExit):  # the program's own handlers: it costs no step anything
            traceback.print_exc()

    def _on_message(self, lane: Lane, message: Message) -> None:
        kind = message[0]
        if kind == messages.EVENT:
            if self._on_event is not None:
                self._on_event(message[1])
        elif kind == messages.USAGE:
            self._on_usage(*message[1:])
        elif kind == messages.LEAVING:
            lane.leaves_in_order = True
            self._let_leave(lane, TEARDOWN_GRACE_S)
        elif kind == messages.LOG:
            self._on_log(message[1])
        elif kind == messages.READY:
            lane.start_is_known = True
            # Not earlier: a guard process that starts beside a worker is in its way.
            stand_guard(lane.guard_process)
            self._has_time(lane)
        elif kind == messages.UNPREPARED:
            lane.start_is_known = True
            self._let_leave(lane)
            self._start_failed(Lost(StepError(*message[1]), "raised"))
            self._assign()
        else:
            self._failed_starts = 0
            for output in lane.outputs:
                output.finish(lane.label())
            lane.assignment = None
            lane.overdue_at = math.inf
            self.answers.append((message[1], message))
            self._has_time(lane)

    def _has_time(self, lane: Lane) -> None:
        if lane.state == "leaving":
            return
        lane.state = "idle"
        self._idle.append(lane)
        if lane.is_spent:
            self._dismiss(lane)
            lane.kill_at = time.monotonic() + TEARDOWN_GRACE_S
            self._update_must_look()
        if self._pending:
            self._assign()

    def _dismiss(self, lane: Lane) -> None:
        self._idle.remove(lane)
        lane.state = "leaving"
        lane.leaves_in_order = True
        self._send(lane, pack((messages.STOP,)))

    def _lose(self, lane: Lane, unread: bool) -> None:
        lane.is_unread = lane.is_unread or unread
        lane.leaves_in_order = False
        with contextlib.suppress(KeyError):
            self._selector.unregister(lane.link)
        self._let_leave(lane)

    def _let_leave(self, lane: Lane, patience_s: float = _EXIT_PATIENCE_S) -> None:
        if lane.state == "idle":
            self._idle.remove(lane)
        lane.state = "leaving"
        lane.kill_at = time.monotonic() + patience_s
        self._update_must_look()

    def _on_death(self, lane: Lane, mask: int = 0) -> None:
        """Take what the dead worker had still sent, then see what is missing."""
        if lane.state == "gone":
            return
        self._let_leave(lane)
        for message in self._receive_rest(lane):
            self._on_message(lane, message)
        self._reap(lane)

    def _receive_rest(self, lane: Lane) -> list[Message]:
        received: list[Message] = []
        try:
            while more := lane.link.receive(everything=True):
                received += more
        except LinkLost as loss:
            lane.is_unread = lane.is_unread or loss.unread
        except Exception as error:  # as above
            lane.kill_reason = lane.kill_reason or kill_reason_for(error)
        return received

    def _reap(self, lane: Lane) -> None:
        for output in lane.outputs:
            output.finish(lane.label())
        self._forget(lane)
        lane.close()
        lane.kill_followers()
        exit_status = lane.exit_status()
        if not lane.start_is_known:
            error = StepError("WorkerDied", f"{exit_status.text} while it started")
            self._start_failed(
                Lost(error, "crashed", lane.pid, exit_code=exit_status.exit_code, signal=exit_status.signal)
            )
        elif lane.assignment is not None:
            if lane.is_unread and lane.assignment.deliveries < MAX_DELIVERIES:
                # The worker never began this step, so nothing of it has happened yet.
                self._pending.appendleft(lane.assignment)
            else:
                self.answers.append((lane.assignment.index, loss_of(lane, exit_status)))
        self._assign()

    def _forget(self, lane: Lane) -> None:
        self._lanes.remove(lane)
        if lane in self._idle:
            self._idle.remove(lane)
        ends: list[CallerLink | Output | int | None] = [lane.link, lane.pidfd, *lane.outputs]
        for end in ends:
            # A lost link is unregistered already, and so is an output that has ended; and if a worker could not be
            # watched, some were never registered.
            with contextlib.suppress(KeyError):
                if end is not None:
                    self._selector.unregister(end)
        lane.state = "gone"
        self._update_must_look()

    def _start_failed(self, failure: Lost) -> None:
        self._failed_starts += 1
        self._last_failure = failure

    def _update_must_look(self) -> None:
        self._must_look = any(lane.pidfd is None or lane.kill_at for lane in self._lanes)

    def _look_after_lanes(self) -> None:
        now = time.monotonic()
        for lane in list(self._lanes):
            if lane.pidfd is None and lane.is_dead():
                self._on_death(lane)
            elif lane.kill_at and now >= lane.kill_at:
                if lane.leaves_in_order:
                    warn_of_teardown(logger, "its worker is killed")
                lane.kill_reason = lane.kill_reason or CLOSED_DESCRIPTORS
                kill_lanes([lane])

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        overdue = [lane for lane in self._lanes if lane.overdue_at <= now]
        kill_lanes(overdue)
        for lane in overdue:
            lane.is_timed_out = True
            lane.overdue_at = math.inf
        self._look_at = min((lane.overdue_at for lane in self._lanes), default=math.inf)


def kill_all(lanes: list[Lane]) -> None:
    """Kill workers that belong to no set, and let go of them. Takes no more descriptors."""
    kill_lanes(lanes)
    for lane in lanes:
        lane.state = "gone"
        _see_off(lane)
    multiprocessing.active_children()  # makes it let go of those that ended


def _see_off(lane: Lane) -> None:
    """Wait for the end of a worker that was killed, and close what leads to it."""
    if not lane.await_exit(TEARDOWN_GRACE_S):
        logger.warning("worker process %s does not end though it was killed", lane.pid)
    lane.close()
