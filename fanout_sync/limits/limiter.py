"""Decides when a step may start: rate limits and a budget, asked together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import define, frozen

from ..records.steps import AgentStepSpec
from ..records.usage import Usage
from .answers import LOCK, SHORTEST_WAIT_S, Exhausted, Wait
from .budget import Amount, Budget, Reservation
from .rate_limit import KeyPermit, RateLimit


@frozen(eq=False)
class Request:
    """What a step has to be asked only once.

    Attributes:
        agent: The spec's agent.
        keys: What it counts against, one for each limit. Steps with equal keys wait for the same, in their order.
        estimate: What it is said to use; `None` if nobody says.
    """

    agent: str
    keys: tuple[str, ...]
    estimate: Amount | None


@define(eq=False)
class Permit:
    """An attempt that was let start. It belongs to the limiter that gave it.

    Attributes:
        key_permits: Its part in each limit.
        reservation: Its part in the budget; `None` if there is none.
        is_over: Whether it has ended.
    """

    key_permits: list[KeyPermit]
    reservation: Reservation | None
    is_over: bool = False


class Limiter:
    """The limits and the budget of one run, both of which other runs may share. Any thread may use it.

    It has no clock: each `now` is a moment in seconds that never goes back, by the one clock of all runs that share.

    Args:
        limits: Each has to agree to a start.
        budget: So has this; `None` if nothing is limited.
    """

    def __init__(self, limits: Sequence[RateLimit], budget: Budget | None = None) -> None:
        self._limits = tuple(limits)
        self._keys = tuple(limit.keys for limit in limits)
        self._budget = budget
        self._account = None if budget is None else budget.account

    @property
    def has_keys(self) -> bool:
        """Whether steps may count against different keys, so that one may start while another has to wait."""
        return any(limit.key is not None for limit in self._limits)

    def shares(self, other: Limiter) -> bool:
        """Return whether a limit or the budget is also the other's."""
        is_budget_shared = self._budget is not None and self._budget is other._budget
        return is_budget_shared or any(limit is theirs for limit in self._limits for theirs in other._limits)

    # A step -----------------------------------------------------------------------------------------------------------

    def request(self, spec: AgentStepSpec) -> Request:
        """Return what to ask `admit` with, for all attempts at a step; the caller's own functions are called here only.

        Raises:
            OptionError: One of them returned something unusable.
            Exception: Whatever one of them raises.
        """
        keys = tuple([limit.key_of(spec) for limit in self._limits])
        return Request(spec.agent, keys, None if self._budget is None else self._budget.estimate_for(spec))

    def admit(self, request: Request, attempt: int, now: float) -> Permit | Wait | Exhausted:
        """Let an attempt start if all agree. All of them are asked before any is told.

        Args:
            request: The step's.
            attempt: The number of the attempt, from 1.
            now: The moment.

        Returns:
            The hold on what it will use, to be settled or released; or when to ask again; or that it never can.
        """
        with LOCK:
            account = self._account
            if account is not None and (exhausted := account.exhausted(attempt, now)) is not None:
                return exhausted
            wait_s, is_for_all = self._wait_s(request, now)
            if wait_s:
                return Wait(max(wait_s, SHORTEST_WAIT_S), "all" if is_for_all else "key")
            reservation = None
            if account is not None:
                if (answer := account.answer(request.agent, request.estimate, now)) is not None:
                    return answer
                reservation = account.start(request.agent, request.estimate, attempt)
            pairs = zip(self._keys, request.keys, strict=True)
            return Permit([keys.get(name).start(request.agent, now) for keys, name in pairs], reservation)

    def spend(self, permit: Permit, usage: Usage) -> None:
        """Count what an attempt has used: while it is in flight, and also when it goes on after it was given up."""
        with LOCK:
            for keys, key_permit in zip(self._keys, permit.key_permits, strict=True):
                key = keys.get(key_permit.key)
                if permit.is_over:
                    key.spend_late(key_permit, usage.tokens, keys.latest)
                else:
                    key.spend(key_permit, usage.tokens)
            if self._account is not None and permit.reservation is not None:
                self._account.spend(permit.reservation, Amount.of(usage))

    def settle(self, permit: Permit, now: float, retry_after: float | None = None) -> None:
        """End an attempt; what was spent on it is what it has used.

        Args:
            permit: The attempt's; a second time nothing happens.
            now: The moment.
            retry_after: For how many seconds nothing is to start, if it ended with `RetryAfter`.
        """
        with LOCK:
            if permit.is_over:
                return
            permit.is_over = True
            for keys, key_permit in zip(self._keys, permit.key_permits, strict=True):
                closed_s = None if retry_after is None else retry_after + _jitter_s(retry_after, keys.random.random())
                keys.get(key_permit.key).end(key_permit, now, closed_s)
            if self._account is not None and permit.reservation is not None:
                self._account.end(permit.reservation, retry_after is not None)

    def release(self, permit: Permit, now: float) -> None:
        """Give back what was held for an attempt that never began; it key_permits one of the requests of the minute."""
        with LOCK:
            if permit.is_over:
                return
            permit.is_over = True
            for keys, key_permit in zip(self._keys, permit.key_permits, strict=True):
                keys.get(key_permit.key).step_aside(key_permit)
            if self._account is not None and permit.reservation is not None:
                self._account.take_back(permit.reservation)

    def yield_reservation(self, permit: Permit) -> None:
        """Let nothing wait for an attempt that itself waits: for a run under the same limits, within it."""
        with LOCK:
            for keys, key_permit in zip(self._keys, permit.key_permits, strict=True):
                keys.get(key_permit.key).step_aside(key_permit)
            if self._account is not None and permit.reservation is not None:
                self._account.step_aside(permit.reservation)

    # The run ----------------------------------------------------------------------------------------------------------

    def begin_run(self, now: float) -> None:
        """Let the run's time count."""
        if self._account is not None:
            with LOCK:
                self._account.begin_run(now)

    def end_run(self, now: float) -> None:
        """Let the run's time count no more, and other runs not wait for it."""
        with LOCK:
            for keys in self._keys:
                keys.give_up_places(self)
            if self._account is not None:
                self._account.end_run(now)

    def seconds_left(self, now: float) -> float:
        """Return how long the run may go on; infinite if that is not limited."""
        if self._account is None:
            return math.inf
        with LOCK:
            return self._account.seconds_left(now)

    def check(self, now: float) -> Exhausted | None:
        """Return what there is no more of, whatever a step may need that waits, be it at another gate."""
        if self._account is None:
            return None
        with LOCK:
            return self._account.exhausted(2, now)  # of the number of steps only one is refused that asks

    def _wait_s(self, request: Request, now: float) -> tuple[float, bool]:
        """Return the longest that a limit wants the request to wait; all are asked, so that each knows who waits.

        Returns:
            Also, whether every other request would have to wait as well, whatever its keys.
        """
        longest, is_for_all = 0.0, False
        for limit, keys, name in zip(self._limits, self._keys, request.keys, strict=True):
            keys.sweep(now)
            wait_s = keys.get(name).wait_s(request.agent, self, now)
            if wait_s and limit.key is None and limit.tokens_per_minute is None:
                is_for_all = True
            longest = max(longest, wait_s)
        return longest, is_for_all


def _jitter_s(seconds: float, share: float) -> float:
    """Return how much longer than asked for to wait: a tenth at most, and no more than a second."""
    return share * min(0.1 * seconds, 1.0)
