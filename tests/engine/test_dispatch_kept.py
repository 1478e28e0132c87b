"""The runner's loop with a journal, limits and a budget, under any interleaving: see test_dispatch."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dispatch import FakeClock, ScriptedSession, retries, scripts

from fanout_sync import AgentStepSpec, Budget, JournalError, MemoryJournal, RateLimit
from fanout_sync.engine.dispatch import Dispatch, Setting
from fanout_sync.engine.plan import Policies
from fanout_sync.journal import OpenWorkflow
from fanout_sync.journal.identity import identity_of
from fanout_sync.journal.run_journal import RunJournal
from fanout_sync.limits.limiter import Limiter
from fanout_sync.limits.waiting_line import WaitingLine
from fanout_sync.records.report import Report
from fanout_sync.records.step_record import JournalRecord
from fanout_sync.retry.policy import Retry, RetryPolicy, retry_policy
from fanout_sync.testing import make_specs


@define(eq=False)
class WatchedWorkflow(OpenWorkflow):
    """Stands in for a store: knows what is written and what is synced, and may fail at a given write.

    Attributes:
        inner: Where it is kept.
        written: What a killed process would not lose.
        synced: What a power failure would not lose either.
        fails_at: At which write it fails from then on; never by default.
        unreadable: The step that cannot be read.
    """

    inner: OpenWorkflow
    written: set[str] = field(factory=set)
    synced: set[str] = field(factory=set)
    writes: int = 0
    fails_at: int | None = None
    unreadable: str | None = None

    def identities(self, task_ids: Any) -> dict[str, str | None]:
        return self.inner.identities(task_ids)

    def find(self, task_id: str) -> JournalRecord | None:
        if task_id == self.unreadable:
            raise JournalError("damaged")
        return self.inner.find(task_id)

    def write(self, records: Sequence[JournalRecord]) -> None:
        self.writes += 1
        if self.fails_at is not None and self.writes >= self.fails_at:
            raise JournalError("the disk is full")
        self.inner.write(records)
        self.written.update(record.task_id for record in records)

    def sync(self) -> None:
        if self.fails_at is not None and self.writes >= self.fails_at:
            raise JournalError("the disk is full")
        self.synced |= self.written

    def close(self) -> None:
        self.inner.close()


@define
class KeptSession(ScriptedSession):
    """Checks at each start what a kill at this moment would cost."""

    workflow: WatchedWorkflow | None = None
    bound: int = 1
    began: set[str] = field(factory=set)

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        ScriptedSession.start(self, index, spec, attempt, timeout_s)
        assert self.workflow is not None
        under_way = {running[1].task_id for running in self.running}
        # A step that waits for its next attempt is not under way, and is not done either.
        ended = {task_id for task_id in self.began if task_id not in self.workflow.written}
        self.began.add(spec.task_id)
        if self.policy is None:
            assert len(ended | under_way) <= self.bound, "more would be lost than may run at once"


def _kept(
    count: int, bound: int, script: dict[int, list[str]], retry: Any, seed: int, journal: MemoryJournal
) -> tuple[Dispatch, KeptSession, WatchedWorkflow]:
    clock = FakeClock()
    policy: RetryPolicy | None = None if retry is None else retry_policy(retry)
    run_journal = RunJournal(journal.workflow("w"), clock=clock)
    watched = WatchedWorkflow(run_journal._store)
    run_journal._store = watched
    specs = make_specs(count)
    run_journal.check(specs)
    session = KeptSession(clock, random.Random(seed), script, policy, workflow=watched, bound=bound)
    setting = Setting(bound=bound, lookahead=64, policies=Policies(retry=policy), clock=clock, journal=run_journal)
    dispatch = Dispatch(specs, session, setting)
    return dispatch, session, watched


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 40), st.integers(1, 20), scripts, retries, st.integers(0, 2**32))
def test_reports_are_durable_before_they_are_yielded(
    count: int, bound: int, script: dict[int, list[str]], retry: Any, seed: int
) -> None:
    """Each outcome once, none before it is synced; no more under way or unwritten than may run at once."""
    journal = MemoryJournal()
    dispatch, session, watched = _kept(count, bound, script, retry, seed, journal)
    seen: dict[int, Report] = {}
    for report in dispatch.reports():
        assert report.index not in seen
        assert report.outcome.task_id in watched.synced
        seen[report.index] = report
    session.close()
    watched.close()
    assert sorted(seen) == list(range(count))
    assert session.most_at_once <= bound
    again, session, watched = _kept(count, bound, {}, retry, seed, journal)
    reports = list(again.reports())
    watched.close()
    assert all(report.outcome.success for report in reports)
    failed = {index for index, report in seen.items() if not report.outcome.success}
    assert {started[0] for started in session.started} == failed, "only what failed is run again"


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 40), st.integers(1, 20), scripts, retries, st.integers(0, 2**32), st.integers(1, 10), st.booleans()
)
def test_a_journal_that_fails_loses_no_outcome(
    count: int, bound: int, script: dict[int, list[str]], retry: Any, seed: int, fails_at: int, interrupted: bool
) -> None:
    """Whenever it does: nothing more is started, each step that was has one outcome, the durable ones first."""
    dispatch, session, watched = _kept(count, bound, script, retry, seed, MemoryJournal())
    watched.fails_at = fails_at
    seen: dict[int, Report] = {}
    for report in dispatch.reports():
        assert report.outcome.task_id in watched.synced
        seen[report.index] = report
    started = len(session.started)
    if dispatch.state.journal_error is not None:
        if interrupted:
            dispatch.interrupt()
        for report in dispatch.rest():
            assert report.index not in seen
            seen[report.index] = report
    assert len(session.started) == started
    begun = {index for index, _, _ in session.started}
    assert begun <= set(seen)
    if not interrupted:
        assert begun == set(seen) or not dispatch.state.journal_error


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 30),
    st.integers(1, 6),
    scripts,
    retries,
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([None, 3, 60, 1000]),
    st.sampled_from([None, 4, 100]),
    st.sampled_from([None, 1, 3]),
)
def test_limits_in_any_interleaving_give_every_outcome_once(
    count: int,
    bound: int,
    script: dict[int, list[str]],
    retry: Any,
    seed: int,
    lazy: bool,
    per_minute: int | None,
    max_steps: int | None,
    max_failures: int | None,
) -> None:
    """With keys, a budget of steps and a breaker: each spec one outcome, and nobody waits for ever."""
    clock = FakeClock()
    policy: RetryPolicy | None = None if retry is None else retry_policy(retry)
    session = ScriptedSession(clock, random.Random(seed), script, policy)
    limits = [] if per_minute is None else [RateLimit(per_minute, key=lambda spec: spec.prompt[-1])]
    limiter = Limiter(limits, None if max_steps is None else Budget(max_steps=max_steps))
    specs = make_specs(count)
    dispatch = Dispatch(
        iter(specs) if lazy else specs,
        session,
        Setting(
            bound=bound,
            policies=Policies(retry=policy, max_failures=max_failures),
            clock=clock,
            waiting_line=WaitingLine(limiter),
        ),
    )
    limiter.begin_run(clock())
    reports = [report.index for report in dispatch.reports()]
    limiter.end_run(clock())
    assert sorted(reports) == list(range(count))
    assert session.most_at_once <= bound
    first_attempts = [started for started in session.started if started[1] == 1]
    assert max_steps is None or len(first_attempts) <= max_steps
    if per_minute is not None:
        by_key: dict[str, list[float]] = {}
        for index, _, at in session.started:
            by_key.setdefault(str(index)[-1], []).append(at)
        for starts in by_key.values():
            for first, later in zip(starts, starts[per_minute:], strict=False):
                assert later - first >= 60.0


@define
class SlowSession(ScriptedSession):
    """Stands in for a backend whose steps take long: time passes as far as the loop would wait."""

    ends_at: float = math.inf
    waits: int = 0

    def wait(self, timeout_s: float | None = None) -> Report | None:
        self.waits += 1
        assert self.waits < 1000, "a busy loop"
        if timeout_s is not None and self.clock.now + timeout_s < self.ends_at:
            self.clock.now += timeout_s
            return None
        self.clock.now = max(self.clock.now, self.ends_at)
        return self._end(*self.running.pop(0)) if self.running else None


def _slow(count: int, bound: int) -> tuple[Dispatch, SlowSession, WatchedWorkflow]:
    clock = FakeClock()
    run_journal = RunJournal(MemoryJournal().workflow("w"), clock=clock)
    watched = WatchedWorkflow(run_journal._store)
    run_journal._store = watched
    specs = make_specs(count)
    run_journal.check(specs)
    session = SlowSession(clock, random.Random(0), {}, ends_at=clock.now + 600)
    setting = Setting(bound=bound, clock=clock, journal=run_journal)
    return Dispatch(specs, session, setting), session, watched


@pytest.mark.parametrize("ends_after", [10.0, 10_000.0])
def test_a_run_out_of_time_does_not_poll(ends_after: float) -> None:
    """For what is still running: it does not look at the clock in the meantime."""
    clock = FakeClock()
    session = SlowSession(clock, random.Random(0), {}, ends_at=clock.now + ends_after)
    limiter = Limiter([], Budget(max_seconds=0.5))
    limiter.begin_run(clock())
    dispatch = Dispatch(make_specs(9), session, Setting(bound=4, clock=clock, waiting_line=WaitingLine(limiter)))
    reports = list(dispatch.reports())
    assert [report.status for report in reports].count("cancelled") == 5
    assert len(reports) == 9


def test_a_run_whose_journal_has_failed_does_not_poll() -> None:
    """For the steps that were started, whatever is overdue by then."""
    dispatch, session, watched = _slow(3, 3)
    watched.fails_at = 1
    session.ends_at = session.clock.now
    assert list(dispatch.reports()) == []
    session.ends_at = session.clock.now + 10_000
    assert sorted(report.index for report in dispatch.rest()) == [0, 1, 2]


def test_steps_that_back_off_do_not_delay_others_under_a_budget() -> None:
    """Nor under a limit for all: their slots are free."""
    clock = FakeClock()
    policy = retry_policy(Retry(2, wait=1e6))
    for limiter in (Limiter([], Budget(max_steps=1000)), Limiter([RateLimit(10**6)])):
        session = ScriptedSession(clock, random.Random(1), {index: ["raised"] for index in range(8)}, policy)
        began = clock.now
        specs = make_specs(20)
        setting = Setting(bound=2, policies=Policies(retry=policy), clock=clock, waiting_line=WaitingLine(limiter))
        dispatch = Dispatch(specs, session, setting)
        assert len(list(dispatch.reports())) == 20
        healthy = [at for index, _, at in session.started if index >= 8]
        assert max(healthy) - began < 1e6


def test_steps_read_before_the_journal_failed_are_not_lost() -> None:
    """Steps that it had already given are among the rest."""
    journal = MemoryJournal()
    dispatch, _, watched = _kept(6, 6, {}, None, 3, journal)
    list(dispatch.reports())
    watched.close()
    dispatch, _, watched = _kept(6, 6, {}, None, 3, journal)
    watched.unreadable = "t4"
    reports = [*dispatch.reports(), *dispatch.rest()]
    assert sorted(report.index for report in reports) == [0, 1, 2, 3]


def test_ten_thousand_keys_under_a_limit_for_all() -> None:
    """Those that wait are not all asked whenever one may start: the limiter is asked a few times a step."""
    clock = FakeClock()
    limiter = Limiter([RateLimit(600), RateLimit(60, key=lambda spec: spec.task_id)])
    asked = 0
    admit = limiter.admit

    def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return admit(*arguments)

    limiter.admit = counted  # type: ignore[assignment,method-assign]  # to count the calls
    session = ScriptedSession(clock, random.Random(1), {})
    dispatch = Dispatch(make_specs(2000), session, Setting(bound=8, clock=clock, waiting_line=WaitingLine(limiter)))
    assert len(list(dispatch.reports())) == 2000
    assert asked < 20 * 2000


@pytest.mark.parametrize(
    "spec",
    [
        AgentStepSpec("t", "a", "d", "p"),
        AgentStepSpec('"\\\n\x00\x7f', "ä", "\u2028 \U0001f600", "", 2**64 - 1, "s", {"b": [1, 1.5, None], "a": "ö"}),
        AgentStepSpec("t", "a", "d", "p", 0, "", False),
    ],
)
def test_the_identity_of_a_step(spec: AgentStepSpec) -> None:
    """It is the SHA-256 of the canonical JSON of the workflow's id and every field of the spec."""
    fields = {name: getattr(spec, name) for name in AgentStepSpec.__match_args__}
    canonical = json.dumps({"workflow_id": 'w"ö', **fields}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert identity_of('w"ö', spec) == hashlib.sha256(canonical.encode()).hexdigest()
    assert len(fields) == 7


def test_a_journal_that_has_failed_is_not_used_again_in_the_run() -> None:
    """After it has failed nothing more is journalled: what is missing must not be taken for done."""
    dispatch, _, watched = _kept(5, 1, {}, Retry(1), 7, MemoryJournal())
    watched.fails_at = 2
    reports = list(dispatch.reports())
    watched.fails_at = None
    reports += dispatch.rest()
    assert [report.index for report in reports] == [0, 1]
    assert watched.written == {"t0"}
