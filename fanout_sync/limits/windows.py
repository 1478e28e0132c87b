"""How much was used in the last minute, and when there is room for more: a running sum over a sliding window."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from operator import itemgetter

MINUTE_S = 60.0

MARGIN_S = 0.02
"""Windows are longer by this, because the provider's clock and ours differ."""

SMALLEST_BURST = 10
"""This many requests may start at once, however low the rate; with a higher rate, those of one second."""

_LONGEST_MS = 10**15

_total_before = itemgetter(1)


class Window:
    """What was used lately, under one or two rates. Only used under the lock.

    It reads no clock: every moment is an argument, in seconds.

    Args:
        rates: Pairs of a limit and the milliseconds for which it holds, the shorter one first.

    Attributes:
        limit: How much the longest rate allows.
        burst: How much the shortest rate allows.
    """

    __slots__ = ("_entries", "_latest_ms", "_rates", "_total", "burst", "limit")

    def __init__(self, rates: list[tuple[int, int]]) -> None:
        self._rates = rates
        # One entry for each `put`, whatever its weight: its moment, and the total of all that was put in before it.
        self._entries: deque[tuple[int, int]] = deque()
        self._total = 0
        self._latest_ms = -_LONGEST_MS
        self.limit = rates[-1][0]
        self.burst = rates[0][0]

    def room_in_s(self, weight: int, now: float) -> float:
        """Return in how many seconds `weight` fits; 0 if it fits now. More than the limit fits when nothing is left."""
        return max(0, self._room_at_ms(weight) - self._at_ms(now)) / 1000

    def put(self, weight: int, now: float) -> None:
        """Add an entry that fits now."""
        assert self._room_at_ms(weight) <= self._at_ms(now), "the caller has asked whether there is room"
        self._put(weight, self._at_ms(now))

    def put_backdated(self, weight: int, since: float, now: float) -> bool:
        """Add an entry at the first moment from `since` on at which it fits; return whether there is one by `now`."""
        at_ms = max(self._room_at_ms(weight), self._at_ms(since))
        if at_ms > self._at_ms(now):
            return False
        self._put(weight, at_ms)
        return True

    def is_empty(self, now: float) -> bool:
        """Return whether everything that was put in is older than the window."""
        return not self.room_in_s(self.limit, now)

    def _room_at_ms(self, weight: int) -> int:
        room_at_ms = -_LONGEST_MS
        for limit, interval_ms in self._rates:
            # Room begins when the entry has left the window that contains the unit of this number, counted from 1.
            last_to_leave = self._total - max(0, limit - weight)
            index = bisect_left(self._entries, last_to_leave, key=_total_before) - 1
            if index >= 0:  # a millisecond is over when the next one begins
                room_at_ms = max(room_at_ms, self._entries[index][0] + interval_ms + 1)
        return room_at_ms

    def _put(self, weight: int, at_ms: int) -> None:
        self._latest_ms = at_ms
        longest_ms = self._rates[-1][1]
        while self._entries and self._entries[0][0] + longest_ms < at_ms:
            self._entries.popleft()
        self._entries.append((at_ms, self._total))
        self._total += weight

    def _at_ms(self, now: float) -> int:
        """Return `now` in milliseconds, never before the latest entry: threads may read the clock in another order."""
        return max(math.floor(now * 1000), self._latest_ms)


def request_rates(per_minute: float) -> list[tuple[int, int]]:
    """Return the rates of `Window` for this many requests per minute.

    The minute is kept, and so is its share of a shorter time, since that is what providers enforce. If `per_minute` is
    not a whole number, it is rounded up and the minute is lengthened accordingly: 2.5 per minute are 3 in 72 seconds.
    """
    many = math.ceil(per_minute)
    few = min(many, max(SMALLEST_BURST, math.ceil(per_minute / MINUTE_S)))
    short_ms = _milliseconds(MINUTE_S * few / per_minute)
    if many % few == 0:  # as many short windows, each with its margin, are longer than the long one with its margin
        return [(few, short_ms)]
    # The long window has the margins of the short windows that it covers, so that its rate is no higher than theirs.
    return [(few, short_ms), (many, -(-many * short_ms // few))]


def token_rates(per_minute: int) -> list[tuple[int, int]]:
    """Return the rates of `Window` for this many tokens per minute."""
    return [(per_minute, _milliseconds(MINUTE_S))]


def _milliseconds(seconds: float) -> int:
    return math.ceil(min((seconds + MARGIN_S) * 1000, _LONGEST_MS))
