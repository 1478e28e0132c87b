"""Counts made from events: they reach the total of the run, also if steps are reused or cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fanout_sync import (
    Budget,
    Event,
    FunctionExecutor,
    Run,
    RunEnd,
    Runner,
    RunStart,
    StepReused,
    SubagentEnd,
    SubagentStart,
    current_step,
)
from fanout_sync.records.steps import AgentStepSpec
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def answer(spec: AgentStepSpec) -> str | None:
    return None if spec.prompt in "13" else spec.prompt


def spend(spec: AgentStepSpec) -> str:
    current_step().add_usage(prompt_tokens=10)
    return spec.prompt


def count(events: list[Event], cls: type[Event]) -> int:
    return len([event for event in events if isinstance(event, cls)])


def end_of(events: list[Event]) -> RunEnd:
    (end,) = (event for event in events if isinstance(event, RunEnd))
    return end


def check(events: list[Event], run: Run) -> None:
    """Check that the events tell of the run what it says itself."""
    cancelled = [record for record in run.records if record.status == "cancelled"]
    end = end_of(events)
    assert (end.succeeded, end.failed, end.cancelled) == (
        len(run.succeeded),
        len(run.failed) - len(cancelled),
        len(cancelled),
    )
    assert end.succeeded + end.failed + end.cancelled == len(run)
    assert end.reused == count(events, StepReused)
    assert count(events, SubagentStart) == count(events, SubagentEnd)


def test_done_reaches_the_total_after_a_resume(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Each step that the journal answers sends a `step_reused`: with the ends, as many as the run has steps."""
    executor = FunctionExecutor({"tester": answer})
    make_runner(executor, journal=tmp_path / "run.db").run(make_specs(6))
    events: list[Event] = []
    run = make_runner(executor, journal=tmp_path / "run.db", event_tx=events.append).run(make_specs(10))
    start = events[0]
    assert isinstance(start, RunStart)
    assert count(events, StepReused) + count(events, SubagentEnd) == start.total == 10
    reused = [event for event in events if isinstance(event, StepReused)]
    assert sorted(event.task_id for event in reused) == ["t0", "t2", "t4", "t5"]
    assert {(event.session_id == f"task-run-{event.task_id}", event.agent, event.success) for event in reused} == {
        (True, "tester", True)
    }
    check(events, run)


def test_a_run_that_is_all_reused_counts_its_steps(tmp_path: Path) -> None:
    """Of a run of which nothing is left to do, `run_end` says that all have succeeded and all are reused."""
    executor = FunctionExecutor({"tester": spend})
    Runner(executor, journal=tmp_path / "run.db").run(make_specs(5))
    events: list[Event] = []
    list(Runner(executor, journal=tmp_path / "run.db", event_tx=events.append).stream(make_specs(5)))
    assert (end_of(events).succeeded, end_of(events).reused) == (5, 5)
    assert count(events, StepReused) == 5
    assert count(events, SubagentStart) == 0


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_cancelled_steps_are_counted(backend: str) -> None:
    """Steps that a budget or `max_failures` keeps from beginning have no start and no end, and are in `cancelled`."""
    executor = FunctionExecutor({"tester": spend, "failing": answer})
    events: list[Event] = []
    options = {"backend": backend, "event_tx": events.append, "max_concurrency": 1}
    check(events, Runner(executor, budget=Budget(max_tokens=30), **options).run(make_specs(8)))  # type: ignore[arg-type]
    assert end_of(events).cancelled == 5
    assert count(events, SubagentEnd) + end_of(events).cancelled == 8
    events.clear()
    failing = [AgentStepSpec(f"f{n}", "failing", "", "1") for n in range(8)]
    check(events, Runner(executor, max_failures=2, **options).run(failing))  # type: ignore[arg-type]
    assert (end_of(events).failed, end_of(events).cancelled) == (2, 6)


def test_a_stream_that_is_left_counts_what_it_cut_short() -> None:
    """Steps that had begun when a stream was left have an end, and are counted as cancelled or by how they ended."""
    events: list[Event] = []
    stream = Runner(
        FunctionExecutor({"tester": lambda spec: current_step().cancelled.wait(10 * (spec.prompt != "0")) and "told"}),
        event_tx=events.append,
        max_concurrency=3,
    ).stream(make_specs(9), order="completion")
    for _ in stream:
        break
    stream.close()
    end = end_of(events)
    assert count(events, SubagentStart) == count(events, SubagentEnd) == end.succeeded + end.failed + end.cancelled


def test_the_end_of_a_run_by_an_earlier_version_is_read() -> None:
    """A `run_end` without the new fields has zeros there; what a newer version adds is ignored."""
    old = {"type": "run_end", "run_id": "r", "succeeded": 3, "failed": 1, "elapsed_s": 2}
    assert Event.from_dict(old) == RunEnd("r", 3, 1, 2.0, reused=0, cancelled=0)
    assert Event.from_json(json.dumps({**old, "reused": 2, "skipped": 7})) == RunEnd("r", 3, 1, 2.0, reused=2)
