"""`FunctionExecutor`: what a function returns, and which functions it accepts."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Literal

import pytest

from fanout_sync import (
    AgentStepSpec,
    EventChannel,
    FunctionExecutor,
    OptionError,
    StepOutcome,
    TextDelta,
    execute_steps_parallel,
)

SPEC = AgentStepSpec("t", "tester", "", "hello")


def outcome_of(function: Any, event_tx: Any = None) -> StepOutcome:
    return FunctionExecutor({"tester": function}).execute_step(SPEC, event_tx)


def test_a_str_is_the_output() -> None:
    """A returned `str` is the output of a successful outcome."""
    assert outcome_of(lambda spec: spec.prompt.upper()) == StepOutcome("t", "task-run-t", "tester", "HELLO", True)


def test_a_returned_outcome_is_passed_on_unchanged() -> None:
    """A function may return a failed outcome of its own."""
    failed = StepOutcome.failed("t", "tester", "no")
    assert outcome_of(lambda spec: failed) is failed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        ([], "[]"),
        (0, "0"),
        (False, "false"),
        (1e300, "1e300"),
    ],
)
def test_a_json_value_is_structured(value: Any, text: str) -> None:
    """Any other JSON value becomes `structured`, and its JSON text the output."""
    outcome = outcome_of(lambda spec: value)
    assert (outcome.success, outcome.structured, outcome.output) == (True, value, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "returned None; return a str"),
        (object(), "returned object"),
        ({(1, 2): 3}, "expected a string as key"),
        (b"\xff", "returned bytes b'\\xff'"),
        ([float("nan")], "finite"),
        (SPEC, "returned AgentStepSpec"),
    ],
)
def test_any_other_value_makes_a_failed_outcome(value: Any, text: str) -> None:
    """A value that is not JSON fails the step, and the output describes it."""
    outcome = outcome_of(lambda spec: value)
    assert not outcome.success
    assert "agent 'tester'" in outcome.output
    assert text in outcome.output


def test_a_step_of_an_unregistered_agent_fails() -> None:
    """The output names the unknown agent and the known ones."""
    executor = FunctionExecutor({"b": len, "a": len})
    outcome = executor.execute_step(SPEC)
    assert outcome == StepOutcome.failed("t", "tester", "no agent 'tester' is registered; known agents: a, b")
    assert FunctionExecutor().execute_step(SPEC).output.endswith("known agents: none")


def test_register_is_a_decorator() -> None:
    """`register` adds a function under a name, and returns it unchanged."""
    executor = FunctionExecutor(concurrency=3)

    @executor.register("tester")
    def shout(spec: AgentStepSpec) -> str:
        return spec.prompt.upper()

    assert shout(SPEC) == "HELLO"
    assert executor.execute_step(SPEC).output == "HELLO"
    assert executor.concurrency_hint() == 3


class Agent:
    def __call__(self, spec: AgentStepSpec, event_tx: Any) -> str:
        return f"object {event_tx is None}"

    def method(self, spec: AgentStepSpec) -> str:
        return "method"


def _with_default(spec: AgentStepSpec, event_tx: Any = None, *, loud: bool = False) -> str:
    return f"default {event_tx is None} {loud}"


@pytest.mark.parametrize(
    ("function", "output"),
    [
        (Agent(), "object True"),
        (Agent().method, "method"),
        (_with_default, "default True False"),
        (functools.partial(_with_default, loud=True), "default True True"),
        (lambda *args: str(len(args)), "1"),
    ],
    ids=["callable", "method", "default", "partial", "star"],
)
def test_any_callable_with_one_or_two_parameters_is_an_agent(function: Any, output: str) -> None:
    """Methods, partials and callable objects are agents, too."""
    assert outcome_of(function).output == output


def test_events_of_a_function_reach_the_channel() -> None:
    """A function with two parameters gets the event sender."""
    channel = EventChannel()
    receiver = channel.subscribe()

    def agent(spec: AgentStepSpec, event_tx: Any) -> str:
        event_tx.send(TextDelta(spec.task_id, "half"))
        return "whole"

    assert outcome_of(agent, channel).output == "whole"
    assert receiver.recv(0) == TextDelta("t", "half")


class AsyncAgent:
    async def __call__(self, spec: AgentStepSpec) -> str:
        await asyncio.sleep(0)
        return "async object"


async def _async_function(spec: AgentStepSpec) -> str:
    await asyncio.sleep(0)
    return "async function"


@pytest.mark.parametrize(
    ("function", "output"),
    [
        (_async_function, "async function"),
        (AsyncAgent(), "async object"),
        (functools.partial(_async_function), "async function"),
        (lambda spec: _async_function(spec), "async function"),
    ],
    ids=["function", "object", "partial", "returned"],
)
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_async_agents_are_awaited(function: Any, output: str, backend: Literal["thread", "process"]) -> None:
    """Whatever kind of callable returns a coroutine, the coroutine is run to its end."""
    outcomes = execute_steps_parallel(FunctionExecutor({"tester": function}), [SPEC] * 3, backend=backend)
    assert [outcome.output for outcome in outcomes] == [output] * 3


@pytest.mark.parametrize("function", [lambda: "none", lambda a, b, c: "three", lambda *, spec: "keyword"])
def test_a_function_that_cannot_take_a_spec_is_refused(function: Any) -> None:
    """It is refused when it is registered; the error says which parameters are expected."""
    with pytest.raises(OptionError, match=r"agent 'tester' must take \(spec\) or \(spec, event_tx\)"):
        FunctionExecutor({"tester": function})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([len],), "functions must map agent names to functions, got list"),
        (({"tester": 5},), "agent 'tester' must be a function, got int 5"),
        (({5: len},), "the name of an agent must be a str, got int 5"),
    ],
)
def test_unusable_arguments_are_refused(arguments: Any, message: str) -> None:
    """The error says what is expected and what came."""
    with pytest.raises(OptionError, match=message):
        FunctionExecutor(*arguments)
    with pytest.raises(OptionError, match="concurrency must be an int of at least 1"):
        FunctionExecutor(concurrency=0)


def test_async_agents_run_while_a_loop_is_running() -> None:
    """Called directly from a coroutine, as in a notebook's cell, an async agent still runs to its end."""

    async def main() -> StepOutcome:
        return outcome_of(_async_function)

    assert asyncio.run(main()).output == "async function"
