"""Which parameter of an agent's function gets the event sender."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, Event, EventChannel, FunctionExecutor, OptionError, Runner, TextDelta
from fanout_sync.executors import loops

SPEC = AgentStepSpec("t", "tester", "", "hello")


class Sender:
    """An event sender that the tests can recognise."""

    def send(self, event: Event) -> None:
        raise NotImplementedError

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        raise NotImplementedError


SENDER = Sender()


def labels(*values: Any) -> list[Any]:
    """Return the arguments of a function as JSON: spec and sender as words."""
    return ["spec" if value is SPEC else "sender" if value is SENDER else value for value in values]


def arguments_of(function: Any) -> Any:
    outcome = FunctionExecutor({"tester": function}).execute_step(SPEC, SENDER)
    assert outcome.success, outcome.output
    return outcome.structured


class Agent:
    def __call__(self, spec: Any, model: str = "small") -> Any:
        return labels(spec, model)

    def method(self, spec: Any, model: str = "small") -> Any:
        return labels(spec, model)

    @classmethod
    def of_the_class(cls, spec: Any, retries: int = 3, *, event_tx: Any = None) -> Any:
        return labels(spec, retries, event_tx)

    @staticmethod
    def static(spec: Any, event_tx: Any = None) -> Any:
        return labels(spec, event_tx)


def with_a_model(spec: Any, model: str = "small") -> Any:
    return labels(spec, model)


def with_both(spec: Any, model: str = "small", event_tx: Any = None) -> Any:
    return labels(spec, model, event_tx)


def any_second(spec: Any, sender: Any) -> Any:
    return labels(spec, sender)


def sender_first(event_tx: Any, spec: Any) -> Any:
    return labels(event_tx, spec)


def only_by_position(spec: Any, model: str = "small", event_tx: Any = None, /) -> Any:
    return labels(spec, model, event_tx)


def only_by_keyword(spec: Any, *, event_tx: Any) -> Any:
    return labels(spec, event_tx)


def with_more(spec: Any, *more: Any, **others: Any) -> Any:
    return labels(spec, *more, *others)


async def with_a_model_async(spec: Any, model: str = "small") -> Any:
    await asyncio.sleep(0)
    return labels(spec, model)


async def by_keyword_async(spec: Any, model: str = "small", *, event_tx: Any) -> Any:
    await asyncio.sleep(0)
    return labels(spec, model, event_tx)


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
        (lambda spec, *, model="small": labels(spec, model), ["spec", "small"]),
        (lambda spec=None, model="small": labels(spec, model), ["spec", "small"]),
        (with_more, ["spec"]),
        (lambda *args: labels(*args), ["spec"]),
        (functools.partial(with_both, event_tx="mine"), ["spec", "small", "mine"]),
    ],
)
def test_other_parameters_keep_their_defaults(function: Any, arguments: list[Any]) -> None:
    """A second parameter with a default, `*args` and `**kwargs` do not get the event sender."""
    assert arguments_of(function) == arguments


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda spec, event_tx: labels(spec, event_tx), ["spec", "sender"]),
        (lambda spec, event_tx=None: labels(spec, event_tx), ["spec", "sender"]),
        (with_both, ["spec", "small", "sender"]),
        (functools.partial(with_both, model="large"), ["spec", "large", "sender"]),
        (functools.partial(sender_first), ["sender", "spec"]),
        (only_by_position, ["spec", "small", "sender"]),
        (only_by_keyword, ["spec", "sender"]),
        (by_keyword_async, ["spec", "small", "sender"]),
        (Agent.of_the_class, ["spec", 3, "sender"]),
        (Agent.static, ["spec", "sender"]),
        (logged(Agent.static), ["spec", "sender"]),
        (lambda spec, *more, event_tx=None, **others: labels(spec, event_tx, *more, *others), ["spec", "sender"]),
        (any_second, ["spec", "sender"]),
        (functools.partial(any_second), ["spec", "sender"]),
        (logged(any_second), ["spec", "sender"]),
    ],
)
def test_the_event_sender_is_passed_to_the_right_parameter(function: Any, arguments: list[Any]) -> None:
    """The parameter named `event_tx` gets it, wherever it stands; else a second one without a default."""
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
def test_a_function_that_requires_more_arguments_is_refused(function: Any) -> None:
    """A function that requires other arguments than spec and sender is refused when it is registered."""
    with pytest.raises(OptionError, match=r"agent 'tester' must take \(spec\) or \(spec, event_tx\)"):
        FunctionExecutor({"tester": function})


@pytest.mark.parametrize("function", [repr, str, print])
def test_builtins_are_called_with_the_spec_alone(function: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A builtin without a signature, or with only optional arguments, gets the spec."""
    FunctionExecutor({"tester": function}).execute_step(SPEC, SENDER)
    assert "Sender" not in capsys.readouterr().out


def test_defaults_and_event_tx_work_on_every_backend(make_runner: Callable[..., Runner]) -> None:
    """Other parameters keep their defaults, and `event_tx` is passed by keyword, wherever the function runs."""

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


def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread be started, and there be no event loop yet."""

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(loops, "current", {})
    monkeypatch.setattr("threading.Thread.start", refuse)


def test_an_async_agent_needs_no_thread_if_none_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it runs in a loop of its own in the thread of its step."""
    with monkeypatch.context() as patch:
        _without_threads(patch)
        outcome = FunctionExecutor({"tester": with_a_model_async}).execute_step(SPEC)
    assert outcome.output == '["spec","small"]'


def test_an_async_agent_raises_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a loop is running it needs a thread; without one the error is raised, and no coroutine stays unawaited."""

    async def main() -> None:
        with monkeypatch.context() as patch:
            _without_threads(patch)
            FunctionExecutor({"tester": with_a_model_async}).execute_step(SPEC)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            asyncio.run(main())


def test_a_decorator_that_provides_further_arguments() -> None:
    """A wrapper with a signature of its own is called with what it takes itself, not with what it wraps."""

    def with_client(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(spec: AgentStepSpec) -> str:
            return function(spec, "a client")

        return wrapper

    @with_client
    def ask(spec: AgentStepSpec, client: str) -> str:
        return f"{spec.prompt} asks {client}"

    run = Runner(FunctionExecutor({"tester": ask})).run([AgentStepSpec("t0", "tester", "", "0")])
    assert [outcome.output for outcome in run] == ["0 asks a client"]
