"""After refusals no step starts for a while; then half as many as before may be in flight, and more as they succeed."""

from __future__ import annotations

import math
from bisect import insort
from typing import Literal

OnRefusal = Literal["wait_all", "wait_step"]

REDUCED_KEPT_S = 60.0
"""While fewer steps may be in flight than before, a cooldown is remembered for this long after steps may start."""

FEWEST_REFUSALS = 4
"""So many refusals close together say that a server is over its limit; with fewer steps in flight, fewer do."""

SHORTEST_SPAN = 6
"""Refusals are close together if they are among so many steps that started one after another, or among fewer."""

_MOST_REMEMBERED = 32  # refusals that were not enough yet


class Cooldown:
    """Says whether steps may start after a server has refused some with `RetryAfter`. Only used under the lock.

    There are three states. Normally any number of steps may be in flight. When a server is over its limit, none may
    start for a while: a pause. Then the number in flight is *reduced*: half as many as before, and more as they
    succeed, until as many are allowed as were in flight before.

    How many are allowed follows the congestion control of TCP (RFC 5681). Each pause halves it. It then grows by one
    whenever as many steps have succeeded as are allowed (congestion avoidance). If pause follows pause and no step
    succeeds in between, that was one event, and the number first grows by one with each step that succeeds, up to half
    of what it was at the beginning of that event (slow start).

    One refusal does not say that a server is over its limit: some refuse a few requests at random, whatever the load.
    `is_over_limit` decides. It looks at steps in the order in which they started, and not in the order in which they
    ended, since a refusal often comes sooner than an answer: of many steps that start at once, the refused ones end
    first.

    A step that started before the latest pause says nothing about how the server is now. Steps are numbered as they
    start, and only those count that started after it.

    Args:
        on_refusal: `"wait_all"` if each refusal begins a pause, `"wait_step"` if none does; `None` to decide.

    Attributes:
        in_flight: How many steps have started and not ended.
    """

    __slots__ = (
        "_allowed",
        "_allowed_before",
        "_ends_at",
        "_first_number",
        "_has_succeeded",
        "_in_flight_since",
        "_next_number",
        "_on_refusal",
        "_refused",
        "_slow_start_until",
        "_successes",
        "in_flight",
    )

    def __init__(self, on_refusal: OnRefusal | None = None) -> None:
        self.in_flight = 0
        self._on_refusal = on_refusal
        self._ends_at = -math.inf
        self._next_number = 0
        # Since the latest pause: the number of the first step, how many are in flight, and which were refused.
        self._first_number = 0
        self._in_flight_since = 0
        self._refused: list[int] = []
        self._has_succeeded = True
        # How many may be in flight, `None` for any number; and as many as which have to be allowed for that to end.
        self._allowed: int | None = None
        self._allowed_before = 0
        self._slow_start_until = 0
        self._successes = 0  # that count towards the next one that is allowed

    @property
    def is_full(self) -> bool:
        """Whether a step has to end before another one may start, because fewer may be in flight than before."""
        return self._allowed is not None and self._in_flight_since >= self._allowed

    def may_be_forgotten(self, now: float) -> bool:
        """Return whether it is over; while the number in flight is reduced, whether it has been for long enough."""
        return now >= self._ends_at + (0.0 if self._allowed is None else REDUCED_KEPT_S)

    def seconds_left(self, now: float) -> float:
        """Return for how many seconds no step may start; 0 if steps may start now."""
        return max(0.0, self._ends_at - now)

    def step_started(self) -> int:
        """Count a step as in flight; return its number."""
        number = self._next_number
        self._next_number += 1
        self.in_flight += 1
        self._in_flight_since += 1
        return number

    def step_ended(self, number: int) -> None:
        """Count the step of this number as in flight no more."""
        self.in_flight -= 1
        if number >= self._first_number:
            self._in_flight_since -= 1

    def step_succeeded(self, number: int) -> None:
        """Allow more steps in flight, if that is reduced: the step of this number ended without `RetryAfter`."""
        if number < self._first_number:
            return
        self._has_succeeded = True
        if self._allowed is None:
            return
        self._successes += 1
        if self._successes >= self._allowed or self._allowed < self._slow_start_until:
            self._allowed += 1
            self._successes = 0
        if self._allowed >= self._allowed_before:
            self._allowed = None

    def step_refused(self, number: int, now: float, seconds: float) -> None:
        """Let no step start for `seconds` if the server is over its limit.

        Args:
            number: The number of the step that was refused, and still counts as in flight.
            now: The moment.
            seconds: How long the server asked it to wait, and a little more.
        """
        if self._on_refusal == "wait_step":
            return
        if number < self._first_number:  # it was in flight when the pause began, which covers it
            if self._on_refusal == "wait_all" or now < self._ends_at:
                self._ends_at = max(self._ends_at, now + seconds)
            return
        if self._on_refusal == "wait_all" or self._is_over_limit(number):
            self._ends_at = max(self._ends_at, now + seconds)
            self._reduce()

    def _is_over_limit(self, number: int) -> bool:
        """Return whether this refusal is one of several close together.

        `n` refusals are close together if they are among `SHORTEST_SPAN` steps that started one after another, or among
        `4n - 10`: four of six, five of ten, eight of twenty-two. So a few at once are enough if next to all are
        refused, and more than a quarter of all is enough in the long run.
        """
        refused = self._refused
        insort(refused, number)
        del refused[:-_MOST_REMEMBERED]
        # In flight is not even this step if it was left out because it had a run of its own under the limit.
        fewest = max(2, min(FEWEST_REFUSALS, 1 + self.in_flight))
        return any(
            last - first < max(SHORTEST_SPAN, 4 * count - 10)
            for begin, first in enumerate(refused)
            for count, last in enumerate(refused[begin:], 1)
            if count >= fewest and first <= number <= last
        )

    def _reduce(self) -> None:
        """Begin a pause: allow half as many steps in flight as there are, or as were allowed."""
        before = self.in_flight if self._allowed is None else self._allowed
        self._allowed_before = self.in_flight if self._allowed is None else max(self.in_flight, self._allowed_before)
        self._allowed = max(1, before // 2)
        if self._has_succeeded:
            self._slow_start_until = self._allowed
        self._has_succeeded = False
        self._successes = 0
        self._refused.clear()
        self._first_number = self._next_number
        self._in_flight_since = 0
