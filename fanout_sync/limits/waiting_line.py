"""The steps of a run that a rate limit or a budget does not let start yet. They permit no slot."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from attrs import frozen

from ..records.report import Report
from ..records.steps import AgentStepSpec
from .answers import Exhausted, Wait
from .limiter import Limiter, Permit, Request

if TYPE_CHECKING:
    from ..records.usage import Usage


@frozen(eq=False)
class WaitingStep:
    """An attempt at a step that is to start.

    Attributes:
        index: The step's index.
        spec: What to run.
        attempt: Which try it is.
        request: What the limiter has to know of it.
    """

    index: int
    spec: AgentStepSpec
    attempt: int
    request: Request


class WaitingLine:
    """Queues in front of the gates of a limiter, one for each key: who waits in one delays nobody in another.

    Used by the thread of the run alone, but for `spend` and `nest`.

    Attributes:
        limiter: Whose gates they are.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._exhausted: Exhausted | None = None
        self.limiter = limiter
        self._queues: dict[tuple[str, ...], deque[WaitingStep]] = {}
        # The keys that may be asked for, in turns; and those that need not be asked for before some time.
        self._askable: deque[tuple[str, ...]] = deque()
        self._closed: list[tuple[float, int, tuple[str, ...]]] = []
        self._closed_until: dict[tuple[str, ...], float] = {}
        self._order = itertools.count()
        self._all_ask_at = -math.inf
        self._waiting = 0
        self._running: dict[int, tuple[Permit, tuple[str, ...]]] = {}
        self._abandoned: dict[int, Permit] = {}

    def __len__(self) -> int:
        """How many steps wait."""
        return self._waiting

    @property
    def has_keys(self) -> bool:
        """Whether a step may overtake those before it, having another key."""
        return self.limiter.has_keys

    def waiting_step(self, index: int, spec: AgentStepSpec, attempt: int) -> WaitingStep:
        """Return what `enqueue` takes; asks the caller's own functions.

        Raises:
            Exception: Whatever those raise, or `OptionError` if their answer is unusable.
        """
        return WaitingStep(index, spec, attempt, self.limiter.request(spec))

    def enqueue(self, waiting_step: WaitingStep) -> None:
        """Have an attempt wait for its turn; one that is not the step's first goes before those that are."""
        keys = waiting_step.request.keys
        queue = self._queues.get(keys)
        if queue is None:
            queue = self._queues[keys] = deque()
            self._askable.append(keys)
        if waiting_step.attempt > 1:
            queue.appendleft(waiting_step)
        else:
            queue.append(waiting_step)
        self._waiting += 1

    def admit(self, now: float) -> WaitingStep | None:
        """Return an attempt that may start now, and has to; `None` if there is none."""
        if self._exhausted is not None or now < self._all_ask_at:
            return None
        self._reopen(now)
        while self._askable:
            keys = self._askable[0]
            queue = self._queues[keys]
            answer = self.limiter.admit(queue[0].request, queue[0].attempt, now)
            if isinstance(answer, Exhausted):
                self._exhausted = answer
                return None
            if isinstance(answer, Wait):
                if answer.on == "all":
                    self._all_ask_at = now + answer.seconds
                    return None
                self._askable.popleft()
                self._close(keys, now + answer.seconds)
                continue
            return self._admitted(keys, queue, answer)
        return None

    def asks_at(self, now: float) -> float:
        """Return when `admit` is worth calling again, on the clock; `inf` if not before a step ends."""
        at = math.inf
        if self._waiting:
            at = self._closed[0][0] if self._closed else math.inf
            if self._askable:
                at = self._all_ask_at
        return min(at, now + self.limiter.seconds_left(now))

    def exhausted(self, now: float) -> Exhausted | None:
        """Return what the budget ran out of, once for each time that it refused; `None` if it has not."""
        gone, self._exhausted = self._exhausted, None
        return gone or self.limiter.check(now)

    def ended(self, report: Report) -> None:
        """Give back what an attempt held as soon as it has ended; from any thread, before `settle`.

        The thread of the run may be away for long, and others wait for the same.
        """
        running = self._running.get(report.index)
        if running is not None and report.started is not None and report.status != "timed_out":
            self.limiter.settle(running[0], monotonic(), report.retry_after)

    def settle(self, report: Report, now: float) -> None:
        """Take note of how an admitted attempt ended."""
        running = self._running.pop(report.index, None)
        if running is None:
            return
        permit, keys = running
        if report.status == "timed_out":  # on a thread, it may go on and report what it uses
            self._abandoned[report.index] = permit
        if report.started is None:
            self.limiter.release(permit, now)
        else:
            self.limiter.settle(permit, now, report.retry_after)
        self._all_ask_at = -math.inf
        if keys in self._closed_until:  # others with the same ones may have waited for just this
            self._close(keys, -math.inf)

    def spend(self, index: int, usage: Usage) -> None:
        """Count usage as it is reported; from any thread."""
        running = self._running.get(index)
        permit = self._abandoned.get(index) if running is None else running[0]
        if permit is not None:
            self.limiter.spend(permit, usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        """Take note that a step waits for a run of its own, which what it has reserved must not block."""
        running = self._running.get(index)
        if running is not None and self.limiter.shares(limiter):
            self.limiter.yield_reservation(running[0])

    def drain(self, *, keep_retries: bool = False) -> list[tuple[int, AgentStepSpec]]:
        """Return the steps that wait, with their indices, and forget them.

        Args:
            keep_retries: Whether steps that have been tried before go on waiting.
        """
        waiting = sorted(self._all(), key=lambda waiting_step: waiting_step.index)
        self._queues.clear()
        self._askable.clear()
        self._closed.clear()
        self._closed_until.clear()
        self._waiting = 0
        drained = []
        for waiting_step in waiting:
            if keep_retries and waiting_step.attempt > 1:
                self.enqueue(waiting_step)
            else:
                drained.append((waiting_step.index, waiting_step.spec))
        return drained

    def close(self, now: float) -> None:
        """Give back what steps permit that were given up."""
        while self._running:
            index, (permit, _) = self._running.popitem()
            self.limiter.settle(permit, now)
            self._abandoned[index] = permit

    def _close(self, keys: tuple[str, ...], until: float) -> None:
        """Ask for these keys again at this moment, whatever was said before."""
        self._closed_until[keys] = until
        heapq.heappush(self._closed, (until, next(self._order), keys))

    def _reopen(self, now: float) -> None:
        while self._closed and self._closed[0][0] <= now:
            until, _, keys = heapq.heappop(self._closed)
            if self._closed_until.get(keys) == until:
                del self._closed_until[keys]
                self._askable.append(keys)

    def _admitted(self, keys: tuple[str, ...], queue: deque[WaitingStep], permit: Permit) -> WaitingStep:
        waiting_step = queue.popleft()
        self._waiting -= 1
        self._running[waiting_step.index] = permit, keys
        self._askable.popleft()
        if queue:
            self._askable.append(keys)
        else:
            del self._queues[keys]
        return waiting_step

    def _all(self) -> Iterator[WaitingStep]:
        for queue in self._queues.values():
            yield from queue
