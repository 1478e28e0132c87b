"""Rate limits: when a step may start, by a clock that only the test moves."""

from __future__ import annotations

import math
import pickle
import random
from collections import deque
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync import AgentStepSpec, OptionError
from fanout_sync.limits.answers import ASK_AGAIN_S, Wait
from fanout_sync.limits.limiter import Limiter, Permit
from fanout_sync.limits.rate_limit import ARRIVAL_S, MOST_REMEMBERED, RateLimit
from fanout_sync.limits.windows import MARGIN_S, request_rates
from fanout_sync.records.usage import Usage


class NoJitter(random.Random):
    """Makes each cooldown exactly as long as the server asked for."""

    def random(self) -> float:
        return 0.0


def spec_of(agent: str = "a", key: str = "") -> AgentStepSpec:
    return AgentStepSpec("t", agent, key, "")


def by_description(spec: AgentStepSpec) -> str:
    return spec.description


def limiter_of(limit: RateLimit) -> Limiter:
    limit.keys.random = NoJitter()
    return Limiter([limit])


def ask(limiter: Limiter, now: float, agent: str = "a", key: str = "") -> Permit | Wait:
    answer = limiter.admit(limiter.request(spec_of(agent, key)), 1, now)
    assert isinstance(answer, (Permit, Wait))
    return answer


def start(limiter: Limiter, now: float, agent: str = "a", key: str = "") -> Permit:
    answer = ask(limiter, now, agent, key)
    assert isinstance(answer, Permit), answer
    return answer


def wait(limiter: Limiter, now: float, agent: str = "a", key: str = "") -> float:
    answer = ask(limiter, now, agent, key)
    assert isinstance(answer, Wait), answer
    return answer.seconds


def run_step(limiter: Limiter, now: float, tokens: int, agent: str = "a", key: str = "") -> None:
    permit = start(limiter, now, agent, key)
    limiter.spend(permit, Usage(tokens))
    limiter.settle(permit, now)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "RateLimit needs requests_per_minute or tokens_per_minute"),
        ({"requests_per_minute": 0}, "requests_per_minute of RateLimit must be a number greater than 0, got int 0"),
        ({"requests_per_minute": math.inf}, "requests_per_minute of RateLimit must be a number greater than 0"),
        ({"requests_per_minute": "60"}, "requests_per_minute of RateLimit must be a number greater than 0, got str"),
        ({"tokens_per_minute": 1.5}, "tokens_per_minute of RateLimit must be an int of at least 1, got float 1.5"),
        ({"tokens_per_minute": True}, "tokens_per_minute of RateLimit must be an int of at least 1, got bool True"),
        (
            {"requests_per_minute": 1, "key": "model"},
            "key of RateLimit must be a function of the spec, got str 'model'",
        ),
        (
            {"requests_per_minute": 1, "on_refusal": "wait"},
            "on_refusal of RateLimit must be 'wait_all' or 'wait_step', got str 'wait'",
        ),
    ],
)
def test_unusable_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """An argument that makes no sense is refused when the limit is made, and the message names it."""
    with pytest.raises(OptionError) as caught:
        RateLimit(**options)
    assert message in str(caught.value)


def test_a_limit_cannot_be_pickled() -> None:
    """A limit cannot be sent to a worker process; the error says where to give it instead."""
    with pytest.raises(TypeError, match="a RateLimit lives in one process"):
        pickle.dumps(RateLimit(60))


def test_a_key_has_to_be_a_string() -> None:
    """A key that is no string is refused, and what the key function raises is passed on."""
    with pytest.raises(OptionError, match="key of RateLimit must return a str, got None"):
        Limiter([RateLimit(60, key=lambda spec: None)]).request(spec_of())  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        Limiter([RateLimit(60, key=lambda spec: str(1 / 0))]).request(spec_of())


def test_the_key_function_is_called_once_for_a_step() -> None:
    """However often the limiter is asked for a step, the caller's key function is called once."""
    asked = []

    def key(spec: AgentStepSpec) -> str:
        asked.append(spec)
        return "k"

    limiter = limiter_of(RateLimit(1, key=key))
    request = limiter.request(spec_of())
    assert request.keys == ("k",)
    for now in range(100):
        limiter.admit(request, 1, now)
    assert len(asked) == 1


# Requests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_minute", "rates"),
    [
        (1, [(1, 60_020)]),
        (10, [(10, 60_020)]),
        (15, [(10, 40_020), (15, 60_030)]),
        (60, [(10, 10_020)]),
        (600, [(10, 1_020)]),
        (6_000, [(100, 1_020)]),
        (0.5, [(1, 120_020)]),
        (2.5, [(3, 72_020)]),
        (1e-300, [(1, 10**15)]),
        (1e-320, [(1, 10**15)]),
    ],
)
def test_rates_of_a_minute_and_of_its_share(per_minute: float, rates: list[tuple[int, int]]) -> None:
    """The burst is ten requests or those of a second; the longer window is left out if it adds nothing."""
    assert request_rates(per_minute) == rates


@pytest.mark.parametrize("per_minute", [*range(1, 200), 997, 1_201, 7_919, 1e6, 0.7, 1.04, 69.4, 1e9 + 0.5])
def test_every_rate_can_be_kept(per_minute: float) -> None:
    """Whatever the number, a step can start under it."""
    start(limiter_of(RateLimit(per_minute)), 0.0)


def test_steps_start_at_once_until_the_burst_is_used_up() -> None:
    """Ten steps start together, and the next one exactly after the wait that it was told."""
    limiter = limiter_of(RateLimit(60))
    for _ in range(10):
        limiter.settle(start(limiter, 100.0), 100.0)
    wait_s = wait(limiter, 100.0)
    assert wait_s == pytest.approx(10.02, abs=0.01)
    assert wait(limiter, 100.0 + wait_s - 0.01) <= 0.012
    start(limiter, 100.0 + wait_s)


def test_a_request_counts_from_when_it_reached_the_provider() -> None:
    """A request enters the window when its step ends, or 0.2 s after it started, and not when it started."""
    limiter = limiter_of(RateLimit(1))
    permit = start(limiter, 0.0)
    limiter.settle(permit, 0.15)
    assert wait(limiter, 0.15) == pytest.approx(60.02, abs=0.01)
    limiter = limiter_of(RateLimit(1))
    start(limiter, 0.0)
    assert wait(limiter, 10.0) == pytest.approx(ARRIVAL_S + 50.02, abs=0.01), (
        "the step still runs, but its request has arrived"
    )


def test_among_short_steps_the_request_of_a_long_one_may_still_be_on_its_way() -> None:
    """If steps usually are short, the request of a long one enters the window only when it ends."""
    limiter = limiter_of(RateLimit(600))
    for _ in range(10):
        limiter.settle(start(limiter, 0.0), 0.01)
    late = [start(limiter, 2.0) for _ in range(10)]
    assert wait(limiter, 3.5) > 0
    for permit in late:
        limiter.settle(permit, 3.5)
    assert wait(limiter, 3.5) == pytest.approx(1.02, abs=0.01)
    for n in range(100):
        limiter.settle(start(limiter, 1000.0 + 10 * n), 1005.0 + 10 * n)
    for _ in range(10):
        start(limiter, 3000.0)
    assert wait(limiter, 3000.5) == pytest.approx(ARRIVAL_S + 1.02 - 0.5, abs=0.01), (
        "where steps are long, their requests have arrived"
    )


def test_a_step_that_never_began_counts_as_a_request() -> None:
    """A step that was released still counts as a request, because it is not known how far it came."""
    limiter = limiter_of(RateLimit(1))
    limiter.release(start(limiter, 0.0), 0.0)
    wait(limiter, 1.0)


def test_moments_may_come_out_of_order() -> None:
    """Threads that share a limit may call it in another order than that in which they read the clock."""
    limiter = limiter_of(RateLimit(2))
    limiter.settle(start(limiter, 100.0), 100.0)
    limiter.settle(start(limiter, 99.9), 99.9)
    assert 60.0 <= wait(limiter, 100.0) <= 60.2


def test_a_step_that_one_limit_refuses_does_not_count_under_another() -> None:
    """With several limits, a step counts under all of them or under none."""
    wide, narrow = RateLimit(2), RateLimit(1)
    both, one = Limiter([wide, narrow]), Limiter([wide])
    start(both, 0.0)
    for now in range(50):
        wait(both, float(now))
    start(one, 50.0)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_the_first_step_of_an_agent_runs_alone() -> None:
    """While the first step of an agent runs, no other step of its key starts, but steps of other keys do."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000, key=by_description))
    first = start(limiter, 0.0)
    assert wait(limiter, 0.0) == ASK_AGAIN_S
    assert wait(limiter, 0.0, "b") == ASK_AGAIN_S
    start(limiter, 0.0, key="other")
    limiter.spend(first, Usage(100))
    assert wait(limiter, 0.0) == ASK_AGAIN_S
    limiter.settle(first, 0.0)
    for _ in range(9):
        start(limiter, 0.0)
    assert wait(limiter, 0.0) == ASK_AGAIN_S


def test_a_first_step_that_never_began_leaves_its_agent_unknown() -> None:
    """After a first step was released, the next step of the agent runs alone."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    limiter.release(start(limiter, 0.0), 0.0)
    start(limiter, 0.0)
    assert wait(limiter, 0.0) == ASK_AGAIN_S


def test_steps_in_flight_reserve_the_most_tokens_that_a_step_of_their_agent_used() -> None:
    """When a step in flight uses more than any before, more is reserved for the other steps of its agent."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 100)
    permits = [start(limiter, 0.0) for _ in range(4)]
    limiter.spend(permits[0], Usage(180))
    start(limiter, 0.0)  # 100 + 4 * 180 + 180 == 1000
    assert wait(limiter, 0.0) == ASK_AGAIN_S


def test_tokens_count_for_a_minute() -> None:
    """Tokens count for a minute from the end of their step, and the wait that a step is told is exact."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 400)
    run_step(limiter, 10.0, 400)
    wait_s = wait(limiter, 20.0)
    assert wait_s == pytest.approx(40.02, abs=0.01)
    start(limiter, 20.0 + wait_s)


def test_a_step_larger_than_the_limit_starts_when_the_minute_is_empty() -> None:
    """What it used beyond the limit is a debt, which enters the next minute before another step starts."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 1500)
    wait_s = wait(limiter, 0.0)
    assert wait_s == pytest.approx(60.02, abs=0.01)
    again_s = wait(limiter, wait_s)  # the debt of 500 has entered it, so that the minute is not empty
    assert again_s == pytest.approx(60.02, abs=0.01)
    start(limiter, wait_s + again_s)


def test_no_step_starts_while_there_is_debt() -> None:
    """While there is debt, not even the steps of agents that use no tokens start."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 0, "free")
    run_step(limiter, 0.0, 1500)
    assert wait(limiter, 1.0, "free") == pytest.approx(59.02, abs=0.01)
    start(limiter, 61.0, "free")


def test_a_limit_of_a_million_tokens_is_exact() -> None:
    """A limit of a million tokens a minute is kept like a small one."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1_000_000))
    run_step(limiter, 0.0, 999_901)
    wait(limiter, 0.0)
    run_step(limiter_of(RateLimit(tokens_per_minute=15_000)), 0.0, 15_000)


def test_an_agent_that_reports_nothing_is_known_to_use_nothing() -> None:
    """After its first step its steps run together; but not if that step only raised `RetryAfter`."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    limiter.settle(start(limiter, 0.0), 0.0, retry_after=0)
    start_again = start(limiter, 0.0)
    assert wait(limiter, 0.0) == ASK_AGAIN_S
    limiter.settle(start_again, 0.0)
    start(limiter, 0.0)
    start(limiter, 0.0)


def test_tokens_that_are_reported_after_the_end_count() -> None:
    """The thread of a step that timed out may go on and use tokens; they count."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 100)
    permit = start(limiter, 0.0)
    limiter.settle(permit, 0.0)
    limiter.settle(permit, 0.0, retry_after=1000)
    limiter.release(permit, 0.0)
    limiter.spend(permit, Usage(900))
    assert wait(limiter, 1.0) == pytest.approx(60.02, abs=1.0)


def test_a_run_within_a_step_does_not_wait_for_it() -> None:
    """A step that yields its reservation reserves no tokens, does not run alone, and is no probe."""
    limiter = limiter_of(RateLimit(tokens_per_minute=1000))
    outer = start(limiter, 0.0, "outer")
    limiter.yield_reservation(outer)
    limiter.yield_reservation(outer)
    inner = start(limiter, 0.0, "inner")
    limiter.spend(inner, Usage(900))
    limiter.settle(inner, 0.0, retry_after=1.0)
    limiter.spend(outer, Usage(10))
    later = start(limiter, 200.0, "outer")
    limiter.yield_reservation(later)
    start(limiter, 200.0, "inner")
    limiter.settle(outer, 300.0)
    limiter.settle(later, 300.0)


# RetryAfter -----------------------------------------------------------------------------------------------------------


def test_after_retry_after_no_step_of_the_key_starts() -> None:
    """The pause is for all runs that share the limit, and for one key only."""
    limit = RateLimit(6000, key=by_description, on_refusal="wait_all")
    limiter, other_run = limiter_of(limit), limiter_of(limit)
    limiter.settle(start(limiter, 0.0), 0.0, retry_after=30.0)
    assert wait(limiter, 1.0) == pytest.approx(29.0)
    assert wait(other_run, 29.99) == pytest.approx(0.01)
    start(other_run, 1.0, key="other")
    start(limiter, 30.0)


def test_a_later_retry_after_never_shortens_the_cooldown() -> None:
    """The pause lasts until the latest moment that any `RetryAfter` asked for."""
    limiter = limiter_of(RateLimit(6000, on_refusal="wait_all"))
    first, second, third = (start(limiter, 0.0) for _ in range(3))
    limiter.settle(first, 0.0, retry_after=10.0)
    limiter.settle(second, 1.0, retry_after=2.0)
    assert wait(limiter, 1.0) == pytest.approx(9.0)
    limiter.settle(third, 2.0, retry_after=20.0)
    assert wait(limiter, 2.0) == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "most"), [(2.0, 2.2), (100.0, 101.0)])
def test_a_cooldown_is_a_little_longer_at_random(seconds: float, most: float) -> None:
    """A pause is up to a tenth longer than the server asked for, but at most a second longer."""
    limit = RateLimit(6000, on_refusal="wait_all")
    waits = []
    for seed in range(50):
        limit.keys.random = random.Random(seed)
        limiter = Limiter([limit])
        now = seed * 1000.0
        limiter.settle(start(limiter, now), now, retry_after=seconds)
        waits.append(wait(limiter, now))
        limiter.settle(start(limiter, now + 200), now + 200)
    assert seconds <= min(waits) < max(waits) <= most
    assert max(waits) > seconds + 0.8 * (most - seconds)


# Runs that share ------------------------------------------------------------------------------------------------------


def test_a_run_of_large_steps_does_not_starve() -> None:
    """A run that waits for many tokens gets them, although another run could always use the few that are left."""
    limit = RateLimit(tokens_per_minute=1000)
    small, large = limiter_of(limit), limiter_of(limit)
    run_step(small, 0.0, 10, "small")
    run_step(large, 0.0, 900, "large")
    now, large_at, count = 1.0, 1.0, 0
    while now < 600.0:
        if now >= large_at:
            answer = ask(large, now, "large")
            if isinstance(answer, Permit):
                break
            large_at = now + answer.seconds
        if isinstance(answer := ask(small, now, "small"), Permit):
            small.spend(answer, Usage(10))
            small.settle(answer, now)
            count += 1
        now += 0.5
    assert now < 130.0
    assert count < 10


def test_a_run_that_has_gone_loses_its_turn() -> None:
    """A run that has ended, or that does not ask any more, makes no other run wait."""
    for ends in (True, False):
        limit = RateLimit(tokens_per_minute=1000)
        gone, other = limiter_of(limit), limiter_of(limit)
        run_step(gone, 0.0, 10, "small")
        run_step(gone, 0.0, 900, "large")
        wait_s = wait(gone, 1.0, "large")
        assert wait(other, 1.0, "small") == 1.0
        if ends:
            gone.end_run(1.0)
            start(other, 1.0, "small")
        else:
            start(other, 1.0 + wait_s + 1.1, "small")


def test_idle_keys_are_forgotten() -> None:
    """With a key of its own for each step, idle keys are forgotten however their steps ended; keys in use are kept."""
    limit = RateLimit(60, 1000, key=by_description)
    limiter = limiter_of(limit)
    kept = start(limiter, 0.0, key="kept")
    for number in range(3000):
        permit = start(limiter, float(number), key=str(number))
        limiter.spend(permit, Usage(1500))
        limiter.settle(permit, float(number), retry_after=number % 7 or None)
        if number % 5 == 0:
            limiter.spend(permit, Usage(1500))
    assert len(limit.keys) < 1000
    limiter.settle(kept, 1e6)
    for number in range(MOST_REMEMBERED):
        start(limiter, 1e7, key=f"new{number}")
    assert len(limit.keys) <= MOST_REMEMBERED + 64


def test_what_agents_use_is_remembered_when_their_key_is_forgotten() -> None:
    """After a pause, the first step of a known agent does not have to run alone."""
    limit = RateLimit(tokens_per_minute=1000, key=by_description)
    limiter = limiter_of(limit)
    run_step(limiter, 0.0, 400, key="a")
    for number in range(200):
        run_step(limiter, 1000.0 * number, 1, key=str(number))
    start(limiter, 1e6, key="a")
    start(limiter, 1e6, key="a")
    wait(limiter, 1e6, key="a")


def test_idle_agents_are_forgotten() -> None:
    """However many agents a key has, only a fixed number of them is remembered."""
    limit = RateLimit(tokens_per_minute=10)
    limiter = limiter_of(limit)
    for number in range(MOST_REMEMBERED + 100):
        run_step(limiter, 0.0, 0, f"agent {number}")
    assert len(limit.keys.get("").agents) == MOST_REMEMBERED


# Any interleaving -----------------------------------------------------------------------------------------------------


@define
class KeyModel:
    """What the documentation says about one key, as a simple model."""

    on_refusal: Any
    starts: list[float] = field(factory=list)
    no_start_before: float = -math.inf
    first: int = 0
    refused: set[int] = field(factory=set)
    allowed: float = math.inf
    allowed_before: int = 0
    doubles_until: float = 0.0
    successes: int = 0
    has_succeeded: bool = True
    in_flight: set[int] = field(factory=set)

    def started(self, now: float) -> int:
        assert now >= self.no_start_before - 1e-9, "no step starts during a pause"
        assert len([n for n in self.in_flight if n >= self.first]) < self.allowed, "only so many steps are in flight"
        self.starts.append(now)
        self.in_flight.add(len(self.starts))
        return len(self.starts)

    def left(self, number: int) -> None:
        self.in_flight.remove(number)

    def ended(self, number: int, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            self.succeeded(number)
        elif self.on_refusal != "wait_step":
            self.was_refused(number, now, retry_after)
        self.left(number)

    def succeeded(self, number: int) -> None:
        if number < self.first:
            return
        self.has_succeeded = True
        self.successes += 1
        if self.allowed < self.doubles_until or self.successes >= self.allowed:
            self.allowed, self.successes = self.allowed + 1, 0
        if self.allowed >= self.allowed_before:
            self.allowed = math.inf

    def was_refused(self, number: int, now: float, retry_after: float) -> None:
        is_late = number < self.first
        if not is_late:
            self.refused.add(number)
        begins = not is_late and (self.on_refusal == "wait_all" or self.are_close_together(number))
        if begins or (is_late and (self.on_refusal == "wait_all" or now < self.no_start_before)):
            self.no_start_before = max(self.no_start_before, now + retry_after)
        if begins:
            is_reduced = self.allowed < math.inf
            self.allowed_before = max(len(self.in_flight), self.allowed_before if is_reduced else 0)
            self.allowed = max(1, (self.allowed if is_reduced else len(self.in_flight)) // 2)
            if self.has_succeeded:
                self.doubles_until = self.allowed
            self.first, self.refused, self.successes, self.has_succeeded = len(self.starts) + 1, set(), 0, False

    def are_close_together(self, number: int) -> bool:
        fewest = min(4, 1 + len(self.in_flight))
        for first in range(max(self.first, number - 120), number + 1):
            for last in range(number, min(len(self.starts), number + 120) + 1):
                count = len(self.refused.intersection(range(first, last + 1)))
                if count >= fewest and last - first + 1 <= max(6, 4 * count - 10):
                    return True
        return False


@define
class Simulation:
    """Several runs, and steps that end at random. Time passes only up to the moment at which a run is due to ask."""

    limit: RateLimit
    chance: random.Random
    queues: dict[tuple[int, str], deque[str]]
    limiters: list[Limiter]
    successes_in: int = 3
    now: float = 1000.0
    asks_in_vain: int = 0
    due: dict[tuple[int, str], float] = field(factory=dict)
    in_flight: list[tuple[Limiter, Permit, str, int]] = field(factory=list)
    keys: dict[str, KeyModel] = field(factory=dict)
    fresh: int = 0

    def run(self, most_tokens: int) -> None:
        while self.queues or self.in_flight:
            if self.in_flight and self.chance.random() < 0.4:
                self._end(most_tokens)
            elif self.queues and not self._ask_who_is_due():
                self._let_time_pass()
            if self.chance.random() < 0.05:
                self.fresh += 1  # a key that nobody used never has to wait
                self.limiters[0].release(start(self.limiters[0], self.now, key=f"fresh {self.fresh}"), self.now)

    def _ask_who_is_due(self) -> bool:
        ready = [queue for queue in self.queues if self.due.get(queue, 0.0) <= self.now]
        self.chance.shuffle(ready)
        for run, key in ready:
            answer = ask(self.limiters[run], self.now, self.queues[run, key][0], key)
            if isinstance(answer, Wait):
                assert answer.seconds > 0
                self.due[run, key] = self.now + answer.seconds
                self.asks_in_vain += not self.in_flight
                assert self.asks_in_vain < 2000, "a step that waits may start before long"
                continue
            self.asks_in_vain = 0
            self.in_flight.append((self.limiters[run], answer, key, self._model(key).started(self.now)))
            self.queues[run, key].popleft()
            if not self.queues[run, key]:
                del self.queues[run, key]
        return bool(ready)

    def _model(self, key: str) -> KeyModel:
        return self.keys.setdefault(key, KeyModel(self.limit.on_refusal))

    def _let_time_pass(self) -> None:
        self.now = max(self.now, min(self.due[queue] for queue in self.queues))

    def _end(self, most_tokens: int) -> None:
        self.now += self.chance.choice([0.0, 0.0, 0.01, 1.0, 10.0])
        limiter, permit, key, number = self.in_flight.pop(self.chance.randrange(len(self.in_flight)))
        for _ in range(self.chance.randrange(3)):
            limiter.spend(permit, Usage(self.chance.randint(0, most_tokens)))
        if self.chance.random() < 0.1:
            limiter.release(permit, self.now)
            self.keys[key].left(number)
        else:
            retry_after = self.chance.choice([*[None] * self.successes_in, 0.0, 3.0, 70.0])
            limiter.settle(permit, self.now, retry_after)
            self.keys[key].ended(number, self.now, retry_after)
        if self.chance.random() < 0.1:
            limiter.spend(permit, Usage(self.chance.randint(0, most_tokens)))


per_minute = st.integers(1, 200) | st.floats(0.3, 30) | st.sampled_from([600, 6000])


@settings(deadline=None, max_examples=150)
@given(
    st.none() | per_minute,
    st.integers(1, 50_000),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 60),
    st.integers(0, 2**32),
    st.sampled_from([None, None, "wait_all", "wait_step"]),
    st.sampled_from([0, 3, 20]),
)
def test_limits_are_kept_and_every_step_starts_in_any_interleaving(
    requests: float | None,
    tokens: int,
    are_tokens_limited: bool,
    runs: int,
    count: int,
    seed: int,
    on_refusal: Any,
    successes_in: int,
) -> None:
    """No minute has too many requests, no step starts during a pause, and every step starts in the end."""
    chance = random.Random(seed)
    tokens_per_minute = tokens if are_tokens_limited or requests is None else None
    limit = RateLimit(requests, tokens_per_minute, by_description, on_refusal=on_refusal)
    queues: dict[tuple[int, str], deque[str]] = {}
    for _ in range(count):
        queues.setdefault((chance.randrange(runs), chance.choice("kl")), deque()).append(chance.choice("abc"))
    simulation = Simulation(limit, chance, queues, [limiter_of(limit) for _ in range(runs)], successes_in)
    simulation.run(most_tokens=2 * tokens)
    assert sum(len(key.starts) for key in simulation.keys.values()) == count
    if requests is not None:
        for key in simulation.keys.values():
            most = math.ceil(requests)
            burst = min(most, max(10, math.ceil(requests / 60)))
            assert most_within(key.starts, 60.0) <= most
            assert most_within(key.starts, 60.0 * most / requests) <= most
            assert most_within(key.starts, 60.0 * burst / requests) <= burst


def most_within(starts: list[float], seconds: float) -> int:
    return max((sum(0 <= other - first <= seconds for other in starts) for first in starts), default=0)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 30_000), st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
def test_a_token_limit_is_exceeded_by_one_step_at_most(tokens: int, sizes: list[int]) -> None:
    """If all steps of an agent use the same, only a first step or one that is larger than the limit exceeds it."""
    limiter = limiter_of(RateLimit(tokens_per_minute=tokens))
    now, ended = 0.0, []
    for size in [*sorted(set(sizes)), *sizes]:
        while isinstance(answer := ask(limiter, now, f"takes {size}"), Wait):
            now += answer.seconds
        limiter.spend(answer, Usage(size))
        limiter.settle(answer, now)
        ended.append((now, size))
    for first, _ in ended:
        within = [size for at, size in ended if 0 <= at - first <= 60.0 + MARGIN_S]
        assert sum(within) <= tokens + max(sizes)
