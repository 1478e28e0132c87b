"""The steps of a run that wait for a rate limit or the budget. A step that waits occupies no slot."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from attrs import frozen

from .. import forks
from ..records.report import Report
from ..records.steps import AgentStepSpec
from .answers import Exhausted, Wait
from .limiter import Limiter, Permit, Request

if TYPE_CHECKING:
    from ..records.usage import Usage


@frozen(eq=False)
class WaitingStep:
    """An attempt that waits to start.

    Attributes:
        index: The index of the step.
        spec: The spec of the step.
        attempt: The number of the attempt, from 1.
        request: What the limiter has to know of the step.
    """

    index: int
    spec: AgentStepSpec
    attempt: int
    request: Request


class WaitingLine:
    """One queue of waiting steps for each key; a step that has to wait delays no step with other keys.

    "The keys" of a step are all of them: one for each rate limit. Only the thread of the run may use this, except for
    `ended`, `spend` and `nest`, which any thread may call.

    Attributes:
        limiter: Decides whether a step may start.
        has_succeeded: Whether an attempt that this let start has succeeded.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._exhausted: Exhausted | None = None
        self.limiter = limiter
        self.has_succeeded = False
        self._queues: dict[tuple[str, ...], deque[WaitingStep]] = {}
        # Each queue is either ready, and its keys take turns, or deferred until the moment at which to ask again. An
        # entry of the heap counts only if its moment is still the one in `_ask_at`.
        self._ready: deque[tuple[str, ...]] = deque()
        self._deferred: list[tuple[float, int, tuple[str, ...]]] = []
        self._ask_at: dict[tuple[str, ...], float] = {}
        self._order = itertools.count()
        self._all_ask_at = -math.inf
        self._waiting = 0
        self._running: dict[int, tuple[Permit, tuple[str, ...]]] = {}
        self._abandoned: dict[int, Permit] = {}
        self._has_begun = False

    def __len__(self) -> int:
        """Return how many steps wait."""
        return self._waiting

    @property
    def has_keys(self) -> bool:
        """Whether steps may have different keys, so that one may start before those that wait."""
        return self.limiter.has_keys

    def waiting_step(self, index: int, spec: AgentStepSpec, attempt: int) -> WaitingStep:
        """Return what `enqueue` takes; this calls the caller's own functions `key` and `estimate`.

        Raises:
            OptionError: One of them returned something that is not usable.
            Exception: Whatever one of them raises.
        """
        return WaitingStep(index, spec, attempt, self.limiter.request(spec))

    def enqueue(self, waiting_step: WaitingStep) -> None:
        """Let an attempt wait: a first attempt at the end of its queue, a later one at the front."""
        keys = waiting_step.request.keys
        queue = self._queues.get(keys)
        if queue is None:
            queue = self._queues[keys] = deque()
            self._ready.append(keys)
        if waiting_step.attempt > 1:
            queue.appendleft(waiting_step)
        else:
            queue.append(waiting_step)
        self._waiting += 1

    def admit(self, now: float) -> WaitingStep | None:
        """Return an attempt that may start now, and which the caller then has to start; `None` if there is none."""
        if self._exhausted is not None or now < self._all_ask_at:
            return None
        self._resume_due(now)
        while self._ready:
            keys = self._ready[0]
            queue = self._queues[keys]
            answer = self.limiter.admit(queue[0].request, queue[0].attempt, now)
            if isinstance(answer, Exhausted):
                self._exhausted = answer
                return None
            if isinstance(answer, Wait):
                if answer.scope == "all":
                    self._all_ask_at = now + answer.seconds
                    return None
                self._ready.popleft()
                self._defer(keys, now + answer.seconds)
                continue
            return self._admitted(keys, queue, answer)
        return None

    def asks_at(self, now: float) -> float:
        """Return the moment at which to call `admit` again; infinite if only the end of a step changes its answer."""
        at = math.inf
        if self._waiting:
            at = self._deferred[0][0] if self._deferred else math.inf
            if self._ready:
                at = self._all_ask_at
        return min(at, now + self.limiter.seconds_left(now))

    def exhausted(self, now: float) -> Exhausted | None:
        """Return what the budget has run out of; `None` if it has not. The refusal of a single step is told once."""
        exhausted, self._exhausted = self._exhausted, None
        return exhausted or self.limiter.exhausted(now)

    def ended(self, report: Report) -> None:
        """Release what an attempt held as soon as it has ended; any thread may call this, before `settle`.

        The thread of the run may not get to it for long, while the consumer of a stream is away, and other runs wait.
        """
        running = self._running.get(report.index)
        if running is not None and report.started is not None and report.status != "timed_out":
            self.limiter.settle(running[0], monotonic(), report.retry_after)

    def settle(self, report: Report, now: float) -> None:
        """End an attempt that `admit` returned, as its report says."""
        running = self._running.pop(report.index, None)
        if running is None:
            return
        permit, keys = running
        if report.status == "succeeded":
            self.has_succeeded = True
        if report.status == "timed_out":  # its thread may go on and report usage
            self._abandoned[report.index] = permit
        if report.started is None:
            self.limiter.release(permit, now)
        else:
            self.limiter.settle(permit, now, report.retry_after)
        self._all_ask_at = -math.inf
        if keys in self._ask_at:  # this may be what others with the same keys wait for
            self._defer(keys, -math.inf)

    def spend(self, index: int, usage: Usage) -> None:
        """Count usage that a step reports; any thread may call this."""
        running = self._running.get(index)
        permit = self._abandoned.get(index) if running is None else running[0]
        if permit is not None:
            self.limiter.spend(permit, usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        """Release what a step has reserved, if it waits for a run of its own under the same limits; from any thread."""
        running = self._running.get(index)
        if running is not None and self.limiter.shares(limiter):
            self.limiter.yield_reservation(running[0])

    def held_back_by(self, now: float) -> str | None:
        """Return in words why steps wait; `None` if none do."""
        return self.limiter.held_back_by(now) if self._waiting else None

    def drain(self, *, keep_retries: bool = False) -> list[tuple[int, AgentStepSpec]]:
        """Return the steps that wait, with their indices in ascending order, and forget them.

        Args:
            keep_retries: Whether steps that were tried before go on waiting instead.
        """
        waiting = sorted(self._all(), key=lambda waiting_step: waiting_step.index)
        self._queues.clear()
        self._ready.clear()
        self._deferred.clear()
        self._ask_at.clear()
        self._waiting = 0
        drained = []
        for waiting_step in waiting:
            if keep_retries and waiting_step.attempt > 1:
                self.enqueue(waiting_step)
            else:
                drained.append((waiting_step.index, waiting_step.spec))
        return drained

    def begin(self, now: float) -> None:
        """Let the limits and the budget know of the run, until `close`."""
        self.limiter.begin_run(now)
        self._has_begun = True
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Let nothing wait for this run in a forked child, which has a copy of the limits: the run is its parent's."""
        for permit, _ in self._running.values():
            self.limiter.yield_reservation(permit)
        self._running.clear()
        self._end(monotonic())

    def close(self, now: float) -> None:
        """Release what the steps hold that are still running, because the run has ended without them."""
        while self._running:
            index, (permit, _) = self._running.popitem()
            self.limiter.settle(permit, now)
            self._abandoned[index] = permit
        self._end(now)

    def _end(self, now: float) -> None:
        if self._has_begun:
            self._has_begun = False
            self.limiter.end_run(now)

    def _defer(self, keys: tuple[str, ...], until: float) -> None:
        """Ask for these keys again at this moment, whatever the moment was before."""
        self._ask_at[keys] = until
        heapq.heappush(self._deferred, (until, next(self._order), keys))

    def _resume_due(self, now: float) -> None:
        while self._deferred and self._deferred[0][0] <= now:
            until, _, keys = heapq.heappop(self._deferred)
            if self._ask_at.get(keys) == until:
                del self._ask_at[keys]
                self._ready.append(keys)

    def _admitted(self, keys: tuple[str, ...], queue: deque[WaitingStep], permit: Permit) -> WaitingStep:
        waiting_step = queue.popleft()
        self._waiting -= 1
        self._running[waiting_step.index] = permit, keys
        self._ready.popleft()
        if queue:
            self._ready.append(keys)
        else:
            del self._queues[keys]
        return waiting_step

    def _all(self) -> Iterator[WaitingStep]:
        for queue in self._queues.values():
            yield from queue
