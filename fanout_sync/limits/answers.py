"""Whether a step may start: the answers there are, and the one lock under which all who have a say decide."""

from __future__ import annotations

from threading import RLock
from typing import Literal

from attrs import frozen

from .amounts import Resource, used_of

LOCK = RLock()
"""Guards every `RateLimit` and every `Budget`, so that asking several and committing to all of them is one act.

They are shared by runs in several threads; what is done under it takes microseconds. It can be taken again by the
thread that has it: a signal handler or a finalizer that reports usage must not wait for the code that it interrupted.
"""

POLL_S = 0.05
"""When to ask again if what is waited for is the end of somebody's step, of which nobody tells."""

SHORTEST_WAIT_S = 0.001
"""Added to a clock it makes a difference; the difference of two moments, added to the first, may miss the second."""


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
