"""The breaker: after so many failed steps no more are started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fanout_sync import (
    AgentStepSpec,
    EventChannel,
    OptionError,
    Retry,
    RunEnd,
    Runner,
    StepOutcome,
    SubagentStart,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

MakeRunner = Callable[..., Runner]


def _raise(spec: AgentStepSpec) -> StepOutcome:
    raise PermissionError("wrong API key")


def _all_failing(ledger: Ledger, count: int, concurrency: int = 4) -> LedgerExecutor:
    return LedgerExecutor(ledger, {f"t{n}": _raise for n in range(count)}, concurrency)


def test_no_more_steps_are_started_after_max_failures(make_runner: MakeRunner, ledger: Ledger) -> None:
    """Of 2 000 steps that all fail few are started, and every one has its outcome, in order."""
    run = make_runner(_all_failing(ledger, 2000), max_failures=3).run(make_specs(2000))
    assert [outcome.task_id for outcome in run] == [f"t{n}" for n in range(2000)]
    assert not run.succeeded
    statuses = [record.status for record in run.records]
    begun = statuses.count("raised")
    assert 3 <= begun <= 3 + 3, "those that were running when the third one failed are finished"
    assert statuses.count("cancelled") == 2000 - begun
    assert ledger.counts().total() == begun
    assert run[-1].output == "no more steps are started: 3 steps had failed by then, which is max_failures"


def test_fewer_failures_stop_nothing(make_runner: MakeRunner, ledger: Ledger) -> None:
    """One less than the limit, and all is run."""
    executor = LedgerExecutor(ledger, {f"t{n}": _raise for n in (1, 5)})
    run = make_runner(executor, max_failures=3).run(make_specs(50))
    assert len(run.succeeded) == 48


def test_an_input_that_is_no_list_is_read_to_its_end(ledger: Ledger) -> None:
    """There is one outcome for each spec, whatever the input."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(300)

    runner = Runner(_all_failing(ledger, 300, concurrency=1), max_failures=1)
    outcomes = list(runner.stream(specs()))
    assert [outcome.task_id for outcome in outcomes] == [f"t{n}" for n in range(300)]
    assert ledger.counts() == {"t0": 1}
    assert outcomes[1].output == "no more steps are started: 1 step had failed by then, which is max_failures"


def test_retries_do_not_count(ledger: Ledger) -> None:
    """A step that fails twice and then succeeds has not failed; one that fails three times has, once."""
    tries: dict[str, int] = {}

    def at_third(spec: AgentStepSpec) -> StepOutcome:
        tries[spec.task_id] = tries.get(spec.task_id, 0) + 1
        if tries[spec.task_id] < 3:
            raise ValueError("not yet")
        return StepOutcome.completed(spec, "at last")

    executor = LedgerExecutor(ledger, {f"t{n}": at_third for n in range(4)}, concurrency=1)
    run = Runner(executor, max_failures=1, retry=Retry(3, wait=0)).run(make_specs(4))
    assert len(run.succeeded) == 4


def test_no_more_retries_are_started_after_max_failures(ledger: Ledger) -> None:
    """Steps that wait for another attempt make room, but not for the whole list to be tried once."""
    runner = Runner(_all_failing(ledger, 2000), max_failures=2, retry=Retry(3, wait=0.05))
    run = runner.run(make_specs(2000))
    assert len(run) == 2000
    assert len(ledger.counts()) <= 2 + 2 * 4
    assert ledger.counts().total() <= 3 * (2 + 2 * 4)


def test_steps_that_wait_for_another_attempt_are_cancelled(ledger: Ledger) -> None:
    """They are started no more; their record has the attempts they had."""
    executor = LedgerExecutor(ledger, {"t0": _raise, "t1": lambda spec: StepOutcome.failed("t1", "tester", "no")}, 1)
    run = Runner(executor, max_failures=1, retry=Retry(2, wait=3600)).run(make_specs(3))
    assert [record.status for record in run.records] == ["cancelled", "failed", "cancelled"]
    assert run[0].output.endswith("; attempt 1: PermissionError: wrong API key")
    assert len(run.records[0].attempts) == 1
    assert ledger.counts() == {"t0": 1, "t1": 1}


def test_events_tell_only_of_what_was_started(ledger: Ledger) -> None:
    """A step that is never started has no start and no end; the end of the run counts it as cancelled."""
    events: list[Any] = []
    with EventChannel() as channel:
        channel.listen(events.append)
        Runner(_all_failing(ledger, 20, concurrency=1), max_failures=2, event_tx=channel).run(make_specs(20))
    assert [event.task_id for event in events if isinstance(event, SubagentStart)] == ["t0", "t1"]
    end = events[-1]
    assert isinstance(end, RunEnd)
    assert (end.succeeded, end.failed, end.cancelled) == (0, 2, 18)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3"])
def test_the_limit_is_a_positive_int(count: Any, ledger: Ledger) -> None:
    """It is refused at construction, by name."""
    with pytest.raises(OptionError, match="max_failures must be an int of at least 1, got"):
        Runner(LedgerExecutor(ledger), max_failures=count)
