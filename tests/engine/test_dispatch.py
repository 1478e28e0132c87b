"""The runner's loop, under any interleaving: with a scripted backend and a clock that only tests move."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import tenacity
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync import AgentStepSpec, RetryAfter, StepError
from fanout_sync.backends.backend import Session
from fanout_sync.engine.dispatch import Dispatch, Setting
from fanout_sync.engine.plan import Policies
from fanout_sync.engine.starting import MAX_WAITING
from fanout_sync.records.report import Report, failure
from fanout_sync.records.steps import StepOutcome
from fanout_sync.retry.policy import Retry, RetryPolicy, retry_policy
from fanout_sync.testing import make_specs

ENDS = ("succeeded", "raised", "timed_out", "crashed", "failed", "after")


class FakeClock:
    """Stands in for `time.monotonic`: what is tested is what happens at given times, not how long it takes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@define
class ScriptedSession(Session):
    """Stands in for a backend: ends attempts in an order, and in a way, that the test decides.

    Attributes:
        chance: Decides which of the running attempts ends next, and whether anything does before time passes.
        ends: How each attempt of each step ends, by index; a step that has no more succeeds.
    """

    clock: FakeClock
    chance: random.Random
    ends: dict[int, list[str]]
    policy: RetryPolicy | None = None
    running: list[tuple[int, AgentStepSpec, int]] = field(factory=list)
    most_at_once: int = 0
    started: list[tuple[int, int, float]] = field(factory=list)
    is_woken: bool = False

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        assert not any(running[0] == index for running in self.running), "a step runs once at a time"
        self.running.append((index, spec, attempt))
        self.most_at_once = max(self.most_at_once, len(self.running))
        self.started.append((index, attempt, self.clock.now))

    def wait(self, timeout_s: float | None = None) -> Report | None:
        if self.is_woken:
            self.is_woken = False
            return None
        may_let_pass = timeout_s is not None and timeout_s < 3600
        if not self.running or (may_let_pass and self.chance.random() < 0.3):
            assert timeout_s is not None, "nothing would ever happen"
            self.clock.now += timeout_s
            return None
        self.clock.now += self.chance.random()
        return self._end(*self.running.pop(self.chance.randrange(len(self.running))))

    def wake(self) -> None:
        self.is_woken = True

    def cancel(self, grace_s: float) -> list[Report]:
        count = self.chance.randint(0, len(self.running))
        ended, self.running = self.running[:count], self.running[count:]
        return [self._end(*attempt) for attempt in ended]

    def close(self) -> None:
        assert not self.running

    def abort(self) -> None:
        self.running.clear()

    def _end(self, index: int, spec: AgentStepSpec, attempt: int) -> Report:
        ends = self.ends.get(index, [])
        end = ends[attempt - 1] if attempt <= len(ends) else "succeeded"
        error: Exception | None = {"raised": ValueError("x"), "after": RetryAfter(7.0)}.get(end)
        outcome = StepOutcome(spec.task_id, "s", spec.agent, end, end == "succeeded")
        wait_s = None
        if self.policy is not None and end in ("succeeded", "failed", "raised", "after"):
            wait_s = self.policy.rule.wait_after(spec, attempt, outcome, error)
        if end in ("succeeded", "failed"):
            return Report(index, end, outcome, None, 1.0, 0.1, "w", wait_s)  # type: ignore[arg-type]  # a Status
        status: Any = "raised" if end == "after" else end
        return evolve(failure(index, spec, status, StepError("E", end), 1.0, 0.1, "w"), retry_in=wait_s)


scripts = st.dictionaries(st.integers(0, 30), st.lists(st.sampled_from(ENDS), max_size=5), max_size=31)
retries = st.none() | st.builds(
    Retry,
    attempts=st.integers(1, 4),
    wait=st.sampled_from([0, 0.5, 3, 50, tenacity.wait_random(0, 3)]),
    on_timeout=st.booleans(),
    on_crash=st.booleans(),
    on_failure=st.booleans(),
)


def dispatch_of(
    specs: Any, bound: int, script: dict[int, list[str]], retry: Any, seed: int, lookahead: int = 0
) -> tuple[Dispatch, ScriptedSession]:
    clock = FakeClock()
    policy = None if retry is None else retry_policy(retry)
    session = ScriptedSession(clock, random.Random(seed), script, policy)
    return Dispatch(
        specs, session, Setting(bound=bound, lookahead=lookahead, policies=Policies(retry=policy), clock=clock)
    ), session


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 30), st.integers(1, 6), scripts, retries, st.integers(0, 2**32), st.booleans(), st.integers(0, 4))
def test_any_interleaving_gives_every_outcome_once(
    count: int, bound: int, script: dict[int, list[str]], retry: Any, seed: int, lazy: bool, lookahead: int
) -> None:
    """N specs give N outcomes, one each, never more at once than allowed, each with as many attempts as it is due."""
    specs = make_specs(count)
    dispatch, session = dispatch_of(iter(specs) if lazy else specs, bound, script, retry, seed, lookahead)
    reports = {report.index: report for report in _once_each(dispatch.reports())}
    session.close()
    assert sorted(reports) == list(range(count))
    assert session.most_at_once <= bound + lookahead
    for index, report in reports.items():
        statuses = [attempt.status for attempt in report.attempts] + [report.status]
        assert statuses == _expected(script.get(index, []), retry)
        assert report.outcome.task_id == specs[index].task_id
        assert len(statuses) == sum(started[0] == index for started in session.started)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 30), st.integers(1, 6), scripts, retries, st.integers(0, 2**32), st.integers(0, 40))
def test_an_interrupt_at_any_moment_gives_every_outcome_once(
    count: int, bound: int, script: dict[int, list[str]], retry: Any, seed: int, after: int
) -> None:
    """Whenever a run is given up, each spec has one outcome: what was done, or that it is cancelled."""
    specs = make_specs(count)
    dispatch, session = dispatch_of(specs, bound, script, retry, seed)
    reports: dict[int, Report] = {}
    for report in _once_each(dispatch.reports()):
        reports[report.index] = report
        if len(reports) > after:
            dispatch.interrupt()
    started = len(session.started)
    for report in _once_each(dispatch.rest()):
        assert report.index not in reports
        reports[report.index] = report
    assert len(session.started) == started, "nothing starts after an interrupt"
    assert sorted(reports) == list(range(count))
    for index, report in reports.items():
        assert (report.status == "cancelled") <= (len(reports) > after)
        tried = sum(begun[0] == index for begun in session.started)
        assert len(report.attempts) + (report.status != "cancelled") <= tried


@settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.integers(0, 2**32))
def test_no_attempt_begins_before_its_time(waits: list[float], seed: int) -> None:
    """Between the end of an attempt and the next one's start there is the wait that was decided, and little more."""
    wait = lambda state: waits[state.attempt_number - 1]  # noqa: E731 - a strategy
    script = {0: ["raised"] * len(waits)}
    dispatch, session = dispatch_of(make_specs(1), 1, script, Retry(len(waits) + 1, wait=wait), seed)
    (report,) = dispatch.reports()
    assert report.status == "succeeded"
    assert [attempt.wait_s for attempt in report.attempts] == waits
    for (_, _, before), (_, _, after), wait_s in zip(session.started, session.started[1:], waits, strict=False):
        assert after - before >= wait_s - 1e-6
        assert after - before <= wait_s + 1.0 + 1e-6


def test_waiting_steps_hold_no_place_but_their_number_is_bounded() -> None:
    """While steps back off others run in their place; but no more than so many wait, however long the input is."""
    read = 0

    def endless() -> Iterator[AgentStepSpec]:
        nonlocal read
        while True:
            read += 1
            yield AgentStepSpec(f"t{read}", "a", "", "")

    failing = {index: ["raised"] for index in range(3 * MAX_WAITING)}
    dispatch, session = dispatch_of(endless(), 4, failing, Retry(2, wait=1e6), seed=1)
    first = next(dispatch.reports())
    assert MAX_WAITING <= read <= MAX_WAITING + 4
    assert len(session.started) > MAX_WAITING
    assert first.attempts[0].wait_s == 1e6


def test_a_list_waits_for_no_step_that_backs_off() -> None:
    """Behind any number of steps that back off, the others of a list run at once."""
    specs = make_specs(MAX_WAITING + 500)
    failing = {index: ["raised"] for index in range(MAX_WAITING + 400)}
    dispatch, session = dispatch_of(specs, 4, failing, Retry(2, wait=1e6), seed=1)
    reports = list(dispatch.reports())
    assert len(reports) == len(specs)
    healthy_began = [began for index, _, began in session.started if index >= MAX_WAITING + 400]
    assert max(healthy_began) < 1e6


@pytest.mark.parametrize("expires_in", [0.0, 5.0])
def test_a_run_inside_a_step_ends_with_it(expires_in: float) -> None:
    """At the deadline of the step that a run is part of, the run is given up."""
    clock = FakeClock()
    session = ScriptedSession(clock, random.Random(3), {})
    endless = iter(lambda: make_specs(1)[0], None)
    dispatch = Dispatch(endless, session, Setting(bound=2, expires_at=clock.now + expires_in, clock=clock))
    reports = sum(1 for _ in dispatch.reports())
    assert dispatch.state.is_interrupted
    assert reports < 100
    assert clock.now >= 100 + expires_in


def _once_each(reports: Iterator[Report]) -> Iterator[Report]:
    seen = set()
    for report in reports:
        assert report.index not in seen
        seen.add(report.index)
        yield report


def _expected(ends: list[str], retry: Retry | None) -> list[str]:
    """Say how the attempts of a step end under `retry`, by the words of its documentation."""
    statuses = []
    for end in [*ends, "succeeded"]:
        statuses.append("raised" if end == "after" else end)
        if retry is None or len(statuses) == retry.attempts or not _is_worth_another(end, retry):
            break
    return statuses


def _is_worth_another(end: str, retry: Retry) -> bool:
    return {
        "succeeded": False,
        "failed": retry.on_failure,
        "raised": True,
        "after": True,
        "timed_out": retry.on_timeout,
        "crashed": retry.on_crash,
    }[end]
