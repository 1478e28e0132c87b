"""The usage that steps report: on every backend, and however the step ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    EventChannel,
    FunctionExecutor,
    OptionError,
    ProcessBackend,
    Retry,
    Runner,
    StepOutcome,
    Usage,
    current_step,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


class Spender(AgentExecutor):
    """Reports usage in two ways, then does what its prompt says."""

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        current_step().add_usage(prompt_tokens=100, completion_tokens=20, cost_usd=0.25)
        current_step().add_usage(completion_tokens=3)
        if event_tx is not None:
            event_tx.usage(cost_usd=0.5)
        if spec.prompt == "raise":
            raise ValueError("spent it all the same")
        if spec.prompt == "die":
            os._exit(3)
        if spec.prompt == "hang":
            time.sleep(3600)
        return StepOutcome.completed(spec, spec.prompt)


def _spec(prompt: str) -> AgentStepSpec:
    return AgentStepSpec(f"t-{prompt}", "tester", "", prompt)


def test_usage_is_in_the_record(make_runner: MakeRunner) -> None:
    """The reports of a step are added up, also if the step raises; without reports `usage` is `None`."""
    run = make_runner(Spender()).run([_spec("fine"), _spec("raise")])
    assert [record.usage for record in run.records] == [Usage(100, 23, 0.25)] * 2
    assert run.records[0].usage is not None
    assert run.records[0].usage.tokens == 123
    run = make_runner(FunctionExecutor({"tester": lambda spec: "free"})).run(make_specs(1))
    assert run.records[0].usage is None


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_usage_can_be_reported_with_event_tx(backend: Any) -> None:
    """`event_tx.usage` does the same as `current_step().add_usage`."""
    run = Runner(Spender(), backend=backend, event_tx=EventChannel()).run([_spec("fine")])
    assert run.records[0].usage == Usage(100, 23, 0.75)


def test_usage_from_the_processes_of_a_foreign_pool_is_in_the_record() -> None:
    """A process of a foreign pool returns the usage of a step with its outcome."""
    with ProcessPoolExecutor(1) as pool:
        run = Runner(Spender(), backend=pool, event_tx=EventChannel()).run([_spec("fine"), _spec("raise")])
    assert [record.usage for record in run.records] == [Usage(100, 23, 0.75)] * 2


def test_usage_of_steps_that_are_killed_counts() -> None:
    """Usage that a step reported before a crash or a timeout is in its record."""
    run = Runner(Spender(), backend="process", timeout=5).run([_spec("die"), _spec("fine")])
    assert [record.status for record in run.records] == ["crashed", "succeeded"]
    assert [record.usage for record in run.records] == [Usage(100, 23, 0.25)] * 2
    run = Runner(Spender(), backend="process", timeout=0.3).run([_spec("hang")])
    assert run.records[0].status == "timed_out"
    assert run.records[0].usage == Usage(100, 23, 0.25)


def test_usage_of_all_attempts_counts(make_runner: MakeRunner) -> None:
    """A step that is tried three times has used up three times as much."""
    run = make_runner(Spender(), retry=Retry(3, wait=0)).run([_spec("raise")])
    assert run.records[0].usage == Usage(300, 69, 0.75)


def test_usage_in_a_stream_counts() -> None:
    """A stream has no records, but its budget counts what its steps report."""
    budget = Budget(max_tokens=10**6)
    stream = Runner(Spender(), backend=ProcessBackend(), budget=budget).stream(_spec(f"n{n}") for n in range(3))
    assert len(list(stream)) == 3
    assert "369 of 1000000 tokens" in budget.summary_line()


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens must be an int of at least 0, got int -1"),
        ({"completion_tokens": 1.5}, "completion_tokens must be an int of at least 0, got float 1.5"),
        ({"prompt_tokens": None}, "prompt_tokens must be an int of at least 0, got None"),
        ({"prompt_tokens": 2**63}, "prompt_tokens must be less than 2[*][*]63, got int"),
        ({"prompt_tokens": True}, "prompt_tokens must be an int of at least 0, got bool True"),
        ({"cost_usd": float("nan")}, "cost_usd must be a number of at least 0, got float nan"),
        ({"cost_usd": "1"}, "cost_usd must be a number of at least 0, got str '1'"),
    ],
)
def test_invalid_usage_is_refused(usage: dict[str, Any], message: str) -> None:
    """A step that reports it fails with an error that names the argument, and nothing is counted."""
    with pytest.raises(OptionError, match=message):
        Usage(**usage)
    run = Runner(FunctionExecutor({"tester": lambda spec: current_step().add_usage(**usage)})).run(make_specs(1))
    assert message.replace("[*]", "*") in run[0].output
    assert run.records[0].usage is None


def test_usages_add_up() -> None:
    """Usages are added field by field; other types cannot be added."""
    assert Usage(1, 2, 0.5) + Usage(10, 20, 0.25) == Usage(11, 22, 0.75)
    with pytest.raises(TypeError):
        Usage() + 1  # type: ignore[operator]  # the wrong type is what is tested
