"""Dispatch of messages over a set of lanes: one message at a time in each, and a dead worker is replaced."""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import active_children
from typing import Any

from ..executors.current_step import Meter
from ..executors.executor import TEARDOWN_GRACE_S, warn_of_teardown
from ..interrupts import InterruptScope, was_raised_by_handler
from ..processes.guard_process import ensure_guard
from ..records.status import StepError
from . import messages
from .caller_state import state_here
from .lane import CHECK_INTERVAL_S, Assignment, Lane, kill_and_reap, kill_lanes, reap_killed
from .link import LinkLost
from .log_records import emit_here
from .loss import LoadFailure, Lost, kill_reason_for, loss_of
from .messages import Message, pack
from .module_versions import changed_between, versions_here
from .output import Output
from .pickling.loading import NOUNS, not_loaded
from .starter import MAX_FAILED_STARTS, WorkerStarter
from .trackers import start_trackers
from .watched_lanes import WatchedLanes
from .worker_start import StartedWorker

logger = logging.getLogger(__name__)

MAX_DELIVERIES = 3
"""A step is given up when so many workers in a row have died before they had read its message."""

MAX_LANES_FACTOR = 3
"""So many times the bound there may be workers, including those that start and those that tear down."""

_EXIT_PATIENCE_S = 1.0  # from a worker's closed socket to its exit; writing a core dump takes time


class Lanes:
    """Bounded, crash-isolating dispatch of messages over worker processes.

    A small event loop: `turn` waits on every worker's socket and pidfd at once. Not thread-safe, except for `wake`:
    only its owner, the thread that calls `turn`, may use it. Each `start` adds exactly one `(index, answer)` to
    `answers`, unless there is a `load_failure`.

    Attributes:
        answers: What came for each message, with its index.
        load_failure: Why no worker can load the executor; `None` if one could, or none has tried. If there is one, no
            step has begun, and none will.
        bound: The largest number of workers.

    Args:
        bound: The same.
        payload: The pickled executor, sent once to each worker; empty when there is none.
        rest: What the caller's modules have besides; see `code_dump.dump_rest`.
        on_event: Called with each event that a worker sends, as JSON; `None` when nobody listens.
        warm: Workers of an earlier set.
        started: Workers that were started early, and that nobody has talked to yet.
        meter: Takes the usage that steps report; `None` where only calls are made.
        max_tasks: How many messages a worker gets before it is replaced; `None` for any number.
        captures_output: Whether what workers print comes to this process's streams.

    Raises:
        OSError: The system has no more descriptors. All warm workers that were taken over are killed then.
    """

    def __init__(
        self,
        bound: int,
        payload: bytes,
        on_event: Callable[[str], None] | None = None,
        warm: Iterable[Lane] = (),
        *,
        rest: bytes = b"",
        started: Sequence[StartedWorker] = (),
        meter: Meter | None = None,
        max_tasks: int | None = None,
        captures_output: bool = False,
    ) -> None:
        self.answers: deque[tuple[int, Message | Lost]] = deque()
        self.load_failure: LoadFailure | None = None
        self._has_loaded = False
        self.bound = bound
        self._prepare = pack((messages.PREPARE, payload, on_event is not None))
        self._told = state_here(), rest
        self._versions = versions_here()
        self._on_event = on_event
        self._meter = meter
        self._max_tasks = max_tasks or math.inf
        self._is_closing = False
        self._starter = WorkerStarter(captures_output, started)
        self._pending: deque[Assignment] = deque()
        self._watched = WatchedLanes()
        # The same lists as there: they are used for every step.
        self._lanes = self._watched.lanes
        self._idle = self._watched.idle
        self.wake = self._watched.wake
        try:
            for lane in warm:
                self._has_loaded |= lane.prepared == self._prepare
                self._adopt(lane)
                self._bring_up_to_date(lane)
        except BaseException:
            self.abort()
            raise

    def start(self, index: int, message: bytes, timeout_s: float | None = None, label: str = "") -> None:
        """Send `message` to a worker as soon as one is free.

        Args:
            index: Comes with the answer.
            message: What the worker is to answer.
            timeout_s: After how many seconds the worker is killed; `None` for never.
            label: Marks the lines that the worker prints meanwhile.
        """
        self._pending.append(Assignment(index, message, timeout_s, label))
        try:
            self._assign()
        except Exception as error:
            if was_raised_by_handler(error):
                raise
            self._fail_everything(error)

    def turn(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds until something happens, and handle it."""
        watched = self._watched
        may_wait_longer = timeout is None or timeout > CHECK_INTERVAL_S
        has_limits = watched.next_overdue_at < math.inf
        if may_wait_longer and (has_limits or watched.must_check or (self._pending and not self._lanes)):
            timeout = CHECK_INTERVAL_S
        try:
            for key, mask in watched.select(timeout):
                key.data(mask)
            if watched.must_check:
                for lane in watched.dead_without_event():
                    self._on_death(lane)
                watched.kill_those_that_do_not_exit()
            if has_limits and time.monotonic() >= watched.next_overdue_at:
                watched.kill_overdue()
            if self._pending and not self._lanes:
                self._assign()
        except Exception as error:
            if was_raised_by_handler(error):
                raise
            self._fail_everything(error)

    @classmethod
    def end(cls, warm: list[Lane], is_urgent: bool = False, scope: InterruptScope | None = None) -> None:
        """End the workers that an earlier set has released, after `teardown`.

        Args:
            warm: The workers.
            is_urgent: Whether to kill them instead.
            scope: When it notes an interrupt, the workers that are left are killed.
        """
        try:
            lanes = cls(1, b"")
        except OSError as error:  # most likely there are no more descriptors, and so none to wait with
            logger.warning("workers are killed without teardown(): %s", error)
            kill_and_reap(warm)
            return
        for lane in warm:
            with contextlib.suppress(OSError):  # the worker is killed then
                lanes._adopt(lane)
        scope = scope or InterruptScope()
        with scope.calling(lanes.wake):
            lanes.close(lambda: is_urgent or scope.is_interrupted)

    def release(self) -> list[Lane]:
        """Return the idle workers, alive, for the `warm` of another set; `close` ends the others."""
        released = [lane for lane in self._idle if not lane.is_dead()]
        for lane in released:
            self._watched.forget(lane)
            lane.state = "idle"
        return released

    def close(self, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """End every worker: idle ones after `teardown`, all others at once. Returns when none is left.

        Args:
            is_urgent: Asked now and after each turn whether to kill the idle ones, too.
        """
        self._is_closing = True
        self._pending.clear()
        kill_lanes([lane for lane in self._lanes if lane.state != "idle" and not lane.is_tearing_down])
        for lane in [] if is_urgent() else list(self._idle):
            self._stop_worker(lane)
        deadline = self._watched.now() + TEARDOWN_GRACE_S
        while self._lanes and (left := deadline - self._watched.now()) > 0 and not is_urgent():
            self.turn(left)
        if self._lanes and not is_urgent():
            warn_of_teardown(logger, "its worker is killed")
        self.abort()

    def abort(self) -> None:
        """Kill every worker now. Returns when none is left."""
        self._pending.clear()
        self._starter.discard_early()
        kill_lanes(self._lanes)
        for lane in list(self._lanes):
            self._watched.forget(lane)
            reap_killed(lane)
        self._watched.close()
        active_children()  # makes multiprocessing forget those that have exited

    # Giving messages to workers -------------------------------------------------------------------------------------

    def _assign(self) -> None:
        while self._pending and self._idle and self.load_failure is None:
            self._assign_to(self._idle.pop(), self._pending.popleft())
        if self._pending or self._max_tasks < math.inf:
            self._add_lanes()
        if (
            self._pending
            and self._starter.failures >= MAX_FAILED_STARTS
            and all(lane.state == "leaving" for lane in self._lanes)
        ):
            self._give_up()

    def _assign_to(self, lane: Lane, assignment: Assignment) -> None:
        assignment.deliveries += 1
        lane.assignment = assignment
        lane.assigned_at = time.time()
        lane.state = "busy"
        if assignment.timeout_s is not None:
            self._watched.start_clock(lane)
        lane.assignments += 1
        if lane.assignments >= self._max_tasks:
            lane.is_used_up = True
            self._add_lanes()  # its replacement starts now, to be ready when this one exits
        self._send(lane, assignment.message)

    def _add_lanes(self) -> None:
        while self._needs_lane() and self._starter.may_start():
            self._add_lane()

    def _needs_lane(self) -> bool:
        coming = sum(lane.state in ("starting", "idle") for lane in self._lanes)
        used_up = sum(lane.is_used_up for lane in self._lanes)
        if self._is_closing:
            return False
        has_room = len(self._lanes) - used_up < self.bound and len(self._lanes) < MAX_LANES_FACTOR * self.bound
        return coming < len(self._pending) + used_up and has_room

    def _add_lane(self) -> None:
        try:
            lane = self._starter.start()
            self._adopt(lane)
            self._bring_up_to_date(lane)
        except Exception as error:
            if was_raised_by_handler(error):
                raise
            # Most likely the system has no more processes or descriptors. The workers that there are do the work. If
            # there are none, it is worth trying again, but not at once.
            self._starter.put_off()
            if not self._lanes:
                self._starter.note_failure(Lost(StepError.of(error), "crashed"))

    def _adopt(self, lane: Lane) -> None:
        """Add a worker to this set; it is killed if it cannot be watched.

        Raises:
            OSError: The system watches no more descriptors.
        """
        try:
            self._watched.watch(lane, self._on_link, self._on_death, self._on_output)
        except BaseException:
            self._watched.forget(lane)
            kill_and_reap([lane])
            raise
        if lane.state == "idle":
            self._idle.append(lane)

    def _bring_up_to_date(self, lane: Lane) -> None:
        """Send the worker what has changed since it was last used, or everything if it is new."""
        reloaded = changed_between(lane.versions, self._versions)
        is_prepared = lane.prepared == self._prepare
        if not is_prepared or reloaded:  # it says whether it is fit
            if lane in self._idle:
                self._idle.remove(lane)
            lane.state, lane.has_reported_start = "starting", False
        if lane.told is None or lane.told[0] != self._told[0] or reloaded:
            self._send(lane, pack((messages.STATE, self._told[0], reloaded, is_prepared)))
        if lane.told is None or lane.told[1] != self._told[1] or not is_prepared:
            self._send(lane, pack((messages.MODULES, self._told[1])))
        if not is_prepared:
            self._send(lane, self._prepare)
        lane.versions, lane.told, lane.prepared = self._versions, self._told, self._prepare

    def _send(self, lane: Lane, message: bytes) -> None:
        try:
            if not lane.link.send(message):
                self._watched.watch_link_for(lane, selectors.EVENT_READ | selectors.EVENT_WRITE)
        except LinkLost as loss:
            self._on_lost_link(lane, loss.unread)

    def _stop_worker(self, lane: Lane) -> None:
        self._idle.remove(lane)
        lane.state = "leaving"
        lane.is_tearing_down = True
        self._send(lane, pack((messages.STOP,)))

    def _give_up(self) -> None:
        """Answer for what is left, as no worker can be started; but with a load failure there are no answers."""
        failure = self._starter.last_failure
        if self.load_failure is not None:
            return
        if failure is not None and failure.loading and not self._has_loaded:
            # Not when the first worker dies: it may be the system that has killed it.
            self.load_failure = LoadFailure(failure.loading, failure.error, has_raised=False)
        else:
            self._fail_pending()

    def _fail_pending(self) -> None:
        assert self._starter.last_failure is not None, "starts have failed"
        self.answers.extend((assignment.index, self._starter.last_failure) for assignment in self._pending)
        self._pending.clear()

    def _fail_everything(self, error: Exception) -> None:
        """Answer every message with an error of this module: it is no step's fault, but nobody may wait for ever."""
        logger.error("all workers are killed because of an internal error: %s", error, exc_info=error)
        failure = Lost(StepError.of(error), "crashed")
        self._starter.stop(failure)
        kill_lanes(self._lanes)
        for lane in list(self._lanes):
            lane.await_exit(_EXIT_PATIENCE_S)
            self._watched.forget(lane)
            lane.close()
            if lane.assignment is not None:
                self.answers.append((lane.assignment.index, failure))
        self._fail_pending()

    # What comes from workers ------------------------------------------------------------------------------------------

    def _on_link(self, lane: Lane, mask: int) -> None:
        if lane.state == "gone":  # reaped by another event of the same turn
            return
        try:
            if mask & selectors.EVENT_WRITE and lane.link.flush():
                self._watched.watch_link_for(lane, selectors.EVENT_READ)
                self._watched.start_clock(lane)
            received = lane.link.receive() if mask & selectors.EVENT_READ else []
        except LinkLost as loss:
            self._on_lost_link(lane, loss.unread)
            return
        except Exception as error:  # garbage, or a message too large for the memory: this worker's fault alone
            if was_raised_by_handler(error):
                raise
            lane.kill_reason = kill_reason_for(error)
            kill_lanes([lane])
            self._on_lost_link(lane, unread=False)
            return
        for message in received:
            self._on_message(lane, message)

    def _on_output(self, lane: Lane, output: Output, mask: int) -> None:
        if lane.state != "gone" and not output.pump(lane.label()):
            self._watched.unwatch(output)

    def _on_message(self, lane: Lane, message: Message) -> None:
        kind = message[0]
        if kind == messages.EVENT:
            if self._on_event is not None:
                self._on_event(message[1])
        elif kind == messages.USAGE:
            self._on_usage(*message[1:])
        elif kind == messages.LEAVING:
            lane.has_reported_start = True
            lane.is_tearing_down = True
            self._watched.expect_exit(lane, TEARDOWN_GRACE_S)
        elif kind == messages.LOG:
            self._on_log(message[1])
        elif kind in messages.OF_START:
            self._on_start_message(lane, kind, message)
        else:
            self._starter.failures = 0
            for output in lane.outputs:
                output.finish(lane.label())
            lane.assignment = None
            lane.overdue_at = math.inf
            self.answers.append((message[1], message))
            self._on_free(lane)

    def _start_companions(self, lane: Lane) -> None:
        """Start the processes that care for what workers leave behind."""
        # Not earlier: processes that start together with a worker slow it down.
        ensure_guard(lane.guard_process)
        try:
            start_trackers()
        except OSError as error:  # the next worker tries again
            logger.warning("no resource tracker: what killed steps leave may remain: %s", error)

    def _on_start_message(self, lane: Lane, kind: str, message: Message) -> None:
        if kind == messages.LOADING:
            lane.loading = message[1]
        elif kind == messages.LOADED:
            lane.loading = ""
            self._has_loaded = True
        elif kind == messages.UNLOADABLE:
            self._on_unloadable(lane, StepError(*message[1]))
        elif kind == messages.UNPREPARED:
            self._on_failed_start(lane, StepError(*message[1]))
        else:  # READY
            lane.has_reported_start = True
            self._start_companions(lane)
            self._on_free(lane)

    def _on_unloadable(self, lane: Lane, error: StepError) -> None:
        if not self._has_loaded:
            self.load_failure = LoadFailure(lane.loading, error, has_raised=True)
        self._on_failed_start(lane, not_loaded(lane.loading, error))

    def _on_failed_start(self, lane: Lane, error: StepError) -> None:
        lane.has_reported_start = True
        self._watched.expect_exit(lane, _EXIT_PATIENCE_S)
        failure = Lost(error, "raised")
        if self.load_failure is None:
            self._starter.note_failure(failure)
        else:
            self._starter.stop(failure)
        self._assign()

    def _on_usage(self, index: int, prompt_tokens: int, completion_tokens: int, cost_usd: float) -> None:
        if self._meter is not None:
            from ..records.usage import Usage  # imported lazily: most steps report none

            self._meter.add(index, Usage(prompt_tokens, completion_tokens, cost_usd))

    def _on_log(self, fields: dict[str, Any]) -> None:
        try:
            emit_here(fields)
        except (Exception, SystemExit):  # the program's own handlers raised; no step fails because of that
            traceback.print_exc()

    def _on_free(self, lane: Lane) -> None:
        if lane.state == "leaving":
            return
        lane.state = "idle"
        self._idle.append(lane)
        if lane.is_used_up:
            self._stop_worker(lane)
            self._watched.expect_exit(lane, TEARDOWN_GRACE_S)
        if self._pending:
            self._assign()

    # The end of a worker ----------------------------------------------------------------------------------------------

    def _on_lost_link(self, lane: Lane, unread: bool) -> None:
        lane.is_unread = lane.is_unread or unread
        lane.is_tearing_down = False
        self._watched.unwatch(lane.link)
        self._watched.expect_exit(lane, _EXIT_PATIENCE_S)

    def _on_death(self, lane: Lane, mask: int = 0) -> None:
        """Handle what the dead worker had still sent, then answer for what it has not."""
        if lane.state == "gone":
            return
        self._watched.expect_exit(lane, _EXIT_PATIENCE_S)
        for message in _receive_rest(lane):
            self._on_message(lane, message)
        self._reap(lane)

    def _reap(self, lane: Lane) -> None:
        for output in lane.outputs:
            output.finish(lane.label())
        self._watched.forget(lane)
        lane.close()
        lane.kill_leftovers()
        exit_status = lane.exit_status()
        if not lane.has_reported_start:
            doing = f"unpickled {NOUNS[lane.loading]}" if lane.loading else "started"
            error = StepError("WorkerDied", f"{exit_status.text} while it {doing}")
            failure = Lost(
                error,
                "crashed",
                lane.pid,
                exit_code=exit_status.exit_code,
                signal=exit_status.signal,
                loading=lane.loading,
            )
            self._starter.note_failure(failure)
        elif lane.assignment is not None:
            if lane.is_unread and lane.assignment.deliveries < MAX_DELIVERIES:
                # The worker never began this step, so nothing of it has happened yet.
                self._pending.appendleft(lane.assignment)
            else:
                self.answers.append((lane.assignment.index, loss_of(lane, exit_status)))
        self._assign()


def _receive_rest(lane: Lane) -> list[Message]:
    received: list[Message] = []
    try:
        while more := lane.link.receive(everything=True):
            received += more
    except LinkLost as loss:
        lane.is_unread = lane.is_unread or loss.unread
    except Exception as error:  # as in `_on_link`
        if was_raised_by_handler(error):
            raise
        lane.kill_reason = lane.kill_reason or kill_reason_for(error)
    return received
