"""Whether a step should stop by itself."""

from __future__ import annotations

from contextvars import copy_context
from time import monotonic

from fanout_sync import AgentStepSpec, FunctionExecutor, Runner, current_step
from fanout_sync.executors.attempt import run_attempt
from fanout_sync.executors.current_step import StopSignal
from fanout_sync.limits.usage_meter import RunMeter
from fanout_sync.testing import make_specs


def test_cancelled_is_true_when_the_step_should_stop() -> None:
    """A step that loops while it is not cancelled ends at its deadline."""

    def poll(spec: AgentStepSpec) -> str:
        assert not current_step().cancelled
        while not current_step().cancelled:
            current_step().cancelled.wait(0.01)
        assert current_step().cancelled.is_set()
        return spec.prompt

    run = Runner(FunctionExecutor({"tester": poll}), timeout=0.2).run(make_specs(2))
    assert [record.status for record in run.records] == ["timed_out", "timed_out"]


def test_a_step_that_stops_at_its_deadline_has_timed_out() -> None:
    """What told the step to stop decides, not the seconds that its own code took: those begin a little later."""
    deadline = monotonic()
    step = make_specs(1)[0], 0, 1, 60.0, deadline, StopSignal(), RunMeter()
    executor = FunctionExecutor({"tester": lambda spec: spec.prompt})
    report = copy_context().run(run_attempt, executor, step, None, "worker")
    assert report.status == "timed_out"
