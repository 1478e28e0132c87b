"""Executors and backends that cannot be used are refused when the runner is made, and the error says what to write."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    FunctionExecutor,
    OptionError,
    ProcessBackend,
    Runner,
    StepOutcome,
    execute_steps_parallel,
)


class Echo(AgentExecutor):
    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        return StepOutcome.completed(spec, spec.prompt)


def executor_with(method: Any) -> AgentExecutor:
    executor: AgentExecutor = type("Mine", (AgentExecutor,), {"execute_step": method})()
    return executor


def _outcome(spec: AgentStepSpec) -> StepOutcome:
    return StepOutcome.completed(spec, spec.prompt)


def _without_events(function: Callable[..., StepOutcome]) -> Callable[..., StepOutcome]:
    @functools.wraps(function)
    def wrapper(self: Any, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        return function(self, spec)

    return wrapper


class Agent:
    def __call__(self, spec: AgentStepSpec, event_tx: Any) -> StepOutcome:
        return _outcome(spec)


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        (lambda self, spec: None, "its signature is (self, spec)"),
        (lambda self, spec, *, event_tx=None: None, "its signature is (self, spec, *, event_tx=None)"),
        (lambda self, spec, event_tx, model: None, "its signature is (self, spec, event_tx, model)"),
        (lambda self: None, "its signature is (self)"),
        (staticmethod(lambda spec: None), "its signature is (spec)"),
        (functools.partialmethod(lambda self, model, spec: None, "m"), "its signature is (spec)"),
        ("text", "it is str 'text'"),
    ],
)
def test_an_execute_step_that_cannot_be_called_is_refused(method: Any, signature: str) -> None:
    """The error says what it must take and what it takes, before any step has failed over it."""
    expected = f"execute_step of Mine must take (self, spec, event_tx=None), but {signature}"
    with pytest.raises(OptionError) as caught:
        Runner(executor_with(method))
    assert str(caught.value) == expected
    with pytest.raises(OptionError):
        execute_steps_parallel(executor_with(method), [])


@pytest.mark.parametrize(
    "method",
    [
        lambda self, spec, event_tx: _outcome(spec),
        lambda self, spec, event_tx=None, model="small": _outcome(spec),
        lambda *args: _outcome(args[1]),
        lambda self, *args, **options: _outcome(args[0]),
        staticmethod(lambda spec, event_tx=None: _outcome(spec)),
        classmethod(lambda cls, spec, event_tx=None: _outcome(spec)),
        functools.partialmethod(lambda self, model, spec, event_tx=None: _outcome(spec), "small"),
        _without_events(lambda self, spec: _outcome(spec)),
        Agent(),
        MagicMock(side_effect=lambda spec, event_tx: _outcome(spec)),
    ],
    ids=["plain", "more", "star", "rest", "static", "class", "partial", "decorated", "object", "mock"],
)
def test_any_execute_step_that_can_be_called_is_accepted(method: Any) -> None:
    """Whatever takes a spec and a sender by position runs."""
    outcomes = execute_steps_parallel(executor_with(method), [AgentStepSpec("t", "a", "", "hello")])
    assert [outcome.output for outcome in outcomes] == ["hello"]


def test_an_imitation_of_an_executor_is_accepted() -> None:
    """What `create_autospec` makes of an executor's class can be given to a runner."""
    imitation = create_autospec(Echo, instance=True)
    imitation.thread_safe = True
    imitation.concurrency_hint.return_value = 2
    imitation.timeout_for.return_value = None
    imitation.execute_step.side_effect = lambda spec, event_tx: _outcome(spec)
    assert Runner(imitation).run([AgentStepSpec("t", "a", "", "hello")])[0].output == "hello"


def ask(spec: AgentStepSpec) -> str:
    return spec.prompt


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (Echo, "got the class Echo; call it: Echo()"),
        ({"ask": ask}, "wrap it: FunctionExecutor({…})"),
        (ask, "wrap it: FunctionExecutor({'ask': ask})"),
        (lambda spec: "", "wrap it: FunctionExecutor({…})"),
        (functools.partial(ask), "wrap it: FunctionExecutor({…})"),
        (len, "wrap it: FunctionExecutor({'len': len})"),
        (Agent(), "wrap it: FunctionExecutor({…})"),
        (ProcessBackend, "subclass AgentExecutor, or wrap functions in a FunctionExecutor"),
        ("ask", "got str 'ask'; subclass AgentExecutor"),
    ],
)
def test_what_is_no_executor_is_refused(executor: Any, message: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(OptionError, match="executor must be an AgentExecutor, got ") as caught:
        Runner(executor)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", [ProcessBackend, concurrent.futures.ThreadPoolExecutor])
def test_the_class_of_a_backend_is_refused(backend: type) -> None:
    """The error says that it has to be called."""
    with pytest.raises(OptionError) as caught:
        Runner(FunctionExecutor(), backend=backend)  # type: ignore[arg-type]  # the mistake in question
    assert f"got the class {backend.__name__}; call it: {backend.__name__}()" in str(caught.value)
