"""The answers to "May this step start?" other than yes, and the lock under which limits and budgets give them."""

from __future__ import annotations

from threading import RLock
from typing import Literal

from attrs import frozen

from .. import forks
from .amounts import Resource, used_of

LOCK = RLock()
"""Guards the state of every `RateLimit` and every `Budget`.

There is one lock for all of them, so that a step starts under all of its limits and its budget, or under none. Runs in
several threads share them; the lock is held for microseconds. It is reentrant, because a signal handler or a finalizer
may report usage while the thread that it interrupts holds the lock.
"""

# No other thread holds it during a fork, or it would stay locked in the child.
forks.call_around_fork(LOCK.acquire, LOCK.release)

ASK_AGAIN_S = 0.05
"""When to ask again if a step has to wait until another one ends: the end of a step does not wake other runs."""

SHORTEST_WAIT_S = 0.001
"""No wait is shorter: a difference of two moments is rounded, and the first one plus it may be less than the second."""


@frozen
class Wait:
    """Refused for now; ask again after `seconds`.

    Attributes:
        seconds: When to ask again, in seconds from now.
        scope: Which steps have to wait: `"key"` for those with the same keys, `"all"` for every step.
    """

    seconds: float
    scope: Literal["key", "all"]


@frozen
class Exhausted:
    """Refused for good: a budget is used up. `str()` says it in words.

    Attributes:
        resource: What is used up.
        limit: The limit of the budget, in tokens, US dollars, seconds or steps.
        used: How much is used, in the same unit; less than `limit` if the rest is too little for a step.
    """

    resource: Resource
    limit: float
    used: float

    def __str__(self) -> str:
        text = f"{used_of(self.resource, self.used, self.limit)} used"
        return text if self.used >= self.limit else f"{text}, which leaves too little for another step"
