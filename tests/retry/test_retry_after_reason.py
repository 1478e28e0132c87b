"""What a step that raised `RetryAfter` fails with: the error of the server, not the request to wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from fanout_sync import Event, FunctionExecutor, MemoryJournal, RetryAfter, Runner, StepRetry
from fanout_sync.records.step_record import StepRecord
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


class RateLimitError(Exception):
    def __bool__(self) -> bool:  # some exceptions are falsy
        return False


RateLimitError.__module__ = "server"
SERVER_SAID = "server.RateLimitError: Error code: 429 - slow down"
ASKED = "fanout_sync.RetryAfter: asked to be tried again after 0.001 s"


class Polite(RetryAfter):
    """One of the caller's own, with an attribute that the package may have thought of, too."""

    def __init__(self) -> None:
        super().__init__(0.001)
        self.reason = "be polite"


def ask() -> None:
    raise RateLimitError("Error code: 429 - slow down")


def from_error(spec: object) -> Any:
    try:
        ask()
    except RateLimitError as error:
        raise RetryAfter(0.001) from error


def while_handling(spec: object) -> Any:
    try:
        ask()
    except RateLimitError:
        raise Polite  # noqa: B904 - many will write it so


def twice(spec: object) -> Any:
    try:
        from_error(spec)
    except RetryAfter as error:
        raise RetryAfter(0.001) from error


def from_none(spec: object) -> Any:
    try:
        ask()
    except RateLimitError:
        raise RetryAfter(0.001) from None


def alone(spec: object) -> Any:
    raise RetryAfter(0.001)


def from_itself(spec: object) -> Any:
    error = RetryAfter(0.001)
    error.__cause__ = RetryAfter(1)
    error.__cause__.__cause__ = error
    raise error


@pytest.mark.parametrize("agent", [from_error, while_handling, twice], ids=lambda agent: agent.__name__)
def test_the_error_behind_it_is_the_reason(make_runner: MakeRunner, agent: Any) -> None:
    """In the outcome, the record, each attempt and the events."""
    events: list[Event] = []
    run = make_runner(FunctionExecutor({"tester": agent}), retry=4, event_tx=Collecting(events)).run(make_specs(1))
    assert run[0].output == f"{SERVER_SAID}; gave up after 4 attempts"
    record: StepRecord = run.records[0]
    assert record.error is not None
    assert (record.error.type, record.error.message) == ("server.RateLimitError", "Error code: 429 - slow down")
    assert ": asked to be tried again" in (record.error.traceback or "")
    assert [attempt.reason for attempt in record.attempts] == [SERVER_SAID] * 4
    assert [event.reason for event in events if isinstance(event, StepRetry)] == [SERVER_SAID] * 3


@pytest.mark.parametrize("agent", [alone, from_none, from_itself], ids=lambda agent: agent.__name__)
def test_without_an_error_behind_it_the_request_is_the_reason(make_runner: MakeRunner, agent: Any) -> None:
    """As also if the user has hidden the error."""
    run = make_runner(FunctionExecutor({"tester": agent}), retry=2).run(make_specs(1))
    assert run[0].output == f"{ASKED}; gave up after 2 attempts"
    assert [attempt.reason for attempt in run.records[0].attempts] == [ASKED] * 2


def test_without_retries_the_error_is_the_reason_too(make_runner: MakeRunner) -> None:
    """There is nothing to give up."""
    assert make_runner(FunctionExecutor({"tester": from_error})).run(make_specs(1))[0].output == SERVER_SAID


@pytest.mark.parametrize("options", [{}, {"retry": 1}, {"max_failures": 5}, {"journal": MemoryJournal()}])
def test_a_request_that_nobody_heeds(make_runner: MakeRunner, options: dict[str, Any]) -> None:
    """If steps are not tried again, the outcome says what is missing."""
    run = make_runner(FunctionExecutor({"tester": alone}), **options).run(make_specs(1))
    assert run[0].output == f"{ASKED}; not tried again: that needs retry=, such as retry=3"


def test_it_is_the_reason_in_a_pool_of_processes() -> None:
    """The error is described where it was raised."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        run = Runner(FunctionExecutor({"tester": from_error}), backend=pool, retry=2).run(make_specs(1))
    assert run[0].output == f"{SERVER_SAID}; gave up after 2 attempts"


def test_an_outcome_of_several_lines_says_it_in_a_line_of_its_own() -> None:
    """So that it is not taken for a part of the last one."""

    def fail(spec: object) -> Any:
        raise ValueError("one\ntwo")

    run = Runner(FunctionExecutor({"tester": fail}), retry=2).run(make_specs(1))
    assert run[0].output == "ValueError: one\ntwo\ngave up after 2 attempts"


class Collecting:
    """An `event_tx` that keeps the events."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def send(self, event: Event) -> None:
        self._events.append(event)
