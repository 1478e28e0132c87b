"""Executors and backends that cannot be used are refused when the runner is made, and the error says what to write."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import tenacity

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    FunctionExecutor,
    MemoryJournal,
    OptionError,
    ProcessBackend,
    RateLimit,
    Retry,
    Runner,
    SqliteJournal,
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


# Other methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("setup", lambda self, client: None, "setup of Mine must take (self), but its signature is (self, client)"),
        (
            "teardown",
            lambda self, client: None,
            "teardown of Mine must take (self), but its signature is (self, client)",
        ),
        ("timeout_for", lambda self: 3, "timeout_for of Mine must take (self, spec), but its signature is (self)"),
        ("timeout_for", 3, "timeout_for of Mine must take (self, spec), but it is int 3"),
        ("concurrency_hint", 3, "concurrency_hint of Mine must take (self), but it is int 3"),
        (
            "concurrency_hint",
            lambda self, n: 3,
            "concurrency_hint of Mine must take (self), but its signature is (self, n)",
        ),
    ],
)
def test_other_methods_that_cannot_be_used_are_refused(name: str, method: Any, message: str) -> None:
    """When the runner is made, and not by each step or worker."""
    executor: Any = type("Mine", (Echo,), {name: method})()
    with pytest.raises(OptionError) as caught:
        Runner(executor)
    assert str(caught.value) == message


def test_methods_with_defaults_are_accepted() -> None:
    """Whatever can be called as the runner calls it; a hint is not asked for where nobody needs it."""

    class Mine(Echo):
        def setup(self, client: Any = None) -> None: ...
        def teardown(self, *args: Any) -> None: ...
        def timeout_for(self, spec: AgentStepSpec, most: float = 5.0) -> float:
            return most

        def concurrency_hint(self) -> int:
            raise LookupError("nobody needs it")

    run = Runner(Mine(), max_concurrency=1).run([AgentStepSpec("t", "a", "", "hello")])
    assert run[0].output == "hello"


# Classes in the place of objects --------------------------------------------------------------------------------------


class WithPath(Echo):
    def __init__(self, path: str) -> None:
        self.path = path


class Unfinished(AgentExecutor):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": WithPath}, "got the class WithPath; call it: WithPath(…)"),
        (
            {"executor": Unfinished},
            "the class Unfinished, which is abstract: call a subclass of it that has execute_step",
        ),
        ({"executor": AgentExecutor}, "which is abstract: call a subclass of it that has execute_step"),
        ({"budget": Budget}, "got the class Budget; call it: Budget(…)"),
        ({"rate_limit": RateLimit}, "got the class RateLimit; call it: RateLimit(…)"),
        ({"rate_limit": [RateLimit]}, "got the class RateLimit; call it: RateLimit(…)"),
        ({"retry": Retry}, "got the class Retry; call it: Retry(…)"),
        ({"retry": tenacity.Retrying}, "got the class Retrying; call it: Retrying(…)"),
        ({"journal": SqliteJournal}, "got the class SqliteJournal; call it: SqliteJournal(…)"),
        ({"journal": MemoryJournal}, "got the class MemoryJournal; call it: MemoryJournal()"),
    ],
)
def test_a_class_in_the_place_of_an_object_is_refused(options: dict[str, Any], message: str) -> None:
    """The error says how to call it, or that it cannot be called."""
    with pytest.raises(OptionError) as caught:
        Runner(**{"executor": FunctionExecutor(), **options})
    assert message in str(caught.value)
