"""Failures that another attempt would not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import AgentExecutor, AgentStepSpec, Retry, Runner, StepOutcome
from fanout_sync.events.senders import EventSender
from fanout_sync.executors.answers import FinalOutcome, RefusedStep
from fanout_sync.testing import make_specs


class Failing(AgentExecutor):
    """Fails for good, or refuses its step."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if self.refuses:
            return RefusedStep.because(spec, "it cannot do that")
        return FinalOutcome(spec.task_id, "session-1", spec.agent, "wrong key", False)


ALWAYS = Retry(5, wait=0, on_failure=True, retry_on=BaseException)


def test_a_final_failure_is_not_tried_again(make_runner: Callable[..., Runner]) -> None:
    """A failed outcome that is final has one attempt, whatever `retry` says, and arrives as a plain outcome."""
    run = make_runner(Failing(refuses=False), retry=ALWAYS).run(make_specs(1))
    assert list(run) == [StepOutcome("t0", "session-1", "tester", "wrong key", False)]
    assert (run.records[0].status, len(run.records[0].attempts)) == ("failed", 1)


def test_a_refused_step_is_not_tried_again(make_runner: Callable[..., Runner]) -> None:
    """A step that its executor refuses is invalid, has no attempt, and is not tried again."""
    run = make_runner(Failing(refuses=True), retry=ALWAYS).run(make_specs(1))
    assert list(run) == [StepOutcome.failed("t0", "tester", "it cannot do that")]
    assert (run.records[0].status, run.records[0].attempts) == ("invalid", ())


@pytest.mark.parametrize("refuses", [True, False])
def test_without_retries(make_runner: Callable[..., Runner], refuses: bool) -> None:
    """Without `retry` such outcomes are what they are with it."""
    outcomes: Any = make_runner(Failing(refuses)).run(make_specs(2))
    assert [type(outcome) for outcome in outcomes] == [StepOutcome, StepOutcome]
