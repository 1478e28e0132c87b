"""A limit on what runs may use in total: tokens, money, time and steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from attrs import Attribute, define, field, frozen, setters

from ..checks import not_negative_amount, positive_amount, positive_int
from ..errors import OptionError, UnknownOption
from ..formatting import describe
from ..records.steps import AgentStepSpec
from ..records.usage import Usage
from .amounts import Resource, used_of
from .answers import ASK_AGAIN_S, LOCK, Exhausted, Wait
from .uncounted import Counted, UsageReports

__all__ = ["Budget", "BudgetUsed"]

MOST_REMEMBERED = 1024
"""For so many idle agents, the most that an attempt used is remembered."""

_ROUNDING_S = 1e-6
_PARTS_OF_A_DOLLAR = 10**12
"""Money is counted in whole numbers of these, so that ten times ten cents are exactly a dollar."""


def _a_count(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_int(f"{attribute.name} of Budget", value)


def _an_amount(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_amount(f"{attribute.name} of Budget", value)


@frozen
class BudgetUsed:
    """What has been used under a `Budget`, of what it limits and of what it does not.

    Attributes:
        tokens: How many tokens steps have reported.
        cost_usd: How much money steps have reported, in US dollars.
        seconds: For how many seconds at least one run was under way.
        steps: How many steps were started; another attempt is not another step.
    """

    tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    steps: int = 0


@define(eq=False, init=False, kw_only=True, on_setattr=setters.frozen)
class Budget:
    """A limit on what runs may use in total. All runs in one process that are given the same object share it.

    It counts for as long as the object exists. When it is used up, it stays used up, and no more steps start; if only
    `max_steps` is used up, steps that have started are still tried again.

    Before an attempt starts, what it will use is set aside: what `estimate` returns or, without `estimate`, the most
    that an attempt of the same agent has used so far. Without `estimate`, the first attempt of an agent runs alone.
    What was set aside but not used is free again when the attempt ends. So a budget is exceeded at most by the amount
    by which the attempts in flight use more than was set aside for them. The budget is used up when the next step does
    not fit into what is left, even if a smaller step would fit.

    Args:
        max_tokens: How many tokens steps may use: an int of at least 1.
        max_cost_usd: How much money steps may use, in US dollars: a number greater than 0.
        max_seconds: For how many seconds runs may be under way, in real time: a number greater than 0. Runs at the same
            time count once, and the time between runs does not count.
        max_steps: How many steps may start: an int of at least 1. Another attempt is not another step.
        estimate: Returns the most that an attempt at the step of a spec will use: a `Usage`, or a number if tokens are
            limited but not money, or money but not tokens.

    Raises:
        OptionError: An argument is not usable, or there is no limit at all.
        UnknownOption: A limit is given by position: a bare number would not say what it limits.
    """

    max_tokens: int | None = field(default=None, validator=_a_count)
    max_cost_usd: float | None = field(default=None, validator=_an_amount)
    max_seconds: float | None = field(default=None, validator=_an_amount)
    max_steps: int | None = field(default=None, validator=_a_count)
    estimate: Callable[[AgentStepSpec], Usage | float] | None = field(default=None)
    account: Account = field(init=False, repr=False)  # for the limiter

    def __init__(
        self,
        *unnamed: NoReturn,
        max_tokens: int | None = None,
        max_cost_usd: float | None = None,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        estimate: Callable[[AgentStepSpec], Usage | float] | None = None,
    ) -> None:
        if unnamed:
            raise UnknownOption(
                f"Budget takes its limits by name, got {describe(unnamed[0])}; write Budget(max_cost_usd=5), "
                "or max_tokens, max_seconds or max_steps"
            )
        self.__attrs_init__(
            max_tokens=max_tokens,
            max_cost_usd=max_cost_usd,
            max_seconds=max_seconds,
            max_steps=max_steps,
            estimate=estimate,
        )

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
        """What has been used so far. While a run is under way, `seconds` is as of the last time that the run looked."""
        return self.account.used()

    def summary_line(self, now: float | None = None) -> str:
        """Return how much of each limit is used, such as `"budget: 1200 of 1000 tokens, $0.52 of $1"`.

        Args:
            now: The moment up to which time counts, in seconds of `time.monotonic()`; by default the last moment at
                which a run looked.
        """
        return self.account.summary_line(now)

    def estimate_for(self, spec: AgentStepSpec) -> Amount | None:
        """Return what `estimate` returns for a spec; `None` if there is no `estimate`.

        Raises:
            OptionError: `estimate` returned something that is not usable.
            Exception: Whatever `estimate` raises.
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
        number = not_negative_amount("what estimate of Budget returns, unless it is a Usage,", estimate)
        return Amount(math.ceil(number), 0) if self.max_cost_usd is None else Amount(0, _to_parts(number))

    def __deepcopy__(self, memo: object) -> Budget:
        return self  # the copies of an executor share it, as threads may

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Budget lives in one process: give it to the runner as budget, not to the executor")


@define(eq=False)
class Amount:
    """Tokens and money in whole numbers, so that adding an amount and subtracting it again leaves exactly nothing.

    Attributes:
        tokens: How many tokens.
        cost: How much money, in trillionths of a US dollar.
    """

    tokens: int = 0
    cost: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Amount:
        """Return the amount of a usage."""
        return cls(usage.tokens, _to_parts(usage.cost_usd))

    def add(self, other: Amount) -> None:
        """Add `other` to this."""
        self.tokens += other.tokens
        self.cost += other.cost

    def subtract(self, other: Amount) -> None:
        """Subtract `other` from this."""
        self.tokens -= other.tokens
        self.cost -= other.cost

    def excess_over(self, other: Amount) -> Amount:
        """Return by how much this is more than `other`; 0 where it is less."""
        return Amount(max(0, self.tokens - other.tokens), max(0, self.cost - other.cost))


@define(eq=False)
class _Agent:
    """What is known of an agent.

    Attributes:
        largest: The most that one of its attempts has used; `None` until one has ended.
        in_flight: Its attempts for which something may be set aside.
    """

    largest: Amount | None = None
    in_flight: set[Reservation] = field(factory=set)


@define(eq=False)
class Reservation:
    """What a budget knows of one attempt, and has set aside for it.

    Attributes:
        agent: The agent of the spec.
        estimate: What `estimate` returned; `None` if the most that its agent has used is set aside.
        is_first: Whether it is the first attempt at its step.
        spent: What it has reported so far.
        reserved: What is set aside for what it will use in addition.
        is_released: Whether nothing is set aside for it any more.
    """

    agent: str
    estimate: Amount | None
    is_first: bool
    spent: Amount = field(factory=Amount)
    reserved: Amount = field(factory=Amount)
    is_released: bool = False


class Account:
    """The state of a `Budget`. Only `used` and `summary_line` take the lock; the callers of the others hold it.

    Attributes:
        reports: Whether steps have reported tokens and money.
    """

    def __init__(self, budget: Budget) -> None:
        self._max_tokens = budget.max_tokens
        self._max_cost = None if budget.max_cost_usd is None else _to_parts(budget.max_cost_usd)
        self._max_seconds = math.inf if budget.max_seconds is None else float(budget.max_seconds)
        self._max_steps = math.inf if budget.max_steps is None else budget.max_steps
        limits: dict[Resource, float | None] = {
            "tokens": budget.max_tokens,
            "cost_usd": budget.max_cost_usd,
            "seconds": budget.max_seconds,
            "steps": budget.max_steps,
        }
        self._limits: dict[Resource, float] = {name: limit for name, limit in limits.items() if limit is not None}
        in_python: dict[Counted, str] = {}
        if budget.max_tokens is not None:
            in_python["tokens"] = f"Budget(max_tokens={budget.max_tokens})"
        if budget.max_cost_usd is not None:
            in_python["cost"] = f"Budget(max_cost_usd={budget.max_cost_usd})"
        self.reports = UsageReports(in_python)
        self._reserves = budget.max_tokens is not None or budget.max_cost_usd is not None
        self._used = Amount()
        self._reserved = Amount()
        self._steps = 0
        self._runs = 0
        self._earlier_runs_s = 0.0
        self._since = self._latest = -math.inf
        self._agents: dict[str, _Agent] = {}
        self._in_flight = 0
        self._alone: Reservation | None = None
        self._exhausted: Resource | None = None
        self._are_steps_exhausted = False

    # For people -------------------------------------------------------------------------------------------------------

    def used(self) -> BudgetUsed:
        """Return what has been used."""
        with LOCK:
            cost_usd = self._used.cost / _PARTS_OF_A_DOLLAR
            return BudgetUsed(self._used.tokens, cost_usd, self._seconds(self._latest), self._steps)

    def summary_line(self, now: float | None) -> str:
        """Return how much of each limit is used."""
        with LOCK:
            now = self._latest if now is None else now
            parts = [used_of(name, self._used_of(name, now), limit) for name, limit in self._limits.items()]
        return f"budget: {', '.join(parts)}"

    # Time -------------------------------------------------------------------------------------------------------------

    def begin_run(self, now: float) -> None:
        """Let time count from now on, if no other run is under way."""
        if not self._runs:
            self._since = now
        self._runs += 1

    def end_run(self, now: float) -> None:
        """Let time count no longer, if no other run is under way."""
        self._runs -= 1
        if not self._runs:
            self._earlier_runs_s += max(0.0, now - self._since)

    def seconds_left(self, now: float) -> float:
        """Return for how many seconds runs may still be under way; infinite if time is not limited."""
        return max(0.0, self._max_seconds - self._seconds(now))

    def is_out_of_time(self, now: float) -> bool:
        """Return whether there is no time left."""
        return self.seconds_left(now) <= _ROUNDING_S

    def _seconds(self, now: float) -> float:
        self._latest = max(self._latest, now)
        return self._earlier_runs_s + (max(0.0, self._latest - self._since) if self._runs else 0.0)

    # Steps ------------------------------------------------------------------------------------------------------------

    def exhausted(self, attempt: int, now: float) -> Exhausted | None:
        """Return what is used up, so that this attempt cannot start, however little it would use; else `None`."""
        is_first = attempt == 1
        if self._are_steps_exhausted and is_first:
            return self.exhausted_of("steps", now)
        if self._exhausted is None and self._max_seconds < math.inf and self.is_out_of_time(now):
            self._exhausted = "seconds"
        if self._exhausted is None:
            self._exhausted = self._used_up()
        if self._exhausted is not None:
            return self.exhausted_of(self._exhausted, now)
        if is_first and self._steps >= self._max_steps:
            self._are_steps_exhausted = True
            return self.exhausted_of("steps", now)
        return None

    def _used_up(self) -> Resource | None:
        if self._max_tokens is not None and self._used.tokens >= self._max_tokens:
            return "tokens"
        if self._max_cost is not None and self._used.cost >= self._max_cost:
            return "cost_usd"
        return None

    def exhausted_of(self, resource: Resource, now: float) -> Exhausted:
        """Return the answer that this is used up."""
        return Exhausted(resource, self._limits[resource], self._used_of(resource, now))

    def answer(self, agent: str, estimate: Amount | None, now: float) -> Wait | Exhausted | None:
        """Return why an attempt cannot start, given what it will use; `None` if it can."""
        if not self._reserves:
            return None
        if self._alone is not None:
            return Wait(ASK_AGAIN_S, "all")
        lacking = self._too_little(estimate or self._largest(agent))
        if lacking is None:
            return None
        if self._in_flight:
            return Wait(ASK_AGAIN_S, "all")
        self._exhausted = lacking
        return self.exhausted_of(lacking, now)

    def start(self, agent: str, estimate: Amount | None, attempt: int) -> Reservation:
        """Start an attempt that `answer` lets start."""
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
        """Count what an attempt has used; also after it has ended."""
        self._used.add(amount)
        reservation.spent.add(amount)
        if not reservation.is_released:
            self._reserve(reservation)
        if self._reserves and self._largest(reservation.agent) is not None:
            self._learn(reservation)

    def release(self, reservation: Reservation) -> None:
        """Set nothing aside for this attempt any more, and let no other one wait for it."""
        if reservation.is_released:
            return
        reservation.is_released = True
        self._in_flight -= 1
        if self._alone is reservation:
            self._alone = None
        if self._reserves:
            self._reserved.subtract(reservation.reserved)
            reservation.reserved = Amount()
            self._agents[reservation.agent].in_flight.remove(reservation)

    def end(self, reservation: Reservation, was_refused: bool) -> None:
        """End an attempt; if it raised `RetryAfter` and used nothing, that says nothing about its agent."""
        self.release(reservation)
        says_how_much = not was_refused or reservation.spent.tokens or reservation.spent.cost
        if self._reserves and says_how_much:
            self._learn(reservation)

    def cancel(self, reservation: Reservation) -> None:
        """Undo `start`: the attempt never began."""
        self.release(reservation)
        self._steps -= reservation.is_first

    def _too_little(self, estimate: Amount | None) -> Resource | None:
        """Return of what too little is left for an attempt; an unknown agent needs at least something."""
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
        """Set aside what the attempt will use in addition to what it has used."""
        estimate = reservation.estimate or self._largest(reservation.agent)
        if estimate is not None:
            self._reserved.subtract(reservation.reserved)
            reservation.reserved = estimate.excess_over(reservation.spent)
            self._reserved.add(reservation.reserved)

    def _learn(self, reservation: Reservation) -> None:
        """Remember the most that an attempt used, and set aside as much for the others of its agent."""
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


def _to_parts(usd: float) -> int:
    """Return money in whole parts of a dollar, computed in two steps: the largest float times this is infinite."""
    whole = int(usd)
    return whole * _PARTS_OF_A_DOLLAR + round((usd - whole) * _PARTS_OF_A_DOLLAR)
