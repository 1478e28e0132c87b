"""Pauses after refusals, by a clock that only the test moves: servers with random faults, and overloaded ones."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from copy import copy
from typing import Any

import pytest
from attrs import define, field

from fanout_sync import AgentStepSpec, RateLimit
from fanout_sync.limits.answers import ASK_AGAIN_S, Wait
from fanout_sync.limits.cooldown import REDUCED_KEPT_S, Cooldown
from fanout_sync.limits.limiter import Limiter, Permit

HIGH = 10**6  # requests per minute: more than any server here takes


def by_description(spec: AgentStepSpec) -> str:
    return spec.description


def ask(limiter: Limiter, now: float, key: str = "") -> Permit | Wait:
    answer = limiter.admit(limiter.request(AgentStepSpec("t", "a", key, "")), 1, now)
    assert isinstance(answer, (Permit, Wait))
    return answer


def start(limiter: Limiter, now: float, key: str = "") -> Permit:
    answer = ask(limiter, now, key)
    assert isinstance(answer, Permit), answer
    return answer


def start_all(limiter: Limiter, now: float, most: int = 100, key: str = "") -> list[Permit]:
    permits: list[Permit] = []
    while len(permits) < most and isinstance(answer := ask(limiter, now, key), Permit):
        permits.append(answer)
    return permits


def settle_all(limiter: Limiter, permits: list[Permit], now: float, retry_after: float | None = None) -> None:
    for permit in permits:
        limiter.settle(permit, now, retry_after)


def pause_of(limiter: Limiter, now: float, key: str = "") -> float:
    """Return for how long no step may start; 0 if one may, which then never begins."""
    answer = ask(limiter, now, key)
    if isinstance(answer, Permit):
        limiter.release(answer, now)
        return 0.0
    return answer.seconds


# Servers --------------------------------------------------------------------------------------------------------------

Chance = random.Random


@define
class RandomFaults:
    """Refuses some requests at random, whatever the load."""

    share: float
    retry_after: float = 1.0

    def refuses(self, now: float, chance: Chance) -> float | None:
        return self.retry_after if chance.random() < self.share else None

    def answered(self) -> None:
        """Do nothing: the load does not matter."""


@define
class PerSecond:
    """Takes so many requests in each second and refuses all others until the next one begins."""

    limit: int
    second: int = -1
    taken: int = 0

    def refuses(self, now: float, chance: Chance) -> float | None:
        if int(now) != self.second:
            self.second, self.taken = int(now), 0
        self.taken += 1
        return int(now) + 1 - now if self.taken > self.limit else None

    def answered(self) -> None:
        """Do nothing: only arrivals matter."""


@define
class TokenBucket:
    """Takes so many requests a second, evenly, and a few more after a rest."""

    per_second: float
    most: float
    has: float = field(default=10.0)
    at: float = 0.0

    def refuses(self, now: float, chance: Chance) -> float | None:
        self.has = min(self.most, self.has + (now - self.at) * self.per_second)
        self.at = now
        if self.has < 1:
            return 1.0
        self.has -= 1
        return None

    def answered(self) -> None:
        """Do nothing: only arrivals matter."""


@define
class InFlight:
    """Takes so many requests at once."""

    limit: int
    in_flight: int = 0

    def refuses(self, now: float, chance: Chance) -> float | None:
        if self.in_flight >= self.limit:
            return 1.0
        self.in_flight += 1
        return None

    def answered(self) -> None:
        self.in_flight -= 1


@define
class Outage:
    """Refuses everything for so many seconds."""

    seconds: float

    def refuses(self, now: float, chance: Chance) -> float | None:
        return 1.0 if now < self.seconds else None

    def answered(self) -> None:
        """Do nothing: only the time matters."""


@define
class Line:
    """The steps of one run: when each that waits may be tried, in order, and how many are in flight."""

    limiter: Limiter | None
    due: list[float]
    ask_at: float = 0.0
    in_flight: int = 0


@define
class Simulation:
    """Runs of steps, many at once, each of which is tried until the server takes it.

    Attributes:
        server: Whose answers they get.
        limits: The limit of each run, or `None`; runs may share one.
        steps: How many steps each run has.
        bound: How many of one run may be in flight.
        refused_after_s: How long a refusal takes; `None` if it takes as long as an answer.
        chance: Decides what is random.
        now: The moment.
        refused: How many attempts were refused.
    """

    server: Any
    limits: list[RateLimit | None]
    steps: int = 400
    bound: int = 16
    refused_after_s: float | None = 0.01
    chance: Chance = field(factory=lambda: Chance(0))
    now: float = 0.0
    refused: int = 0
    _ends: list[tuple[float, int, Line, Permit | None, float | None]] = field(factory=list)
    _order: itertools.count[int] = field(factory=itertools.count)

    def elapsed(self) -> float:
        """Run all steps and return how long that took."""
        limiters = [None if limit is None else Limiter([limit]) for limit in self.limits]
        lines = [Line(limiter, [0.0] * self.steps) for limiter in limiters]
        while True:
            for line in lines:
                self._start(line)
            moments = [max(line.due[0], line.ask_at) for line in lines if line.due and line.in_flight < self.bound]
            if self._ends:
                moments.append(self._ends[0][0])
            if not moments:
                return self.now
            self.now = min(moments)
            while self._ends and self._ends[0][0] <= self.now:
                self._end(*heapq.heappop(self._ends)[2:])

    def _start(self, line: Line) -> None:
        while line.due and line.in_flight < self.bound and max(line.due[0], line.ask_at) <= self.now:
            answer = None if line.limiter is None else ask(line.limiter, self.now)
            if isinstance(answer, Wait):
                line.ask_at = self.now + answer.seconds
                return
            heapq.heappop(line.due)
            line.in_flight += 1
            seconds = self.chance.uniform(0.1, 0.3)
            retry_after = self.server.refuses(self.now, self.chance)
            if retry_after is not None and self.refused_after_s is not None:
                seconds = self.refused_after_s
            heapq.heappush(self._ends, (self.now + seconds, next(self._order), line, answer, retry_after))

    def _end(self, line: Line, permit: Permit | None, retry_after: float | None) -> None:
        line.in_flight -= 1
        line.ask_at = 0.0
        if line.limiter is not None and permit is not None:
            line.limiter.settle(permit, self.now, retry_after)
        if retry_after is None:
            self.server.answered()
        else:
            self.refused += 1
            heapq.heappush(line.due, self.now + retry_after)


# Both kinds of servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 4, 16, 64])
@pytest.mark.parametrize("refused_after_s", [0.01, None])
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_random_refusals_cost_little_time(share: float, refused_after_s: float | None, bound: int) -> None:
    """With a limit that is not reached, 400 steps take at most half as long again as without any limit."""
    for seed in range(20):
        without, within = (
            Simulation(
                RandomFaults(share),
                [limit],
                bound=bound,
                refused_after_s=refused_after_s,
                chance=Chance(seed),
            ).elapsed()
            for limit in (None, RateLimit(requests_per_minute=6000 if bound <= 16 else HIGH))
        )
        assert within <= 1.5 * without, seed


@pytest.mark.parametrize(
    ("server", "bound", "most"),
    [
        (PerSecond(20), 4, 40),
        (PerSecond(20), 16, 120),
        (PerSecond(20), 64, 200),
        (TokenBucket(20, 10), 16, 100),
        (TokenBucket(20, 10), 64, 250),
        (InFlight(8), 16, 80),
        (InFlight(14), 16, 40),
        (Outage(20), 1, 40),
        (Outage(20), 16, 80),
    ],
    ids=repr,
)
def test_a_server_over_its_limit_gets_no_storm(server: Any, bound: int, most: int) -> None:
    """It refuses few of 400 steps; without a limit it would refuse up to 4,000 requests."""
    for seed in range(10):
        simulation = Simulation(copy(server), [RateLimit(HIGH)], bound=bound, chance=Chance(seed))
        simulation.elapsed()
        assert simulation.refused <= most, seed


def test_each_step_alone_may_storm_the_server() -> None:
    """Whoever says "wait_step" gets what they ask for: as many refusals as without any limit."""
    refused = []
    for limit in (None, RateLimit(HIGH, on_refusal="wait_step")):
        simulation = Simulation(PerSecond(20), [limit], bound=64)
        simulation.elapsed()
        refused.append(simulation.refused)
    assert refused[0] == refused[1] > 1000


def test_runs_that_share_a_limit_pause_together() -> None:
    """Four runs of 16 cause no more refusals at a server that is over its limit than one run of 64 may."""
    limit = RateLimit(HIGH)
    simulation = Simulation(PerSecond(20), [limit] * 4, steps=100)
    simulation.elapsed()
    assert simulation.refused <= 250


def test_random_refusals_do_not_hold_other_runs() -> None:
    """Four runs that share a limit take at most half as long again as without, too."""
    without, within = (
        Simulation(RandomFaults(0.05), [limit] * 4, steps=100).elapsed() for limit in (None, RateLimit(HIGH))
    )
    assert within <= 1.5 * without


# The decision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 1.0, 60.0])
def test_a_single_refusal_begins_no_pause(seconds: float) -> None:
    """However long the server asks the one step to wait, the others go on."""
    limiter = Limiter([RateLimit(HIGH)])
    permits = start_all(limiter, 0.0, 16)
    limiter.settle(permits[3], 0.1, seconds)
    assert len(start_all(limiter, 0.1, 50)) == 50


@pytest.mark.parametrize(
    ("refused", "pauses"),
    [
        ([0, 1, 2, 3], True),
        ([0, 1, 2, 5], True),
        ([0, 1, 2, 6], False),
        ([0, 2, 4, 6], False),
        ([0, 2, 4, 6, 8], True),
        ([0, 2, 4, 7, 10], False),
        ([0, 3, 6, 9, 12, 15, 18, 21], True),
        ([0, 4, 8, 12, 16, 20, 24, 28], False),
        ([0, 1, 20, 21, 40, 41, 60, 61], False),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_refusals_close_together_begin_a_pause(refused: list[int], pauses: bool, is_reversed: bool) -> None:
    """Close in the order of their starts, whatever the order of their ends, and however many are not answered yet."""
    limiter = Limiter([RateLimit(HIGH)])
    permits = start_all(limiter, 0.0)
    for number in reversed(refused) if is_reversed else refused:
        limiter.settle(permits[number], 0.5, 10.0)
    assert (pause_of(limiter, 0.5) >= 10.0) == pauses


@pytest.mark.parametrize(("in_flight", "needed"), [(1, 2), (2, 3), (3, 4), (9, 4)])
def test_with_few_steps_in_flight_fewer_refusals_are_enough(in_flight: int, needed: int) -> None:
    """With one step at a time two in a row begin a pause, with two steps three."""
    limiter = Limiter([RateLimit(HIGH)])
    permits = deque(start_all(limiter, 0.0, in_flight))
    for count in range(1, needed + 1):
        assert pause_of(limiter, 0.0) == 0.0
        limiter.settle(permits.popleft(), 0.0, 5.0)
        if count < needed:
            permits.append(start(limiter, 0.0))
    assert pause_of(limiter, 0.0) >= 5.0


def test_a_refused_step_with_a_run_of_its_own_does_not_count_for_more() -> None:
    """It is not in flight any more when it is refused; that alone begins no pause."""
    limiter = Limiter([RateLimit(HIGH)])
    permit = start(limiter, 0.0)
    limiter.yield_reservation(permit)
    limiter.settle(permit, 0.0, 5.0)
    assert pause_of(limiter, 0.0) == 0.0


def test_refusals_of_one_key_do_not_hold_another() -> None:
    """Each key decides for itself."""
    limiter = Limiter([RateLimit(HIGH, key=by_description)])
    settle_all(limiter, start_all(limiter, 0.0, 9, "a"), 0.0, 30.0)
    assert pause_of(limiter, 1.0, "a") >= 29.0
    assert len(start_all(limiter, 1.0, 50, "b")) == 50


def test_every_refusal_pauses_all_if_the_user_wants_that() -> None:
    """With "wait_all" a single one is enough; with "wait_step" no number is."""
    limiter = Limiter([RateLimit(HIGH, on_refusal="wait_all")])
    permits = start_all(limiter, 0.0, 16)
    limiter.settle(permits[0], 0.0, 7.0)
    assert pause_of(limiter, 0.0) >= 7.0
    limiter = Limiter([RateLimit(HIGH, on_refusal="wait_step")])
    settle_all(limiter, start_all(limiter, 0.0, 16), 0.0, 7.0)
    assert len(start_all(limiter, 0.0, 50)) == 50


# After a pause --------------------------------------------------------------------------------------------------------


def paused(bound: int = 16) -> Limiter:
    """Return a limiter at moment 10, when a pause is over that began with `bound` steps in flight."""
    limiter = Limiter([RateLimit(HIGH, on_refusal="wait_all")])
    permits = start_all(limiter, 0.0, bound)
    settle_all(limiter, permits, 0.0, 5.0)
    return limiter


def test_a_burst_of_refusals_is_one_event() -> None:
    """Steps that started before the pause do not halve again, however many of them are refused."""
    limiter = paused(16)
    assert pause_of(limiter, 0.0) >= 5.0
    assert len(start_all(limiter, 10.0)) == 8


def test_a_pause_lasts_as_long_as_the_server_asks() -> None:
    """A refusal during a pause may lengthen it, and never shortens it; a late one after it holds only its own step."""
    limiter = Limiter([RateLimit(HIGH)])
    permits = start_all(limiter, 0.0, 16)
    settle_all(limiter, permits[:4], 0.0, 5.0)
    limiter.settle(permits[4], 1.0, 1.0)
    assert 4.0 <= pause_of(limiter, 1.0) <= 4.5
    limiter.settle(permits[5], 2.0, 8.0)
    assert 8.0 <= pause_of(limiter, 2.0) <= 8.8
    limiter.settle(permits[6], 20.0, 60.0)
    assert pause_of(limiter, 20.0) == 0.0


def test_the_number_in_flight_is_halved_and_grows_by_one() -> None:
    """Half as many may be in flight; each time as many have succeeded one more may, and any number in the end."""
    limiter, now, admitted = paused(8), 10.0, []
    for _ in range(5):
        permits = start_all(limiter, now)
        admitted.append(len(permits))
        now += 1.0
        settle_all(limiter, permits, now)
    assert admitted == [4, 5, 6, 7, 100]


def test_a_step_has_to_end_before_the_next_one_starts() -> None:
    """While the number in flight is reduced, the limiter is asked again soon."""
    limiter = paused(8)
    permits = start_all(limiter, 10.0)
    assert pause_of(limiter, 10.0) == ASK_AGAIN_S
    limiter.settle(permits[0], 10.1)
    start(limiter, 10.1)
    assert pause_of(limiter, 10.1) == ASK_AGAIN_S


def test_steps_from_before_the_pause_do_not_count() -> None:
    """Slow steps that were in flight keep none from starting, and their success says nothing about the server now."""
    limiter = Limiter([RateLimit(HIGH, on_refusal="wait_all")])
    refused, *slow = start_all(limiter, 0.0, 16)
    limiter.settle(refused, 0.0, 5.0)
    assert len(start_all(limiter, 10.0)) == 8
    settle_all(limiter, slow, 10.0)
    assert pause_of(limiter, 10.0) == ASK_AGAIN_S


def test_after_an_outage_the_number_doubles_up_to_half() -> None:
    """Pause after pause halves it; then each success allows one more, up to half, and then it grows more slowly."""
    limiter, now, admitted = paused(16), 10.0, []
    for _ in range(4):
        permits = start_all(limiter, now)
        admitted.append(len(permits))
        settle_all(limiter, permits, now, 5.0)
        now += 10.0
    for _ in range(6):
        permits = start_all(limiter, now)
        admitted.append(len(permits))
        now += 1.0
        settle_all(limiter, permits, now)
    assert admitted == [8, 4, 2, 1, 1, 2, 4, 8, 9, 10]


def test_a_pause_of_nothing_still_halves() -> None:
    """A server that says `RetryAfter(0)` to all gets fewer at once, and the run goes on."""
    limiter, admitted = Limiter([RateLimit(HIGH)]), []
    permits = start_all(limiter, 0.0, 16)
    for now in range(6):
        settle_all(limiter, permits, now, 0.0)
        permits = start_all(limiter, now + 0.5)
        admitted.append(len(permits))
    assert admitted[0] == 6, "ten others were in flight when it began"
    assert admitted[-1] <= 2
    settle_all(limiter, permits, 9.0)
    assert pause_of(limiter, 9.0) == 0.0


def test_a_reduced_number_is_kept_for_a_minute() -> None:
    """A key that nobody uses is forgotten later than the end of its pause, since its server may still be busy."""
    cooldown = Cooldown("wait_all")
    cooldown.step_refused(cooldown.step_started(), 0.0, 5.0)
    cooldown.step_ended(0)
    assert not cooldown.may_be_forgotten(5.0)
    assert cooldown.may_be_forgotten(5.0 + REDUCED_KEPT_S)
    cooldown.step_succeeded(cooldown.step_started())
    assert cooldown.may_be_forgotten(5.0)
