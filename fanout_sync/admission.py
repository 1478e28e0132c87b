"""Whether a step may start: the answers there are, and the one lock under which all who have a say decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import RLock
from typing import Literal

from attrs import frozen

LOCK = RLock()
"""Guards every `RateLimit` and every `Budget`, so that asking several and committing to all of them is one act.

They are shared by runs in several threads; what is done under it takes microseconds. It can be taken again by the
thread that has it: a signal handler or a finalizer that reports usage must not wait for the code that it interrupted.
"""

POLL_S = 0.05
"""When to ask again if what is waited for is the end of somebody's step, of which nobody tells."""

SHORTEST_WAIT_S = 0.001
"""Added to a clock it makes a difference; the difference of two moments, added to the first, may miss the second."""

Resource = Literal["tokens", "cost_usd", "seconds", "steps"]


@frozen
class Wait:
    """Not now.

    Attributes:
        seconds: When to ask again.
        on: Who has to wait: the steps with these keys, or all.
    """

    seconds: float
    on: Literal["key", "all"]


@frozen
class Exhausted:
    """Never: a budget is used up.

    Attributes:
        resource: What there is no more of.
        limit: How much of it there was.
        used: How much of it is used; less than `limit` if what was left is too little for a step.
    """

    resource: Resource
    limit: float
    used: float

    def __str__(self) -> str:
        told = f"{used_of(self.resource, self.used, self.limit)} used"
        return told if self.used >= self.limit else f"{told}, which leaves too little for another step"


def used_of(resource: Resource, used: float, limit: float) -> str:
    """Return how much is used of what, for people, such as `"$0.52 of $1"`."""
    in_words, unit = _WORDS[resource]
    return f"{in_words(used)} of {in_words(limit)}{unit}"


def _count(number: float) -> str:
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds == int(seconds) else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3g}"


def _money(usd: float) -> str:
    """Whole dollars are whole; from a dollar on there are cents, and below it four digits that say something."""
    if usd == int(usd):
        return f"${usd:.0f}"
    decimals = 2 if usd >= 1 else 3 - math.floor(math.log10(usd))
    whole, _, fraction = f"{usd:.{decimals}f}".partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"


_WORDS: dict[Resource, tuple[Callable[[float], str], str]] = {
    "tokens": (_count, " tokens"),
    "cost_usd": (_money, ""),
    "seconds": (_duration, " s"),
    "steps": (_count, " steps"),
}
