"""Which parameter of an agent's function gets the event sender: only one that is meant for it."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, Event, EventChannel, FunctionExecutor, OptionError, Runner, TextDelta

SPEC = AgentStepSpec("t", "tester", "", "hello")


class Sender:
    """An event sender that is told from everything else."""

    def send(self, event: Event) -> None:
        raise NotImplementedError

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        raise NotImplementedError


SENDER = Sender()


def told(*values: Any) -> list[Any]:
    """Return the arguments that a function got, as what it can return."""
    return ["spec" if value is SPEC else "sender" if value is SENDER else value for value in values]


def arguments_of(function: Any) -> Any:
    outcome = FunctionExecutor({"tester": function}).execute_step(SPEC, SENDER)
    assert outcome.success, outcome.output
    return outcome.structured


class Agent:
    def __call__(self, spec: Any, model: str = "small") -> Any:
        return told(spec, model)

    def method(self, spec: Any, model: str = "small") -> Any:
        return told(spec, model)

    @classmethod
    def of_the_class(cls, spec: Any, retries: int = 3, *, event_tx: Any = None) -> Any:
        return told(spec, retries, event_tx)

    @staticmethod
    def static(spec: Any, event_tx: Any = None) -> Any:
        return told(spec, event_tx)


def with_a_model(spec: Any, model: str = "small") -> Any:
    return told(spec, model)


def with_both(spec: Any, model: str = "small", event_tx: Any = None) -> Any:
    return told(spec, model, event_tx)


def any_second(spec: Any, sender: Any) -> Any:
    return told(spec, sender)


def sender_first(event_tx: Any, spec: Any) -> Any:
    return told(event_tx, spec)


def only_by_position(spec: Any, model: str = "small", event_tx: Any = None, /) -> Any:
    return told(spec, model, event_tx)


def only_by_keyword(spec: Any, *, event_tx: Any) -> Any:
    return told(spec, event_tx)


def with_more(spec: Any, *more: Any, **others: Any) -> Any:
    return told(spec, *more, *others)


async def with_a_model_async(spec: Any, model: str = "small") -> Any:
    await asyncio.sleep(0)
    return told(spec, model)


async def by_keyword_async(spec: Any, model: str = "small", *, event_tx: Any) -> Any:
    await asyncio.sleep(0)
    return told(spec, model, event_tx)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (with_a_model, ["spec", "small"]),
        (Agent(), ["spec", "small"]),
        (Agent().method, ["spec", "small"]),
        (with_a_model_async, ["spec", "small"]),
        (functools.partial(with_a_model), ["spec", "small"]),
        (lambda spec, *, model="small": told(spec, model), ["spec", "small"]),
        (lambda spec=None, model="small": told(spec, model), ["spec", "small"]),
        (with_more, ["spec"]),
        (lambda *args: told(*args), ["spec"]),
        (functools.partial(with_both, event_tx="mine"), ["spec", "small", "mine"]),
    ],
)
def test_other_parameters_keep_their_defaults(function: Any, arguments: list[Any]) -> None:
    """A second parameter that has a default, and whatever takes any arguments, does not get the event sender."""
    assert arguments_of(function) == arguments


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda spec, event_tx: told(spec, event_tx), ["spec", "sender"]),
        (lambda spec, event_tx=None: told(spec, event_tx), ["spec", "sender"]),
        (with_both, ["spec", "small", "sender"]),
        (functools.partial(with_both, model="large"), ["spec", "large", "sender"]),
        (functools.partial(sender_first), ["sender", "spec"]),
        (only_by_position, ["spec", "small", "sender"]),
        (only_by_keyword, ["spec", "sender"]),
        (by_keyword_async, ["spec", "small", "sender"]),
        (Agent.of_the_class, ["spec", 3, "sender"]),
        (Agent.static, ["spec", "sender"]),
        (logged(Agent.static), ["spec", "sender"]),
        (lambda spec, *more, event_tx=None, **others: told(spec, event_tx, *more, *others), ["spec", "sender"]),
        (any_second, ["spec", "sender"]),
        (functools.partial(any_second), ["spec", "sender"]),
        (logged(any_second), ["spec", "sender"]),
    ],
)
def test_who_gets_the_event_sender(function: Any, arguments: list[Any]) -> None:
    """The parameter named `event_tx` gets it wherever it stands, else a second one that must be given."""
    assert arguments_of(function) == arguments


@pytest.mark.parametrize(
    "function",
    [
        lambda event_tx: "no place for the spec",
        lambda spec, model, event_tx: "one too many",
        lambda spec, model, *, event_tx: "one too many",
        lambda spec, *, model, event_tx=None: "one too many",
        lambda *, spec, event_tx: "the spec by keyword",
    ],
)
def test_a_function_that_asks_for_more_is_refused(function: Any) -> None:
    """A function that needs other arguments than spec and sender is refused when it is registered."""
    with pytest.raises(OptionError, match=r"agent 'tester' must take \(spec\) or \(spec, event_tx\)"):
        FunctionExecutor({"tester": function})


@pytest.mark.parametrize("function", [repr, str, print])
def test_builtins_are_called_with_the_spec_alone(function: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A builtin without a signature, or with optional arguments alone, gets the spec."""
    FunctionExecutor({"tester": function}).execute_step(SPEC, SENDER)
    assert "Sender" not in capsys.readouterr().out


def test_on_every_backend(make_runner: Callable[..., Runner]) -> None:
    """Defaults and the keyword `event_tx` hold wherever the function runs."""

    def ask(spec: AgentStepSpec, model: str = "small", *, event_tx: Any) -> str:
        event_tx.send(TextDelta(spec.task_id, model))
        return model

    def plain(spec: AgentStepSpec, model: str = "small") -> str:
        return model

    channel = EventChannel()
    receiver = channel.subscribe()
    specs = [AgentStepSpec("t0", "ask", "", ""), AgentStepSpec("t1", "plain", "", "")]
    run = make_runner(FunctionExecutor({"ask": ask, "plain": plain}), event_tx=channel).run(specs)
    channel.close()
    assert [outcome.output for outcome in run] == ["small", "small"]
    assert [event for event in receiver if isinstance(event, TextDelta)] == [TextDelta("t0", "small")]


def test_no_thread_for_an_async_agent_beside_a_running_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is to be had for an async agent, the step says so and no coroutine is left unawaited."""

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        monkeypatch.setattr("threading.Thread.start", refuse)
        try:
            FunctionExecutor({"tester": with_a_model_async}).execute_step(SPEC)
        finally:
            monkeypatch.undo()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            asyncio.run(main())
