"""Budgets: what is set aside, when a budget is used up, and how that is reported."""

from __future__ import annotations

import math
import pickle
import random
import threading
from collections import Counter
from time import monotonic
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync import AgentStepSpec, OptionError
from fanout_sync.limits.answers import ASK_AGAIN_S, Exhausted, Wait
from fanout_sync.limits.budget import MOST_REMEMBERED, Budget, BudgetUsed
from fanout_sync.limits.limiter import Limiter, Permit
from fanout_sync.limits.rate_limit import RateLimit
from fanout_sync.records.usage import Usage


def spec_of(agent: str = "a", number: int = 0) -> AgentStepSpec:
    return AgentStepSpec(f"t{number}", agent, "", "")


def ask(limiter: Limiter, agent: str = "a", now: float = 0.0, attempt: int = 1) -> Permit | Wait | Exhausted:
    return limiter.admit(limiter.request(spec_of(agent)), attempt, now)


def start(limiter: Limiter, agent: str = "a", now: float = 0.0, attempt: int = 1) -> Permit:
    answer = ask(limiter, agent, now, attempt)
    assert isinstance(answer, Permit), answer
    return answer


def has_to_wait(limiter: Limiter, agent: str = "a") -> bool:
    return ask(limiter, agent) == Wait(ASK_AGAIN_S, "all")


def run_step(limiter: Limiter, usage: Usage, agent: str = "a") -> None:
    permit = start(limiter, agent)
    limiter.spend(permit, usage)
    limiter.settle(permit, 0.0)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Budget needs max_tokens, max_cost_usd, max_seconds or max_steps"),
        ({"max_tokens": 0}, "max_tokens of Budget must be an int of at least 1, got int 0"),
        ({"max_tokens": 1.0}, "max_tokens of Budget must be an int of at least 1, got float 1.0"),
        ({"max_cost_usd": -1}, "max_cost_usd of Budget must be a number greater than 0, got int -1"),
        ({"max_seconds": math.nan}, "max_seconds of Budget must be a number greater than 0, got float nan"),
        ({"max_steps": True}, "max_steps of Budget must be an int of at least 1, got bool True"),
        ({"max_tokens": 1, "estimate": 5}, "estimate of Budget must be a function of the spec, got int 5"),
        ({"max_steps": 1, "estimate": len}, "estimate of Budget needs max_tokens or max_cost_usd"),
    ],
)
def test_unusable_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """An argument that makes no sense is refused when the budget is made, and the message names it."""
    with pytest.raises(OptionError) as caught:
        Budget(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("unnamed", [(5,), (5.0, 1), (None,), ("5",)])
def test_limits_are_given_by_name(unnamed: tuple[Any, ...]) -> None:
    """A bare number would not say what it limits: it is refused, and the error says what to write."""
    with pytest.raises(TypeError, match=r"takes its limits by name, got .*; write Budget\(max_cost_usd=5\)"):
        Budget(*unnamed)


def test_a_budget_cannot_be_pickled() -> None:
    """A budget cannot be sent to a worker process; the error says where to give it instead."""
    with pytest.raises(TypeError, match="a Budget lives in one process"):
        pickle.dumps(Budget(max_steps=1))


@pytest.mark.parametrize(
    ("limits", "estimate", "message"),
    [
        ({"max_tokens": 1, "max_cost_usd": 1}, 5, "must return a Usage, as both max_tokens and max_cost_usd are given"),
        (
            {"max_tokens": 1},
            "5",
            "what estimate of Budget returns, unless it is a Usage, must be a number of at least 0",
        ),
        ({"max_tokens": 1}, -1, "must be a number of at least 0, got int -1"),
        ({"max_cost_usd": 1}, math.nan, "must be a number of at least 0, got float nan"),
        ({"max_cost_usd": 1}, None, "must be a number of at least 0, got None"),
    ],
)
def test_an_estimate_has_to_be_a_usage_or_a_number(limits: dict[str, Any], estimate: Any, message: str) -> None:
    """Anything else that the caller's function returns is refused."""
    limiter = Limiter([], Budget(**limits, estimate=lambda spec: estimate))
    with pytest.raises(OptionError) as caught:
        limiter.request(spec_of())
    assert message in str(caught.value)


def test_a_number_estimates_what_is_limited() -> None:
    """A number is an estimate of tokens if those are limited, and of dollars if money is."""
    tokens = Limiter([], Budget(max_tokens=10, max_steps=9, estimate=lambda spec: 4.5))
    money = Limiter([], Budget(max_cost_usd=1, estimate=lambda spec: 0.4))
    both = Limiter([], Budget(max_tokens=10, max_cost_usd=1, estimate=lambda spec: Usage(1, 1, 0.4)))
    for limiter in (tokens, money, both):
        start(limiter), start(limiter)
        assert has_to_wait(limiter)


# Steps and time -------------------------------------------------------------------------------------------------------


def test_max_steps_counts_steps_and_not_attempts() -> None:
    """Another attempt at a step does not count, nor does a step that never began."""
    limiter = Limiter([], Budget(max_steps=2))
    limiter.release(start(limiter), 0.0)
    limiter.settle(start(limiter), 0.0)
    start(limiter)
    answer = ask(limiter)
    assert answer == Exhausted("steps", 2, 2)
    assert str(answer) == "2 of 2 steps used"
    start(limiter, attempt=2)
    assert ask(limiter) == answer


def test_time_counts_while_a_run_is_under_way() -> None:
    """Runs at the same time count once, and the time between runs does not count."""
    budget = Budget(max_seconds=10)
    one, two = Limiter([], budget), Limiter([], budget)
    assert one.seconds_left(0.0) == 10.0
    one.begin_run(0.0)
    two.begin_run(1.0)
    one.end_run(3.0)
    assert two.seconds_left(4.0) == 6.0
    two.end_run(4.0)
    assert budget.used.seconds == 4.0
    two.begin_run(100.0)
    start(two, now=105.9)
    assert two.exhausted(105.9) is None
    assert two.exhausted(106.0) == Exhausted("seconds", 10.0, 10.0)
    assert ask(two, now=106.0, attempt=2) == Exhausted("seconds", 10.0, 10.0)
    two.end_run(107.0)
    assert one.seconds_left(500.0) == 0.0
    assert isinstance(ask(one, now=500.0), Exhausted)


@settings(deadline=None)
@given(st.floats(0, 1e7), st.floats(1e-6, 1e6))
def test_time_is_used_up_after_the_seconds_that_are_left(began: float, seconds: float) -> None:
    """After `seconds_left` the budget is used up, whatever rounding does."""
    limiter = Limiter([], Budget(max_seconds=seconds))
    limiter.begin_run(began)
    assert limiter.exhausted(began + limiter.seconds_left(began)) is not None


def test_time_that_is_not_limited_is_infinite() -> None:
    """Without a budget, or without a limit on time, time is never used up."""
    for budget in (None, Budget(max_steps=1)):
        limiter = Limiter([], budget)
        limiter.begin_run(0.0)
        assert limiter.seconds_left(1e9) == math.inf
        assert limiter.exhausted(1e9) is None
        limiter.end_run(1e9)


# Tokens and money -----------------------------------------------------------------------------------------------------


def test_the_first_attempt_of_an_agent_runs_alone() -> None:
    """Until the first attempt of an agent has ended, no other one starts; one that was released counts for nothing."""
    limiter = Limiter([], Budget(max_tokens=1000))
    limiter.release(start(limiter), 0.0)
    first = start(limiter)
    assert has_to_wait(limiter)
    assert has_to_wait(limiter, "b")
    limiter.spend(first, Usage(100))
    assert has_to_wait(limiter)
    limiter.settle(first, 0.0)
    for _ in range(9):
        start(limiter)
    assert has_to_wait(limiter)
    assert has_to_wait(limiter, "b")


def test_an_attempt_that_raised_retry_after_says_nothing_about_its_agent() -> None:
    """After `RetryAfter` without any usage, the next attempt of the agent runs alone again."""
    limiter = Limiter([], Budget(max_tokens=1000))
    limiter.settle(start(limiter), 0.0, retry_after=1.0)
    start(limiter)
    assert has_to_wait(limiter)


def test_with_an_estimate_no_attempt_has_to_run_alone() -> None:
    """The estimate is set aside for each attempt, however much others of its agent have used."""
    limiter = Limiter([], Budget(max_cost_usd=1, estimate=lambda spec: 0.1))
    permits = [start(limiter) for _ in range(10)]
    assert has_to_wait(limiter)
    limiter.settle(permits.pop(), 0.0)
    start(limiter)
    limiter.spend(permits[0], Usage(cost_usd=0.2))
    limiter.settle(permits[0], 0.0)
    assert has_to_wait(limiter)


def test_ten_times_ten_cents_are_a_dollar() -> None:
    """Adding up fractions of a dollar loses nothing to rounding."""
    budget = Budget(max_cost_usd=1)
    limiter = Limiter([], budget)
    for _ in range(10):
        run_step(limiter, Usage(cost_usd=0.1))
    assert budget.used.cost_usd == 1.0
    assert ask(limiter) == Exhausted("cost_usd", 1, 1.0)


def test_a_budget_that_is_used_up_stays_used_up() -> None:
    """When too little is left for a step, and no attempt is in flight, every step is refused from then on."""
    limiter = Limiter([], Budget(max_tokens=1000))
    run_step(limiter, Usage(1), "small")
    run_step(limiter, Usage(500, 50), "large")
    other = start(limiter, "small")
    assert has_to_wait(limiter, "large")
    limiter.settle(other, 0.0)
    refused = ask(limiter, "large")
    assert refused == Exhausted("tokens", 1000, 551)
    assert str(refused) == "551 of 1000 tokens used, which leaves too little for another step"
    for agent in ("small", "large", "unknown"):
        assert ask(limiter, agent) == refused
        assert ask(limiter, agent, attempt=2) == refused


def test_no_step_starts_when_everything_is_used() -> None:
    """When everything is used, neither an unknown agent starts nor one that is known to use nothing."""
    limiter = Limiter([], Budget(max_tokens=10))
    run_step(limiter, Usage(), "free")
    assert limiter.exhausted(0.0) is None
    run_step(limiter, Usage(10))
    assert ask(limiter, "free") == ask(limiter, "unknown") == Exhausted("tokens", 10, 10)
    assert limiter.exhausted(0.0) == Exhausted("tokens", 10, 10)


def test_usage_counts_as_soon_as_it_is_reported() -> None:
    """What a step reports while it runs counts as used, and is no longer set aside."""
    budget = Budget(max_tokens=1200)
    limiter = Limiter([], budget)
    run_step(limiter, Usage(300))
    first, _second = start(limiter), start(limiter)
    limiter.spend(first, Usage(200))
    assert budget.used.tokens == 500
    start(limiter)  # 500 used, 100 and 300 set aside, 300 needed
    assert has_to_wait(limiter)
    limiter.settle(first, 0.0)
    assert has_to_wait(limiter)  # 500 used, 300 and 300 set aside
    limiter.spend(first, Usage(50))
    assert budget.used.tokens == 550


def test_more_is_set_aside_when_a_step_uses_more_than_any_before() -> None:
    """When a step in flight uses more than any before, more is set aside for the other steps of its agent."""
    limiter = Limiter([], Budget(max_tokens=1000))
    run_step(limiter, Usage(100))
    first, second = start(limiter), start(limiter)
    limiter.spend(first, Usage(400))
    assert has_to_wait(limiter)  # 500 used, 400 set aside, 400 needed
    limiter.settle(second, 0.0)
    start(limiter)


def test_a_run_within_a_step_does_not_wait_for_it() -> None:
    """For a step that yields its reservation nothing is set aside, and no step waits for it; its usage still counts."""
    budget = Budget(max_tokens=1000)
    limiter, inner_run = Limiter([], budget), Limiter([], budget)
    outer = start(limiter, "outer")
    limiter.yield_reservation(outer)
    limiter.yield_reservation(outer)
    run_step(inner_run, Usage(900), "inner")
    assert ask(inner_run, "inner") == Exhausted("tokens", 1000, 900)
    limiter.spend(outer, Usage(50))
    limiter.settle(outer, 0.0)
    assert budget.used.tokens == 950


def test_idle_agents_are_forgotten() -> None:
    """However many agents there are, only a fixed number of them is remembered."""
    budget = Budget(max_tokens=10)
    limiter = Limiter([], budget)
    for number in range(MOST_REMEMBERED + 100):
        run_step(limiter, Usage(), f"agent {number}")
    start(limiter, "agent 0")
    assert has_to_wait(limiter), "it was forgotten, and runs alone"


def test_a_limit_makes_one_key_wait_and_a_budget_every_step() -> None:
    """The answer says which steps have to wait; a step that a limit refuses does not count under the budget."""
    budget = Budget(max_tokens=1000, max_steps=2)
    limiter = Limiter([RateLimit(1, key=lambda spec: spec.agent)], budget)
    first = start(limiter)
    answer = ask(limiter)
    assert isinstance(answer, Wait)
    assert answer.scope == "key"
    assert has_to_wait(limiter, "b")
    limiter.settle(first, 0.0)
    start(limiter, "b")
    assert budget.used.steps == 2


# For people -----------------------------------------------------------------------------------------------------------


def test_the_summary_line_says_how_much_of_each_limit_is_used() -> None:
    """The line names what is limited and nothing else."""
    everything = Budget(max_tokens=1000, max_cost_usd=1, max_seconds=60, max_steps=100)
    limiter = Limiter([], everything)
    limiter.begin_run(0.0)
    run_step(limiter, Usage(1000, 200, 0.52))
    assert everything.summary_line(12.34) == "budget: 1200 of 1000 tokens, $0.52 of $1, 12.3 of 60 s, 1 of 100 steps"
    assert everything.summary_line() == everything.summary_line(12.34)
    assert everything.used == BudgetUsed(1200, 0.52, 12.34, 1)
    assert Budget(max_steps=5).summary_line() == "budget: 0 of 5 steps"


@pytest.mark.parametrize(
    ("spent", "limit", "line"),
    [
        (0.0, 0.5, "$0 of $0.50"),
        (0.00123456, 0.1, "$0.001235 of $0.10"),
        (1.005, 12345.678, "$1.00 of $12345.68"),
        (0.00001, 2.5, "$0.00001 of $2.50"),
        (1e300, 1e300, f"${1e300:.0f} of ${1e300:.0f}"),
    ],
)
def test_money_has_as_many_digits_as_it_needs(spent: float, limit: float, line: str) -> None:
    """Amounts from a dollar on are shown with cents, smaller ones with enough digits to tell them apart."""
    budget = Budget(max_cost_usd=limit)
    run_step(Limiter([], budget), Usage(cost_usd=spent))
    assert budget.summary_line() == f"budget: {line}"


# Any interleaving -----------------------------------------------------------------------------------------------------


@define
class Flight:
    """A step that runs, and what it still has to report."""

    limiter: Limiter
    permit: Permit
    agent: str
    todo: Usage
    has_yielded: bool = False


@define
class Simulation:
    """Runs that share a budget, and steps that report usage and end at random."""

    budget: Budget
    chance: random.Random
    limiters: list[Limiter]
    waiting: list[str]
    uses: dict[str, list[Usage]]
    in_flight: list[Flight] = field(factory=list)
    started: int = 0
    worst: float = 0.0
    most: int = 0
    reported: int = 0
    may_yield: bool = False

    def run(self) -> Exhausted | None:
        idle = 0
        while self.waiting or self.in_flight:
            if self.in_flight and self.chance.random() < 0.5:
                self._go_on()
                idle = 0
            elif self.waiting:
                answer = self._ask()
                if isinstance(answer, Exhausted):
                    while self.in_flight:
                        self._go_on()
                    assert self._ask() == with_what_is_used_now(answer, self.budget)
                    return answer
                idle += isinstance(answer, Wait) and not self._somebody_is_in_flight()
                assert idle == 0, "a step only has to wait while another one is in flight"
            assert self.budget.used.tokens == self.reported, "what was reported is used, and nothing else"
        return None

    def _somebody_is_in_flight(self) -> bool:
        return any(not flight.has_yielded for flight in self.in_flight)

    def _ask(self) -> Permit | Wait | Exhausted:
        limiter, agent = self.chance.choice(self.limiters), self.waiting[-1]
        answer = ask(limiter, agent, attempt=self.chance.choice([1, 1, 2]))
        if isinstance(answer, Permit):
            self.waiting.pop()
            self.started += 1
            self.in_flight.append(Flight(limiter, answer, agent, self.chance.choice(self.uses[agent])))
            self._expect()
        return answer

    def _expect(self) -> None:
        """Note how much may be used at most: the limit, and what steps in flight will use beyond their reservation."""
        errors = 0
        for flight in self.in_flight:
            reservation = flight.permit.reservation
            assert reservation is not None
            errors += max(0, flight.todo.tokens - reservation.reserved.tokens)
        assert self.budget.max_tokens is not None
        self.most = max(self.most, self.budget.max_tokens + errors)

    def _go_on(self) -> None:
        flight = self.chance.choice(self.in_flight)
        if self.may_yield and self.chance.random() < 0.2:
            flight.limiter.yield_reservation(flight.permit)
            flight.has_yielded = True
            self._expect()
        part = self.chance.randint(0, flight.todo.tokens)
        if self.chance.random() < 0.5:
            self._report(flight, part)
            return
        if self.chance.random() < 0.8:
            self._report(flight, flight.todo.tokens)
        self.in_flight.remove(flight)
        flight.limiter.settle(flight.permit, 0.0)
        self._report(flight, flight.todo.tokens)  # an abandoned thread goes on

    def _report(self, flight: Flight, tokens: int) -> None:
        if not tokens:
            return
        flight.limiter.spend(flight.permit, Usage(tokens))
        flight.todo = Usage(flight.todo.tokens - tokens)
        self.reported += tokens
        assert self.reported <= self.most


def with_what_is_used_now(answer: Exhausted, budget: Budget) -> Exhausted:
    return Exhausted(answer.resource, answer.limit, budget.used.tokens)


agents_uses = st.fixed_dictionaries({name: st.lists(st.integers(0, 300), min_size=1, max_size=4) for name in "abc"})


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2000), agents_uses, st.integers(1, 3), st.integers(0, 60), st.integers(0, 2**32), st.booleans())
def test_a_budget_is_exceeded_only_by_what_steps_use_beyond_their_reservations(
    limit: int, uses: dict[str, list[int]], runs: int, count: int, seed: int, may_yield: bool
) -> None:
    """In any interleaving, either all steps start, or the budget is used up, and no step waits for ever."""
    simulation, exhausted = simulated(Budget(max_tokens=limit), uses, runs, count, seed, may_yield)
    assert (exhausted is None) == (simulation.started == count)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2000), agents_uses, st.integers(1, 3), st.integers(0, 60), st.integers(0, 2**32))
def test_a_budget_is_never_exceeded_if_the_estimates_are_high_enough(
    limit: int, uses: dict[str, list[int]], runs: int, count: int, seed: int
) -> None:
    """If all steps stay within their estimates, no more is used than the limit."""
    budget = Budget(max_tokens=limit, estimate=lambda spec: max(uses[spec.agent]))
    simulated(budget, uses, runs, count, seed)
    assert budget.used.tokens <= limit


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 2000),
    st.fixed_dictionaries({name: st.integers(0, 300) for name in "abc"}),
    st.integers(0, 60),
    st.integers(0, 2**32),
)
def test_a_budget_is_exceeded_by_less_than_one_step_if_agents_always_use_the_same(
    limit: int, use: dict[str, int], count: int, seed: int
) -> None:
    """If each agent always uses the same, only the first step of an agent can use more than is left."""
    simulation, _ = simulated(
        Budget(max_tokens=limit), {agent: [tokens] for agent, tokens in use.items()}, 2, count, seed
    )
    assert simulation.budget.used.tokens < limit + max(1, *use.values())


def simulated(
    budget: Budget, uses: dict[str, list[int]], runs: int, count: int, seed: int, may_yield: bool = False
) -> tuple[Simulation, Exhausted | None]:
    chance = random.Random(seed)
    simulation = Simulation(
        budget,
        chance,
        [Limiter([], budget) for _ in range(runs)],
        [chance.choice("abc") for _ in range(count)],
        {agent: [Usage(tokens) for tokens in numbers] for agent, numbers in uses.items()},
        may_yield=may_yield,
    )
    return simulation, simulation.run()


def test_runs_in_eight_threads_share_a_limit_and_a_budget() -> None:
    """With eight runs in eight threads everything is counted exactly once, and no run waits for ever."""
    limit = RateLimit(10_000_000, 10**9, key=lambda spec: spec.agent[:1])
    budget = Budget(max_tokens=10**9, max_cost_usd=10**6, max_seconds=3600, max_steps=10**6)
    done: Counter[str] = Counter()
    waits = threading.Event()
    errors: list[BaseException] = []

    def run(number: int) -> None:
        limiter = Limiter([limit], budget)
        limiter.begin_run(monotonic())
        try:
            while done[f"run {number}"] < 200:
                permit = limiter.admit(limiter.request(spec_of(f"{number % 3} of {number}")), 1, monotonic())
                assert not isinstance(permit, Exhausted)
                if isinstance(permit, Wait):
                    waits.wait(min(permit.seconds, 0.0005))
                    continue
                limiter.spend(permit, Usage(3, 4, 0.1))
                limiter.yield_reservation(permit)
                limiter.settle(permit, monotonic())
                limiter.spend(permit, Usage(1))
                done[f"run {number}"] += 1
        except BaseException as error:
            errors.append(error)
        finally:
            limiter.end_run(monotonic())

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert done.total() == 1600
    used = budget.used
    assert (used.tokens, used.cost_usd, used.steps) == (1600 * 8, 160.0, 1600)
    assert all(limit.keys.get(name).cooldown.in_flight == limit.keys.get(name).reserved == 0 for name in "012")
