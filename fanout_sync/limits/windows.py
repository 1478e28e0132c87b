"""How much was there in the last minute, and when is there room for more? The arithmetic is pyrate-limiter's."""

from __future__ import annotations

import math

MINUTE_S = 60.0

MARGIN_S = 0.02
"""Windows are longer by this: clocks differ."""

SMALLEST_BURST = 10
"""So many requests may start at once, whatever the rate; then those of a second."""

MOST_UNITS = 10_000
"""Of so many entries at most consists a minute of tokens: the library keeps one for each unit."""

_LONGEST_MS = 10**15


class Window:
    """What was put in lately, under one or two rates. Only used under the lock.

    Args:
        rates: Pairs of how much there may be and in how many milliseconds, the shorter one first.

    Attributes:
        limit: How much the longest of the rates allows.
        burst: How much the shortest does.
    """

    __slots__ = ("_bucket", "_item", "_latest_ms", "_rates", "burst", "limit")

    def __init__(self, rates: list[tuple[int, int]]) -> None:
        from pyrate_limiter import InMemoryBucket, Rate, RateItem  # dear: it brings asyncio and sqlite3

        self._rates = rates
        self._item = RateItem
        self._bucket = InMemoryBucket([Rate(limit, interval_ms) for limit, interval_ms in rates])
        self._latest_ms = -_LONGEST_MS
        self.limit = rates[-1][0]
        self.burst = rates[0][0]

    def room_in_s(self, weight: int, now: float) -> float:
        """Return in how many seconds `weight` fits, 0 if it does now; if it never does, when all is empty."""
        return max(0, self._room_at_ms(weight) - self._at(now)) / 1000

    def put(self, weight: int, now: float) -> None:
        """Take in what fits."""
        self._put(weight, self._at(now))

    def put_belated(self, weight: int, since: float, now: float) -> bool:
        """Take in what came up at `since`, as of the moment from which it fitted; return whether that is past."""
        at_ms = max(self._room_at_ms(weight), self._at(since))
        if at_ms > self._at(now):
            return False
        self._put(weight, at_ms)
        return True

    def is_empty(self, now: float) -> bool:
        """Return whether all is over that was put in."""
        self._bucket.leak(self._at(now))
        return self._bucket.count() == 0

    def _room_at_ms(self, weight: int) -> int:
        latest_ms = -_LONGEST_MS
        for limit, interval_ms in self._rates:
            in_the_way = self._bucket.peek(max(0, limit - weight))
            if in_the_way is not None:  # its millisecond is not over until the next one begins
                latest_ms = max(latest_ms, in_the_way.timestamp + interval_ms + 1)
        return latest_ms

    def _put(self, weight: int, at_ms: int) -> None:
        self._latest_ms = at_ms
        if self._bucket.count() >= 2 * self.limit:
            self._bucket.leak(at_ms)
        fits = self._bucket.put(self._item("", at_ms, weight))
        assert fits, "that there is room was asked before"

    def _at(self, now: float) -> int:
        """Return `now` in milliseconds; never less than before: another thread may have looked at the clock earlier."""
        return max(math.floor(now * 1000), self._latest_ms)


def request_rates(per_minute: float) -> list[tuple[int, int]]:
    """Return the rates of `Window` for so many requests per minute.

    The minute is kept, and so is its share of a shorter time, since that is what providers enforce. Of a rate that is
    no whole number the minute is lengthened until it is one: 2.5 per minute are 3 in 72 seconds.
    """
    many = math.ceil(per_minute)
    few = min(many, max(SMALLEST_BURST, math.ceil(per_minute / MINUTE_S)))
    short_ms = _milliseconds(MINUTE_S * few / per_minute)
    if many % few == 0:  # as many short windows, each with its margin, are longer than the long one with its
        return [(few, short_ms)]
    # The library wants no rate to be denser than a shorter one: the long one has the short one's margin in proportion.
    return [(few, short_ms), (many, -(-many * short_ms // few))]


def token_unit(per_minute: int) -> int:
    """Return how many tokens are one entry in a window."""
    return -(-per_minute // MOST_UNITS)


def token_rates(per_minute: int) -> list[tuple[int, int]]:
    """Return the rates of `Window` for so many tokens per minute, in units."""
    return [(per_minute // token_unit(per_minute), _milliseconds(MINUTE_S))]


def _milliseconds(seconds: float) -> int:
    return math.ceil(min((seconds + MARGIN_S) * 1000, _LONGEST_MS))
