"""Limits per minute: what may start when, at times that the test says."""

from __future__ import annotations

import math
import pickle
import random
from collections import defaultdict, deque
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync import AgentStepSpec, OptionError
from fanout_sync.limits.answers import POLL_S, Wait
from fanout_sync.limits.limiter import Limiter, Permit
from fanout_sync.limits.rate_limit import ARRIVAL_S, MOST_REMEMBERED, RateLimit
from fanout_sync.limits.windows import MARGIN_S, request_rates
from fanout_sync.records.usage import Usage


class NoJitter(random.Random):
    """Waits exactly as long as asked for."""

    def random(self) -> float:
        return 0.0


def spec_of(agent: str = "a", key: str = "") -> AgentStepSpec:
    return AgentStepSpec("t", agent, key, "")


def by_description(spec: AgentStepSpec) -> str:
    return spec.description


def governed(limit: RateLimit) -> Limiter:
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
    hold = start(limiter, now, agent, key)
    limiter.spend(hold, Usage(tokens))
    limiter.settle(hold, now)


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
    ],
)
def test_unusable_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """What nobody can mean is refused when the limit is made."""
    with pytest.raises(OptionError) as caught:
        RateLimit(**options)
    assert message in str(caught.value)


def test_a_limit_lives_in_one_process() -> None:
    """It cannot be sent to a worker, and says where it belongs."""
    with pytest.raises(TypeError, match="a RateLimit lives in one process"):
        pickle.dumps(RateLimit(60))


def test_a_key_is_a_string() -> None:
    """A key function that returns something else is told so; what it raises comes through."""
    with pytest.raises(OptionError, match="key of RateLimit must return a str, got None"):
        Limiter([RateLimit(60, key=lambda spec: None)]).request(spec_of())  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        Limiter([RateLimit(60, key=lambda spec: str(1 / 0))]).request(spec_of())


def test_the_callers_functions_are_asked_once() -> None:
    """However often a step has to wait, its key is asked for once."""
    asked = []

    def key(spec: AgentStepSpec) -> str:
        asked.append(spec)
        return "k"

    limiter = governed(RateLimit(1, key=key))
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
    """The burst is ten, or those of a second; the longer window is left out where it adds nothing."""
    assert request_rates(per_minute) == rates


@pytest.mark.parametrize("per_minute", [*range(1, 200), 997, 1_201, 7_919, 1e6, 0.7, 1.04, 69.4, 1e9 + 0.5])
def test_every_rate_can_be_kept(per_minute: float) -> None:
    """Whatever the number, a step can start under it."""
    start(governed(RateLimit(per_minute)), 0.0)


def test_steps_start_at_once_until_the_burst_is_used_up() -> None:
    """Ten start together; the next one when the first of them are over, exactly as it was told."""
    limiter = governed(RateLimit(60))
    for _ in range(10):
        limiter.settle(start(limiter, 100.0), 100.0)
    wait_s = wait(limiter, 100.0)
    assert wait_s == pytest.approx(10.02, abs=0.01)
    assert wait(limiter, 100.0 + wait_s - 0.01) <= 0.012
    start(limiter, 100.0 + wait_s)


def test_a_request_counts_from_when_it_must_have_arrived() -> None:
    """One that is late must not be too close to the one that takes its place: not where that is counted either."""
    limiter = governed(RateLimit(1))
    hold = start(limiter, 0.0)
    limiter.settle(hold, 0.15)
    assert wait(limiter, 0.15) == pytest.approx(60.02, abs=0.01)
    limiter = governed(RateLimit(1))
    start(limiter, 0.0)
    assert wait(limiter, 10.0) == pytest.approx(ARRIVAL_S + 50.02, abs=0.01), "it goes on, but it has arrived"


def test_where_steps_are_short_a_long_one_may_be_on_its_way() -> None:
    """As when a server lets a connection wait: its place is free again only after it has ended."""
    limiter = governed(RateLimit(600))
    for _ in range(10):
        limiter.settle(start(limiter, 0.0), 0.01)
    late = [start(limiter, 2.0) for _ in range(10)]
    assert wait(limiter, 3.5) > 0
    for hold in late:
        limiter.settle(hold, 3.5)
    assert wait(limiter, 3.5) == pytest.approx(1.02, abs=0.01)
    for n in range(100):
        limiter.settle(start(limiter, 1000.0 + 10 * n), 1005.0 + 10 * n)
    for _ in range(10):
        start(limiter, 3000.0)
    assert wait(limiter, 3000.5) == pytest.approx(ARRIVAL_S + 1.02 - 0.5, abs=0.01), (
        "where they are long, it has arrived"
    )


def test_a_step_that_never_began_counts_as_a_request_all_the_same() -> None:
    """It is not known how far it came; so its place in the minute is not given to another."""
    limiter = governed(RateLimit(1))
    limiter.release(start(limiter, 0.0), 0.0)
    wait(limiter, 1.0)


def test_a_clock_that_was_looked_at_earlier_does_no_harm() -> None:
    """Threads that share a limit may come in another order than the one in which they looked at the clock."""
    limiter = governed(RateLimit(2))
    limiter.settle(start(limiter, 100.0), 100.0)
    limiter.settle(start(limiter, 99.9), 99.9)
    assert 60.0 <= wait(limiter, 100.0) <= 60.2


def test_of_several_limits_none_is_used_up_by_what_another_refuses() -> None:
    """All are asked before any is told."""
    wide, narrow = RateLimit(2), RateLimit(1)
    both, one = Limiter([wide, narrow]), Limiter([wide])
    start(both, 0.0)
    for now in range(50):
        wait(both, float(now))
    start(one, 50.0)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_the_first_step_of_an_agent_goes_alone() -> None:
    """Until it is known what one takes, nothing else of its key starts; of other keys all do."""
    limiter = governed(RateLimit(tokens_per_minute=1000, key=by_description))
    first = start(limiter, 0.0)
    assert wait(limiter, 0.0) == POLL_S
    assert wait(limiter, 0.0, "b") == POLL_S
    start(limiter, 0.0, key="other")
    limiter.spend(first, Usage(100))
    assert wait(limiter, 0.0) == POLL_S
    limiter.settle(first, 0.0)
    for _ in range(9):
        start(limiter, 0.0)
    assert wait(limiter, 0.0) == POLL_S


def test_a_first_step_that_never_began_makes_room_for_another() -> None:
    """A released step is no longer alone, and nothing was learnt."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    limiter.release(start(limiter, 0.0), 0.0)
    start(limiter, 0.0)
    assert wait(limiter, 0.0) == POLL_S


def test_what_is_in_flight_is_taken_to_need_the_most_that_was_seen() -> None:
    """As the largest of an agent grows, also while it is still in flight, so does what is kept free for its others."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 100)
    holds = [start(limiter, 0.0) for _ in range(4)]
    limiter.spend(holds[0], Usage(180))
    start(limiter, 0.0)  # 100 + 4 * 180 + 180 == 1000
    assert wait(limiter, 0.0) == POLL_S


def test_a_minute_later_there_is_room_again() -> None:
    """Tokens count for a minute from when their step ended, and the wait that is told is exact."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 400)
    run_step(limiter, 10.0, 400)
    wait_s = wait(limiter, 20.0)
    assert wait_s == pytest.approx(40.02, abs=0.01)
    start(limiter, 20.0 + wait_s)


def test_a_step_larger_than_the_limit_runs_when_there_is_no_other() -> None:
    """It waits for an empty minute; what it took beyond is paid back before anything else starts."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 1500)
    wait_s = wait(limiter, 0.0)
    assert wait_s == pytest.approx(60.02, abs=0.01)
    again_s = wait(limiter, wait_s)  # the debt of 500 went in: a minute that is not empty
    assert again_s == pytest.approx(60.02, abs=0.01)
    start(limiter, wait_s + again_s)


def test_nothing_starts_while_there_is_debt() -> None:
    """Neither large nor small, nor of agents that take nothing."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 0, "free")
    run_step(limiter, 0.0, 1500)
    assert wait(limiter, 1.0, "free") == pytest.approx(59.02, abs=0.01)
    start(limiter, 61.0, "free")


def test_a_limit_of_a_million_tokens_is_exact() -> None:
    """A limit of a million tokens a minute is kept like a small one."""
    limiter = governed(RateLimit(tokens_per_minute=1_000_000))
    run_step(limiter, 0.0, 999_901)
    wait(limiter, 0.0)
    run_step(governed(RateLimit(tokens_per_minute=15_000)), 0.0, 15_000)


def test_an_agent_that_reports_nothing_is_not_held_up() -> None:
    """That its first step took nothing is knowledge, too; unless a server sent it away."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    limiter.settle(start(limiter, 0.0), 0.0, retry_after=0)
    start_again = start(limiter, 0.0)
    assert wait(limiter, 0.0) == POLL_S
    limiter.settle(start_again, 0.0)
    start(limiter, 0.0)
    start(limiter, 0.0)


def test_tokens_of_a_step_that_was_given_up_count() -> None:
    """A thread that goes on after its deadline uses what others then cannot."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
    run_step(limiter, 0.0, 100)
    hold = start(limiter, 0.0)
    limiter.settle(hold, 0.0)
    limiter.settle(hold, 0.0, retry_after=1000)
    limiter.release(hold, 0.0)
    limiter.spend(hold, Usage(900))
    assert wait(limiter, 1.0) == pytest.approx(60.02, abs=1.0)


def test_a_run_within_a_step_does_not_wait_for_it() -> None:
    """A step that yields keeps nothing free, is not alone, and leaves its place in a gate that is half open."""
    limiter = governed(RateLimit(tokens_per_minute=1000))
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


def test_after_retry_after_nothing_of_the_key_starts() -> None:
    """The gate is closed for everybody who shares the limit; another key's stays open."""
    limit = RateLimit(6000, key=by_description)
    limiter, other_run = governed(limit), governed(limit)
    limiter.settle(start(limiter, 0.0), 0.0, retry_after=30.0)
    assert wait(limiter, 1.0) == pytest.approx(29.0)
    assert wait(other_run, 29.99) == pytest.approx(0.01)
    start(other_run, 1.0, key="other")
    start(limiter, 30.0)


def test_a_later_closing_extends_and_never_shortens() -> None:
    """What the most patient server asked for holds."""
    limiter = governed(RateLimit(6000))
    first, second, third = (start(limiter, 0.0) for _ in range(3))
    limiter.settle(first, 0.0, retry_after=10.0)
    limiter.settle(second, 1.0, retry_after=2.0)
    assert wait(limiter, 1.0) == pytest.approx(9.0)
    limiter.settle(third, 2.0, retry_after=20.0)
    assert wait(limiter, 2.0) == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "most"), [(2.0, 2.2), (100.0, 101.0)])
def test_not_all_come_back_in_the_same_moment(seconds: float, most: float) -> None:
    """There is up to a tenth more, but no more than a second."""
    limit = RateLimit(6000)
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


def test_a_gate_reopens_by_doubling() -> None:
    """One, then two, then four per round trip; when as many are in flight as before, any number may be."""
    limiter = governed(RateLimit(60_000))
    before = [start(limiter, 0.0) for _ in range(8)]
    limiter.settle(before[0], 0.0, retry_after=5.0)
    for hold in before[1:]:
        limiter.settle(hold, 1.0)
    now, admitted = 5.0, []
    for _ in range(4):
        holds: list[Permit] = []
        while isinstance(answer := ask(limiter, now), Permit) and len(holds) < 100:
            holds.append(answer)
        admitted.append(len(holds))
        now += 1.0
        for hold in holds:
            limiter.settle(hold, now)
    assert admitted == [1, 2, 4, 100]


def test_a_refusal_while_reopening_closes_the_gate_again() -> None:
    """Then it begins with one again; and what was refused before the gate closed is no such refusal."""
    limiter = governed(RateLimit(60_000))
    before = [start(limiter, 0.0) for _ in range(8)]
    limiter.settle(before[0], 0.0, retry_after=5.0)
    limiter.settle(start(limiter, 5.0), 6.0)
    pair = [start(limiter, 6.0) for _ in range(2)]
    limiter.settle(before[1], 6.0, retry_after=1.0)
    assert wait(limiter, 6.0) == pytest.approx(1.0)
    limiter.settle(pair[0], 7.0)
    third, fourth = start(limiter, 7.0), start(limiter, 7.0)
    assert wait(limiter, 7.0) == POLL_S
    limiter.settle(third, 7.0, retry_after=1.0)
    limiter.settle(fourth, 7.5)
    start(limiter, 8.0)
    assert wait(limiter, 8.0) == POLL_S


def test_a_slow_step_from_before_does_not_hold_up_the_reopening() -> None:
    """What was in flight when the gate closed takes no place in it afterwards."""
    limiter = governed(RateLimit(60_000))
    first, _slow = start(limiter, 0.0), start(limiter, 0.0)
    limiter.settle(first, 0.0, retry_after=5.0)
    start(limiter, 5.0)


# Runs that share ------------------------------------------------------------------------------------------------------


def test_the_patient_do_not_starve() -> None:
    """A run that waits for much room gets it, although another one would always take what little there is."""
    limit = RateLimit(tokens_per_minute=1000)
    greedy, patient = governed(limit), governed(limit)
    run_step(greedy, 0.0, 10, "small")
    run_step(patient, 0.0, 900, "large")
    now, patient_at, count = 1.0, 1.0, 0
    while now < 600.0:
        if now >= patient_at:
            answer = ask(patient, now, "large")
            if isinstance(answer, Permit):
                break
            patient_at = now + answer.seconds
        if isinstance(answer := ask(greedy, now, "small"), Permit):
            greedy.spend(answer, Usage(10))
            greedy.settle(answer, now)
            count += 1
        now += 0.5
    assert now < 130.0
    assert count < 10


def test_a_run_that_is_gone_keeps_no_place() -> None:
    """Neither when it has ended nor when it just does not ask any more."""
    for ends in (True, False):
        limit = RateLimit(tokens_per_minute=1000)
        gone, other = governed(limit), governed(limit)
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
    """A key for each step does not pile up, whatever became of it; keys in flight stay."""
    limit = RateLimit(60, 1000, key=by_description)
    limiter = governed(limit)
    kept = start(limiter, 0.0, key="kept")
    for number in range(3000):
        hold = start(limiter, float(number), key=str(number))
        limiter.spend(hold, Usage(1500))
        limiter.settle(hold, float(number), retry_after=number % 7 or None)
        if number % 5 == 0:
            limiter.spend(hold, Usage(1500))
    assert len(limit.keys) < 1000
    limiter.settle(kept, 1e6)
    for number in range(MOST_REMEMBERED):
        start(limiter, 1e7, key=f"new{number}")
    assert len(limit.keys) <= MOST_REMEMBERED + 64


def test_what_a_key_took_is_remembered_while_it_is_idle() -> None:
    """After a pause the agents of a key are not strangers."""
    limit = RateLimit(tokens_per_minute=1000, key=by_description)
    limiter = governed(limit)
    run_step(limiter, 0.0, 400, key="a")
    for number in range(200):
        run_step(limiter, 1000.0 * number, 1, key=str(number))
    start(limiter, 1e6, key="a")
    start(limiter, 1e6, key="a")
    wait(limiter, 1e6, key="a")


def test_agents_do_not_pile_up() -> None:
    """However many agents a key has, only so many are remembered."""
    limit = RateLimit(tokens_per_minute=10)
    limiter = governed(limit)
    for number in range(MOST_REMEMBERED + 100):
        run_step(limiter, 0.0, 0, f"agent {number}")
    assert len(limit.keys.get("").agents) == MOST_REMEMBERED


# Any interleaving -----------------------------------------------------------------------------------------------------


@define
class KeyModel:
    """What the words of the documentation say about one key."""

    starts: list[float] = field(factory=list)
    closed_until: float = -math.inf
    round: int = 0
    places: float = math.inf
    enough: int = 0
    flying: int = 0
    of_round: int = 0

    def started(self, now: float) -> int:
        assert now >= self.closed_until - 1e-9, "nothing starts while the gate is closed"
        assert self.of_round < self.places, "a gate reopens step by step"
        self.starts.append(now)
        self.flying += 1
        self.of_round += 1
        return self.round

    def left(self, entered: int) -> None:
        self.flying -= 1
        self.of_round -= entered == self.round

    def ended(self, entered: int, now: float, retry_after: float | None) -> None:
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)
            if entered == self.round:
                self.enough = max(self.flying, self.enough if self.places < math.inf else 0)
                self.round, self.places, self.of_round = self.round + 1, 1, 0
        elif entered == self.round and self.places < math.inf:
            self.places = math.inf if self.places + 1 >= self.enough else self.places + 1
        self.left(entered)


@define
class Simulation:
    """Runs in their loops, and steps that end as chance wants it. Its clock goes on only as promised."""

    limit: RateLimit
    chance: random.Random
    queues: dict[tuple[int, str], deque[str]]
    governors: list[Limiter]
    now: float = 1000.0
    asks_in_vain: int = 0
    due: dict[tuple[int, str], float] = field(factory=dict)
    flying: list[tuple[Limiter, Permit, str, int]] = field(factory=list)
    keys: defaultdict[str, KeyModel] = field(factory=lambda: defaultdict(KeyModel))
    fresh: int = 0

    def run(self, most_tokens: int) -> None:
        while self.queues or self.flying:
            if self.flying and self.chance.random() < 0.4:
                self._end(most_tokens)
            elif self.queues and not self._ask_who_is_due():
                self._let_time_pass()
            if self.chance.random() < 0.05:
                self.fresh += 1  # a key that has to wait delays no other
                self.governors[0].release(start(self.governors[0], self.now, key=f"fresh {self.fresh}"), self.now)

    def _ask_who_is_due(self) -> bool:
        ready = [queue for queue in self.queues if self.due.get(queue, 0.0) <= self.now]
        self.chance.shuffle(ready)
        for run, key in ready:
            answer = ask(self.governors[run], self.now, self.queues[run, key][0], key)
            if isinstance(answer, Wait):
                assert answer.seconds > 0
                self.due[run, key] = self.now + answer.seconds
                self.asks_in_vain += not self.flying
                assert self.asks_in_vain < 2000, "what waits is let start before long"
                continue
            self.asks_in_vain = 0
            self.flying.append((self.governors[run], answer, key, self.keys[key].started(self.now)))
            self.queues[run, key].popleft()
            if not self.queues[run, key]:
                del self.queues[run, key]
        return bool(ready)

    def _let_time_pass(self) -> None:
        self.now = max(self.now, min(self.due[queue] for queue in self.queues))

    def _end(self, most_tokens: int) -> None:
        self.now += self.chance.choice([0.0, 0.0, 0.01, 1.0, 10.0])
        limiter, hold, key, entered = self.flying.pop(self.chance.randrange(len(self.flying)))
        for _ in range(self.chance.randrange(3)):
            limiter.spend(hold, Usage(self.chance.randint(0, most_tokens)))
        if self.chance.random() < 0.1:
            limiter.release(hold, self.now)
            self.keys[key].left(entered)
        else:
            retry_after = self.chance.choice([None, None, None, 0.0, 3.0, 70.0])
            limiter.settle(hold, self.now, retry_after)
            self.keys[key].ended(entered, self.now, retry_after)
        if self.chance.random() < 0.1:
            limiter.spend(hold, Usage(self.chance.randint(0, most_tokens)))


per_minute = st.integers(1, 200) | st.floats(0.3, 30) | st.sampled_from([600, 6000])


@settings(deadline=None, max_examples=150)
@given(
    st.none() | per_minute,
    st.integers(1, 50_000),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 60),
    st.integers(0, 2**32),
)
def test_any_interleaving_keeps_the_limits_and_goes_on(
    requests: float | None, tokens: int, are_tokens_limited: bool, runs: int, count: int, seed: int
) -> None:
    """No minute has too many requests, no closed gate is passed, every step starts in the end, and soon."""
    chance = random.Random(seed)
    limit = RateLimit(requests, tokens if are_tokens_limited or requests is None else None, by_description)
    queues: dict[tuple[int, str], deque[str]] = {}
    for _ in range(count):
        queues.setdefault((chance.randrange(runs), chance.choice("kl")), deque()).append(chance.choice("abc"))
    simulation = Simulation(limit, chance, queues, [governed(limit) for _ in range(runs)])
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
def test_steps_that_take_what_they_are_taken_for_keep_the_limit(tokens: int, sizes: list[int]) -> None:
    """With a constant number for each agent no minute has more than the limit and one step, a first or a large one."""
    limiter = governed(RateLimit(tokens_per_minute=tokens))
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
