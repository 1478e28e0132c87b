"""A limit on what runs may use up altogether: tokens, money, time, steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from attrs import Attribute, define, field, frozen, setters

from ..checks import not_negative_amount, positive_amount, positive_int
from ..errors import OptionError
from ..formatting import describe
from ..records.steps import AgentStepSpec
from ..records.usage import Usage
from .amounts import Resource, used_of
from .answers import LOCK, POLL_S, Exhausted, Wait

__all__ = ["Budget", "BudgetUsed"]

MOST_REMEMBERED = 1024
"""Of so many idle agents it is remembered what a step used."""

_ROUNDING_S = 1e-6
_PARTS_OF_A_DOLLAR = 10**12
"""Money is counted in whole numbers of these, so that ten cents ten times are a dollar."""


def _a_count(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_int(f"{attribute.name} of Budget", value)


def _an_amount(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_amount(f"{attribute.name} of Budget", value)


@frozen
class BudgetUsed:
    """What is used of a `Budget`, limited or not.

    Attributes:
        tokens: As reported by steps.
        cost_usd: As reported by steps, in US dollars.
        seconds: For how long at least one run was under way.
        steps: How many were started.
    """

    tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    steps: int = 0


@define(eq=False, on_setattr=setters.frozen)
class Budget:
    """What runs may use up. It counts as long as it lives, over all runs that are given it; used up, it stays so.

    Before an attempt starts, what it will use is set aside: what `estimate` says, or the most that one of its agent has
    used so far; the first one of an agent runs alone. What is set aside and not used is free again when the attempt has
    ended. So a budget is overshot by no more than the errors of the estimates of what is in flight. It counts as
    used up when the next step does not fit into what is left, though a smaller one might.

    Args:
        max_tokens: How many tokens steps may use.
        max_cost_usd: How much they may cost, in US dollars.
        max_seconds: For how long runs may be under way, in seconds by the clock on the wall.
        max_steps: How many steps may start; another attempt is no new step.
        estimate: What a step will use, at most: a `Usage`, or a number if only tokens, or only money, are limited.

    Raises:
        OptionError: An argument is unusable, or there is no limit at all.
    """

    max_tokens: int | None = field(default=None, validator=_a_count)
    max_cost_usd: float | None = field(default=None, validator=_an_amount)
    max_seconds: float | None = field(default=None, validator=_an_amount)
    max_steps: int | None = field(default=None, validator=_a_count)
    estimate: Callable[[AgentStepSpec], Usage | float] | None = field(default=None, kw_only=True)
    account: Account = field(init=False, repr=False)  # for the limiter

    @estimate.validator
    def _check_estimate(self, attribute: Any, value: Any) -> None:
        if value is None:
            return
        if not callable(value):
            raise OptionError(f"estimate of Budget must be a function of the spec, got {describe(value)}")
        if self.max_tokens is None and self.max_cost_usd is None:
            raise OptionError("estimate of Budget needs max_tokens or max_cost_usd")

    def __attrs_post_init__(self) -> None:
        if self.max_tokens is self.max_cost_usd is self.max_seconds is self.max_steps is None:
            raise OptionError("Budget needs max_tokens, max_cost_usd, max_seconds or max_steps")
        object.__setattr__(self, "account", Account(self))

    @property
    def used(self) -> BudgetUsed:
        """What is used so far; the time as of when it was last looked at."""
        return self.account.used()

    def summary_line(self, now: float | None = None) -> str:
        """Return what is used of what is limited, such as `"budget: 1200 of 1000 tokens, $0.52 of $1"`.

        Args:
            now: The moment, in seconds, by the clock of the runs; by default when it was last looked at.
        """
        return self.account.summary_line(now)

    def estimate_for(self, spec: AgentStepSpec) -> Amount | None:
        """Return what `estimate` says; `None` if there is none.

        Raises:
            OptionError: It returned something else than is allowed.
            Exception: Whatever it raises.
        """
        if self.estimate is None:
            return None
        estimate: Any = self.estimate(spec)
        if isinstance(estimate, Usage):
            return Amount.of(estimate)
        if self.max_tokens is not None and self.max_cost_usd is not None:
            raise OptionError(
                "estimate of Budget must return a Usage, as both max_tokens and max_cost_usd are given, "
                f"got {describe(estimate)}"
            )
        number = not_negative_amount("what estimate of Budget returned, if it is no Usage,", estimate)
        return Amount(math.ceil(number), 0) if self.max_cost_usd is None else Amount(0, _parts(number))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Budget lives in one process: give it to the runner as budget, not to the executor")


@define(eq=False)
class Amount:
    """Tokens and money, in whole numbers, so that what is added and taken away again leaves nothing.

    Attributes:
        tokens: How many.
        cost: In parts of a dollar.
    """

    tokens: int = 0
    cost: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Amount:
        """Return what a usage amounts to."""
        return cls(usage.tokens, _parts(usage.cost_usd))

    def add(self, other: Amount) -> None:
        """Become more by `other`."""
        self.tokens += other.tokens
        self.cost += other.cost

    def subtract(self, other: Amount) -> None:
        """Become less by `other`."""
        self.tokens -= other.tokens
        self.cost -= other.cost

    def left_of(self, other: Amount) -> Amount:
        """Return what of `other` goes beyond this."""
        return Amount(max(0, other.tokens - self.tokens), max(0, other.cost - self.cost))


@define(eq=False)
class _Agent:
    """What is known of an agent.

    Attributes:
        largest: The most that an attempt of it used; `None` as long as none has ended.
        in_flight: Those for which that is set aside.
    """

    largest: Amount | None = None
    in_flight: set[Reservation] = field(factory=set)


@define(eq=False)
class Reservation:
    """One attempt under a budget.

    Attributes:
        agent: The spec's agent.
        estimate: What it was said to use; `None` if that is what its agent's attempts use.
        is_first: Whether it is the first one at its step.
        spent: What it has reported so far.
        reserved: What is set aside for what it will use beyond that.
        is_counted: Whether something may be set aside for it.
    """

    agent: str
    estimate: Amount | None
    is_first: bool
    spent: Amount = field(factory=Amount)
    reserved: Amount = field(factory=Amount)
    is_counted: bool = True


class Account:
    """The state of a `Budget`. What is not for people is only used under the lock."""

    def __init__(self, budget: Budget) -> None:
        self._max_tokens = budget.max_tokens
        self._max_cost = None if budget.max_cost_usd is None else _parts(budget.max_cost_usd)
        self._max_seconds = math.inf if budget.max_seconds is None else float(budget.max_seconds)
        self._max_steps = math.inf if budget.max_steps is None else budget.max_steps
        limits: dict[Resource, float | None] = {
            "tokens": budget.max_tokens,
            "cost_usd": budget.max_cost_usd,
            "seconds": budget.max_seconds,
            "steps": budget.max_steps,
        }
        self._limits: dict[Resource, float] = {name: limit for name, limit in limits.items() if limit is not None}
        self._reserves = budget.max_tokens is not None or budget.max_cost_usd is not None
        self._used = Amount()
        self._reserved = Amount()
        self._steps = 0
        self._runs = 0
        self._earlier_s = 0.0
        self._since = self._latest = -math.inf
        self._agents: dict[str, _Agent] = {}
        self._in_flight = 0
        self._alone: Reservation | None = None
        self._gone: Resource | None = None
        self._are_steps_gone = False

    # For people -------------------------------------------------------------------------------------------------------

    def used(self) -> BudgetUsed:
        """Return what is used."""
        with LOCK:
            cost_usd = self._used.cost / _PARTS_OF_A_DOLLAR
            return BudgetUsed(self._used.tokens, cost_usd, self._seconds(self._latest), self._steps)

    def summary_line(self, now: float | None) -> str:
        """Return what is used of what is limited."""
        with LOCK:
            now = self._latest if now is None else now
            parts = [used_of(name, self._used_of(name, now), limit) for name, limit in self._limits.items()]
        return f"budget: {', '.join(parts)}"

    # Time -------------------------------------------------------------------------------------------------------------

    def begin_run(self, now: float) -> None:
        """Let time count from now on, unless it does already."""
        if not self._runs:
            self._since = now
        self._runs += 1

    def end_run(self, now: float) -> None:
        """Let time count no more, unless there is another run."""
        self._runs -= 1
        if not self._runs:
            self._earlier_s += max(0.0, now - self._since)

    def seconds_left(self, now: float) -> float:
        """Return how long a run may still be under way; infinite if that is not limited."""
        return max(0.0, self._max_seconds - self._seconds(now))

    def is_out_of_time(self, now: float) -> bool:
        """Return whether there is no time left."""
        return self.seconds_left(now) <= _ROUNDING_S

    def _seconds(self, now: float) -> float:
        self._latest = max(self._latest, now)
        return self._earlier_s + (max(0.0, self._latest - self._since) if self._runs else 0.0)

    # Steps ------------------------------------------------------------------------------------------------------------

    def exhausted(self, attempt: int, now: float) -> Exhausted | None:
        """Return what there is no more of, whatever a step may need."""
        is_first = attempt == 1
        if self._are_steps_gone and is_first:
            return self.exhausted_of("steps", now)
        if self._gone is None and self._max_seconds < math.inf and self.is_out_of_time(now):
            self._gone = "seconds"
        if self._gone is None:
            self._gone = self._used_up()
        if self._gone is not None:
            return self.exhausted_of(self._gone, now)
        if is_first and self._steps >= self._max_steps:
            self._are_steps_gone = True
            return self.exhausted_of("steps", now)
        return None

    def _used_up(self) -> Resource | None:
        if self._max_tokens is not None and self._used.tokens >= self._max_tokens:
            return "tokens"
        if self._max_cost is not None and self._used.cost >= self._max_cost:
            return "cost_usd"
        return None

    def exhausted_of(self, resource: Resource, now: float) -> Exhausted:
        """Return the answer that there is no more of this."""
        return Exhausted(resource, self._limits[resource], self._used_of(resource, now))

    def answer(self, agent: str, estimate: Amount | None, now: float) -> Wait | Exhausted | None:
        """Return why an attempt cannot start; `None` if it can."""
        if not self._reserves:
            return None
        if self._alone is not None:
            return Wait(POLL_S, "all")
        lacking = self._lacking(estimate or self._largest(agent))
        if lacking is None:
            return None
        if self._in_flight:
            return Wait(POLL_S, "all")
        self._gone = lacking
        return self.exhausted_of(lacking, now)

    def start(self, agent: str, estimate: Amount | None, attempt: int) -> Reservation:
        """Begin an attempt that can."""
        reservation = Reservation(agent, estimate, attempt == 1)
        self._steps += reservation.is_first
        self._in_flight += 1
        if self._reserves:
            if estimate is None and self._largest(agent) is None:
                self._alone = reservation
            self._agent(agent).in_flight.add(reservation)
            self._reserve(reservation)
        return reservation

    def spend(self, reservation: Reservation, amount: Amount) -> None:
        """Count what an attempt has used, also when it has ended."""
        self._used.add(amount)
        reservation.spent.add(amount)
        if reservation.is_counted:
            self._reserve(reservation)
        if self._reserves and self._largest(reservation.agent) is not None:
            self._learn(reservation)

    def step_aside(self, reservation: Reservation) -> None:
        """Set nothing aside for this attempt any more, and let nothing wait for it."""
        if not reservation.is_counted:
            return
        reservation.is_counted = False
        self._in_flight -= 1
        if self._alone is reservation:
            self._alone = None
        if self._reserves:
            self._reserved.subtract(reservation.reserved)
            reservation.reserved = Amount()
            self._agents[reservation.agent].in_flight.remove(reservation)

    def end(self, reservation: Reservation, was_sent_away: bool) -> None:
        """End an attempt."""
        self.step_aside(reservation)
        says_something = not was_sent_away or reservation.spent.tokens or reservation.spent.cost
        if self._reserves and says_something:
            self._learn(reservation)

    def take_back(self, reservation: Reservation) -> None:
        """Undo `start`."""
        self.step_aside(reservation)
        self._steps -= reservation.is_first

    def _lacking(self, estimate: Amount | None) -> Resource | None:
        used, reserved = self._used, self._reserved
        if self._max_tokens is not None:
            needed = used.tokens + reserved.tokens + (1 if estimate is None else estimate.tokens)
            if needed > self._max_tokens:
                return "tokens"
        if self._max_cost is not None:
            needed = used.cost + reserved.cost + (1 if estimate is None else estimate.cost)
            if needed > self._max_cost:
                return "cost_usd"
        return None

    def _reserve(self, reservation: Reservation) -> None:
        """Set aside what the attempt will use beyond what it has."""
        estimate = reservation.estimate or self._largest(reservation.agent)
        if estimate is not None:
            self._reserved.subtract(reservation.reserved)
            reservation.reserved = reservation.spent.left_of(estimate)
            self._reserved.add(reservation.reserved)

    def _learn(self, reservation: Reservation) -> None:
        agent, spent = self._agent(reservation.agent), reservation.spent
        largest = agent.largest
        if largest is None:
            agent.largest = largest = Amount()
        elif spent.tokens <= largest.tokens and spent.cost <= largest.cost:
            return
        largest.tokens = max(largest.tokens, spent.tokens)
        largest.cost = max(largest.cost, spent.cost)
        for other in agent.in_flight:
            self._reserve(other)

    def _largest(self, agent: str) -> Amount | None:
        known = self._agents.get(agent)
        return None if known is None else known.largest

    def _agent(self, name: str) -> _Agent:
        agent = self._agents.get(name)
        if agent is None:
            if len(self._agents) >= MOST_REMEMBERED:
                idle = next((other for other, state in self._agents.items() if not state.in_flight), None)
                if idle is not None:
                    del self._agents[idle]
            agent = self._agents[name] = _Agent()
        return agent

    def _used_of(self, resource: Resource, now: float) -> float:
        if resource == "tokens":
            return self._used.tokens
        if resource == "cost_usd":
            return self._used.cost / _PARTS_OF_A_DOLLAR
        return self._seconds(now) if resource == "seconds" else self._steps


def _parts(usd: float) -> int:
    """Return an amount of money in whole parts of a dollar; in two steps, as the largest float times that is none."""
    whole = int(usd)
    return whole * _PARTS_OF_A_DOLLAR + round((usd - whole) * _PARTS_OF_A_DOLLAR)
