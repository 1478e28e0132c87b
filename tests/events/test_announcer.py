"""The runner's own events: the start and the end of a run and of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from fanout_sync import (
    Event,
    EventChannel,
    FunctionExecutor,
    InputError,
    RunEnd,
    Runner,
    RunStart,
    SubagentEnd,
    SubagentStart,
    TextDelta,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def _agent(spec: Any, event_tx: Any) -> str | None:
    event_tx.send(TextDelta(spec.task_id, "half"))
    return None if spec.prompt == "1" else spec.prompt


class Recorder:
    """An `event_tx` that keeps all events, for tests that need no channel."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def test_a_run_and_its_steps_have_a_start_and_an_end(make_runner: MakeRunner) -> None:
    """A run begins and ends with its own events; the events of a step come between its start and its end."""
    recorder = Recorder()
    specs = make_specs(3)
    specs[2] = attrs.evolve(specs[2], parent_session_id="parent")
    make_runner(FunctionExecutor({"tester": _agent}), event_tx=recorder).run(specs)
    first, *between, last = recorder.events
    assert isinstance(first, RunStart)
    assert first.total == 3
    assert isinstance(last, RunEnd)
    assert (last.run_id, last.succeeded, last.failed) == (first.run_id, 2, 1)
    assert last.elapsed_s > 0
    for number in range(3):
        start, delta, end = (event for event in between if getattr(event, "task_id", "") == f"t{number}")
        assert isinstance(start, SubagentStart)
        assert isinstance(delta, TextDelta)
        assert isinstance(end, SubagentEnd)
        assert start.session_id == end.session_id == f"task-run-t{number}"
        assert (start.agent, start.description) == ("tester", f"step {number}")
        assert start.parent_session_id == ("parent" if number == 2 else "")
        assert end.success is (number != 1)
        assert start.started_ms <= end.finished_ms + 1
    assert len(between) == 9


def test_an_input_of_unknown_length_has_no_total() -> None:
    """The total of a generator is not known, so it is `None` and not on the wire."""
    recorder = Recorder()
    Runner(FunctionExecutor({"tester": _agent}), event_tx=recorder).run(spec for spec in make_specs(3))
    start = recorder.events[0]
    assert isinstance(start, RunStart)
    assert start.total is None
    assert "total" not in start.to_dict()


def test_a_stream_that_is_left_early_ends_what_it_started() -> None:
    """When a stream is closed, each step that was started gets its end, and the run gets its own."""
    recorder = Recorder()
    stream: Any = Runner(FunctionExecutor({"tester": _agent}), event_tx=recorder, max_concurrency=3).stream(
        make_specs(10)
    )
    next(stream)
    stream.close()
    starts = [event.task_id for event in recorder.events if isinstance(event, SubagentStart)]
    ends = [event.task_id for event in recorder.events if isinstance(event, SubagentEnd)]
    assert sorted(starts) == sorted(ends)
    run_end = next(event for event in recorder.events if isinstance(event, RunEnd))
    assert run_end.succeeded + run_end.failed + run_end.cancelled == len(starts)


def test_an_input_that_raises_still_ends_the_run() -> None:
    """The end of a run is sent even if its input raises."""
    recorder = Recorder()
    items: Any = [*make_specs(2), None]
    with pytest.raises(InputError):
        Runner(FunctionExecutor({"tester": _agent}), event_tx=recorder).run(items)
    end = recorder.events[-1]
    assert isinstance(end, RunEnd)
    assert (end.succeeded, end.failed) == (1, 1)


def test_a_listener_has_seen_everything_when_the_run_returns(make_runner: MakeRunner) -> None:
    """When `run` returns, the callback of a listener has been called with the end of the run."""
    seen: list[Any] = []
    with EventChannel() as channel:
        listener = channel.listen(seen.append)
        make_runner(FunctionExecutor({"tester": _agent}), event_tx=channel).run(make_specs(20))
        assert isinstance(seen[-1], RunEnd)
        assert len(seen) == 2 + 3 * 20
        listener.close()


class Broken:
    def send(self, event: Event) -> None:
        raise OSError("nobody there")


def test_a_sender_that_raises_costs_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """If the `send` of the caller's own `event_tx` raises, that is logged and the outcomes are the same."""
    run = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), event_tx=Broken()).run(make_specs(3))
    assert len(run.succeeded) == 3
    assert "RunStart could not be sent" in caplog.text
