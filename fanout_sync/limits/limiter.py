"""Decides whether a step may start: the rate limits and the budget of a run, asked together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import define, frozen

from ..records.steps import AgentStepSpec
from ..records.usage import Usage
from .answers import LOCK, SHORTEST_WAIT_S, Exhausted, Wait
from .budget import Amount, Budget, Reservation
from .rate_limit import KeyPermit, KeyStates, RateLimit


@frozen(eq=False)
class Request:
    """What the limiter has to know of a step. It is found out once, for all attempts.

    Attributes:
        agent: The agent of the spec.
        keys: The key of the spec for each limit. Steps with equal keys wait in one queue.
        estimate: How much an attempt will use, according to the budget's `estimate`; `None` if there is none.
    """

    agent: str
    keys: tuple[str, ...]
    estimate: Amount | None


@define(eq=False)
class Permit:
    """The permission for one attempt to start. It is only valid for the limiter that gave it.

    Attributes:
        key_permits: The permission of each limit.
        reservation: What the budget has set aside for the attempt; `None` if there is no budget.
        is_over: Whether the attempt has ended.
    """

    key_permits: list[KeyPermit]
    reservation: Reservation | None
    is_over: bool = False


class Limiter:
    """The rate limits and the budget of one run. Other runs may share them; any thread may use them.

    It reads no clock. Each `now` is a moment in seconds, of the one monotonic clock that all runs use that share a
    limit or a budget.

    Args:
        limits: The rate limits; a step starts when all of them allow it.
        budget: The budget, which has to allow it as well; `None` if there is none.
    """

    def __init__(self, limits: Sequence[RateLimit], budget: Budget | None = None) -> None:
        self._limits = tuple(limits)
        self._keys = tuple(limit.keys for limit in limits)
        self._budget = budget
        self._account = None if budget is None else budget.account
        self._held_back_by: tuple[RateLimit, str] | None = None

    @property
    def has_keys(self) -> bool:
        """Whether steps may have different keys, so that one may start while another has to wait."""
        return any(limit.key is not None for limit in self._limits)

    def shares(self, other: Limiter) -> bool:
        """Return whether the two have a limit or the budget in common."""
        is_budget_shared = self._budget is not None and self._budget is other._budget
        return is_budget_shared or any(limit is theirs for limit in self._limits for theirs in other._limits)

    # A step -----------------------------------------------------------------------------------------------------------

    def request(self, spec: AgentStepSpec) -> Request:
        """Return what `admit` takes, for all attempts at a step; only this calls the caller's own functions.

        Raises:
            OptionError: One of them returned something that is not usable.
            Exception: Whatever one of them raises.
        """
        keys = tuple([limit.key_of(spec) for limit in self._limits])
        return Request(spec.agent, keys, None if self._budget is None else self._budget.estimate_for(spec))

    def admit(self, request: Request, attempt: int, now: float) -> Permit | Wait | Exhausted:
        """Let an attempt start if the budget and every limit allow it; otherwise none of them counts it.

        Args:
            request: The request of the step.
            attempt: The number of the attempt, from 1.
            now: The moment.

        Returns:
            The permission, which has to be settled or released; or when to ask again; or what the budget ran out of.
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
                    self._held_back_by = None
                    return answer
                reservation = account.start(request.agent, request.estimate, attempt)
            pairs = zip(self._keys, request.keys, strict=True)
            return Permit([states.get(key).start(request.agent, now) for states, key in pairs], reservation)

    def spend(self, permit: Permit, usage: Usage) -> None:
        """Count what an attempt has used; also after it has ended, if its thread was abandoned and goes on."""
        with LOCK:
            for states, key_permit in self._each(permit):
                states.reports.add(usage)
                state = states.get(key_permit.key)
                if permit.is_over:
                    state.spend_late(key_permit, usage.tokens, states.latest)
                else:
                    state.spend(key_permit, usage.tokens)
            if self._account is not None and permit.reservation is not None:
                self._account.reports.add(usage)
                self._account.spend(permit.reservation, Amount.of(usage))

    def settle(self, permit: Permit, now: float, retry_after: float | None = None) -> None:
        """End an attempt; what it has used is what was spent on it. The second time nothing happens.

        Args:
            permit: The permission of the attempt.
            now: The moment.
            retry_after: The seconds of its `RetryAfter`; `None` if it raised none.
        """
        with LOCK:
            if permit.is_over:
                return
            permit.is_over = True
            for states, key_permit in self._each(permit):
                cooldown_s = (
                    None if retry_after is None else retry_after + _jitter_s(retry_after, states.random.random())
                )
                states.get(key_permit.key).end(key_permit, now, cooldown_s)
            if self._account is not None and permit.reservation is not None:
                self._account.end(permit.reservation, retry_after is not None)

    def release(self, permit: Permit, now: float) -> None:
        """End an attempt that never began. It still counts as a request: how far it came is not known."""
        with LOCK:
            if permit.is_over:
                return
            permit.is_over = True
            for states, key_permit in self._each(permit):
                states.get(key_permit.key).release(key_permit)
            if self._account is not None and permit.reservation is not None:
                self._account.cancel(permit.reservation)

    def yield_reservation(self, permit: Permit) -> None:
        """Let no other attempt wait for this one, because it waits for a run of its own under the same limits."""
        with LOCK:
            for states, key_permit in self._each(permit):
                states.get(key_permit.key).release(key_permit)
            if self._account is not None and permit.reservation is not None:
                self._account.release(permit.reservation)

    def held_back_by(self, now: float) -> str:
        """Return in words what has made the last step wait."""
        if self._held_back_by is None:
            return "the budget: what running steps may still use is set aside"
        limit, key = self._held_back_by
        of_key = f" of {key!r}" if limit.key is not None else ""
        with LOCK:
            pause_s = self._keys[self._limits.index(limit)].get(key).cooldown.seconds_left(now)
        if pause_s:
            return f"a pause of {pause_s:.0f} s more{of_key}: the server has refused several steps"
        rates = ((limit.requests_per_minute, "requests"), (limit.tokens_per_minute, "tokens"))
        return " and ".join(f"{rate:g} {what} per minute" for rate, what in rates if rate is not None) + of_key

    # The run ----------------------------------------------------------------------------------------------------------

    def begin_run(self, now: float) -> None:
        """Let the time of the run count for the budget."""
        if self._account is not None:
            with LOCK:
                self._account.begin_run(now)

    def end_run(self, now: float) -> None:
        """Let the time of the run count no longer, and no other run wait for it."""
        with LOCK:
            for states in self._keys:
                states.forget_run(self)
            if self._account is not None:
                self._account.end_run(now)

    def seconds_left(self, now: float) -> float:
        """Return for how many seconds the run may go on; infinite if time is not limited."""
        if self._account is None:
            return math.inf
        with LOCK:
            return self._account.seconds_left(now)

    def exhausted(self, now: float) -> Exhausted | None:
        """Return what the budget has run out of, if no waiting step may start any more, whatever its key and agent."""
        if self._account is None:
            return None
        with LOCK:
            # As a second attempt: those may start when the number of steps is used up.
            return self._account.exhausted(2, now)

    def tell_uncounted(self) -> list[str]:
        """Return what is wrong if no step has reported what a limit or the budget counts: each of them once."""
        holders = [*self._keys, self._account]
        with LOCK:
            return [text for holder in holders if holder is not None and (text := holder.reports.tell()) is not None]

    def _each(self, permit: Permit) -> Iterator[tuple[KeyStates, KeyPermit]]:
        return zip(self._keys, permit.key_permits, strict=True)

    def _wait_s(self, request: Request, now: float) -> tuple[float, bool]:
        """Return how many seconds the request has to wait, and whether every other one has to, whatever its keys.

        All limits are asked, even if the first one refuses: each of them has to know which runs wait.
        """
        longest_s, is_for_all = 0.0, False
        for limit, states, key in zip(self._limits, self._keys, request.keys, strict=True):
            states.sweep(now)
            wait_s = states.get(key).wait_s(request.agent, self, now)
            if wait_s and limit.key is None and limit.tokens_per_minute is None:
                is_for_all = True
            if wait_s > longest_s:
                longest_s, self._held_back_by = wait_s, (limit, key)
        return longest_s, is_for_all


def _jitter_s(seconds: float, share: float) -> float:
    """Return how much longer to wait than the server asked for: `share` of a tenth of it, and of a second at most."""
    return share * min(0.1 * seconds, 1.0)
