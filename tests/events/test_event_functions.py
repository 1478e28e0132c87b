"""Functions for `event_tx`, and what is refused in their place."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import (
    Event,
    EventChannel,
    FunctionExecutor,
    OptionError,
    RunEnd,
    Runner,
    RunStart,
    Stop,
    TextDelta,
    execute_loop,
    execute_pipeline,
    execute_steps_parallel,
    execute_steps_parallel_resumable,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def agent(spec: Any, event_tx: Any) -> str:
    event_tx.send(TextDelta(spec.task_id, "half"))
    event_tx.usage(prompt_tokens=1)
    return str(spec.prompt)


EXECUTOR = FunctionExecutor({"tester": agent})


class Callbacks:
    """Callables that are no plain functions."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> int:
        self.seen.append(event)
        return len(self.seen)

    def method(self, event: Event) -> int:
        return self(event)


@pytest.mark.parametrize("form", ["lambda", "method", "object", "partial", "builtin"])
def test_a_function_is_called_with_each_event(form: str, make_runner: MakeRunner) -> None:
    """Anything that can be called gets the events of the runner and of the steps, and what it returns is ignored."""
    taker = Callbacks()
    forms: dict[str, Callable[[Event], object]] = {
        "lambda": lambda event: taker(event),
        "method": taker.method,
        "object": taker,
        "partial": functools.partial(Callbacks.method, taker),
        "builtin": taker.seen.append,
    }
    run = make_runner(EXECUTOR, event_tx=forms[form]).run(make_specs(3))
    assert [outcome.output for outcome in run] == ["0", "1", "2"]
    assert [type(event) for event in (taker.seen[0], taker.seen[-1])] == [RunStart, RunEnd]
    assert len(taker.seen) == 2 + 3 * 3
    assert run.records[0].usage is not None


def test_every_function_takes_a_function(tmp_path: Any) -> None:
    """So do the functions around the runner."""
    events: list[Event] = []
    specs, take = make_specs(2), events.append
    calls: list[Callable[[], object]] = [
        lambda: execute_steps_parallel(EXECUTOR, specs, take),
        lambda: execute_steps_parallel(EXECUTOR, specs, event_tx=take, backend="process"),
        lambda: execute_steps_parallel_resumable(EXECUTOR, specs, "w", tmp_path / "run.db", take),
        lambda: execute_pipeline(EXECUTOR, specs, [lambda outcome, item: item], take),
        lambda: execute_loop(EXECUTOR, specs, 1, lambda outcomes: Stop(), take),
    ]
    for call in calls:
        events.clear()
        call()
        assert isinstance(events[-1], RunEnd)
        assert len(events) == 2 + 3 * len(specs)


class Sink:
    """Has a `send` and can be called."""

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, event: Event) -> None:
        raise AssertionError("its send is to be called")

    def send(self, event: Event) -> None:
        self.sent += 1


def test_a_send_method_goes_before_a_call() -> None:
    """Of an object that has both, `send` is used."""
    sink = Sink()
    Runner(EXECUTOR, event_tx=sink).run(make_specs(1))
    assert sink.sent == 5


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_function_that_raises_costs_no_outcome(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its errors are logged, for events of the runner and of steps, and every step succeeds."""

    def broken(event: Event) -> None:
        raise RuntimeError("no events, please")

    run = Runner(EXECUTOR, backend=backend, event_tx=broken).run(make_specs(3))
    assert [outcome.output for outcome in run] == ["0", "1", "2"]
    assert "an event of a step was lost" in caplog.text
    assert "the event RunEnd could not be sent" in caplog.text


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_what_is_no_event_fails_the_step_that_sends_it(backend: Any) -> None:
    """That is the step's own mistake, wherever its events go."""

    def bad(spec: Any, event_tx: Any) -> None:
        event_tx.send("text")

    run = Runner(FunctionExecutor({"tester": bad}), backend=backend, event_tx=lambda event: None).run(make_specs(1))
    assert "event must be an Event, got str" in run[0].output


async def coroutine(event: Event) -> None:
    await asyncio.sleep(0)


class AsyncSink:
    async def send(self, event: Event) -> None:
        await asyncio.sleep(0)


class NoSend:
    send = "no method"


@pytest.mark.parametrize(
    ("event_tx", "told"),
    [
        (EventChannel, "got the class EventChannel; call it: EventChannel()"),
        (Sink, "got the class Sink; call it: Sink()"),
        (coroutine, "which is async: nobody would await it"),
        (functools.partial(coroutine), "which is async: nobody would await it"),
        (AsyncSink(), "which is async: nobody would await it"),
        (NoSend(), "NoSend"),
        ("events.jsonl", "got str 'events.jsonl'"),
        (EventChannel().subscribe(), "EventReceiver"),
    ],
    ids=["channel class", "class", "async", "partial of async", "async send", "send no method", "path", "receiver"],
)
def test_what_cannot_take_events_is_refused(event_tx: Any, told: str) -> None:
    """The error names the argument, what came, and the way out, before any step runs."""
    with pytest.raises(
        OptionError, match="event_tx must be an EventChannel, have a send method or be a plain"
    ) as caught:
        Runner(EXECUTOR, event_tx=event_tx)
    assert told in str(caught.value)
