"""The run that a stream has after its end: all that a run has, without the outputs."""

from __future__ import annotations

import contextlib
import pickle
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from fanout_sync import (
    AgentStepSpec,
    Budget,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    OutcomeStream,
    Retry,
    Run,
    Runner,
    StepOutcome,
    Usage,
    current_step,
)
from fanout_sync.engine.stream import _Kept
from fanout_sync.results.step_log import MAX_TRACEBACKS
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]

Order = Literal["input", "completion"]


def work(spec: AgentStepSpec) -> Any:
    """Do what the prompt says."""
    step = current_step()
    if spec.prompt == "raise":
        raise ValueError(f"no {spec.task_id}")
    if spec.prompt == "spend":
        step.add_usage(prompt_tokens=30, cost_usd=0.25)
    if spec.prompt == "flaky" and step.attempt == 1:
        raise OSError("busy")
    if spec.prompt == "fail":
        return StepOutcome.failed(spec.task_id, spec.agent, "not today")
    if spec.prompt == "session":
        return StepOutcome(spec.task_id, "a session of its own", "another agent", "fine", True, [1])
    return [spec.prompt]


def specs_of(*prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{place}", "worker", "", prompt) for place, prompt in enumerate(prompts)]


EXECUTOR = FunctionExecutor({"worker": work, "tester": work})
PROMPTS = ("plain", "raise", "spend", "flaky", "fail", "session", "spend", "plain")


def assert_alike(streamed: Run, run: Run) -> None:
    """Check that a stream has kept what a run of the same steps has."""
    assert [outcome.task_id for outcome in streamed] == [outcome.task_id for outcome in run]
    assert [outcome.session_id for outcome in streamed] == [outcome.session_id for outcome in run]
    assert [outcome.agent for outcome in streamed] == [outcome.agent for outcome in run]
    assert [outcome.success for outcome in streamed] == [outcome.success for outcome in run]
    for kept, record in zip(streamed.records, run.records, strict=True):
        assert (kept.index, kept.status, kept.error, kept.usage) == (
            record.index,
            record.status,
            record.error,
            record.usage,
        )
        assert [(attempt.status, attempt.reason) for attempt in kept.attempts] == [
            (attempt.status, attempt.reason) for attempt in record.attempts
        ]
        assert (kept.started is None, kept.worker is None) == (record.started is None, record.worker is None)
        assert kept.from_journal == record.from_journal
    assert streamed.usage == run.usage


@pytest.mark.parametrize("order", ["input", "completion"])
def test_a_stream_that_was_read_has_the_run_of_all_its_steps(make_runner: MakeRunner, order: Order) -> None:
    """In the order of the input, whatever the order of the stream: records, usage and summary, but no outputs."""
    runner = make_runner(EXECUTOR, retry=Retry(2, wait=0, retry_on=OSError))
    stream = runner.stream(specs_of(*PROMPTS), order)
    assert isinstance(stream, OutcomeStream)
    outputs = {outcome.task_id: outcome.output for outcome in stream}
    assert stream.run is stream.run
    assert_alike(stream.run, runner.run(specs_of(*PROMPTS)))
    for outcome in stream.run:
        assert outcome.structured is None
        assert outcome.output == ("" if outcome.success else outputs[outcome.task_id])
    assert stream.run.usage == Usage(60, 0, 0.5)
    assert stream.run.elapsed > 0
    assert stream.run["t1"].output == "ValueError: no t1"
    summary = stream.run.summary()
    assert "8 steps in" in summary
    assert "6 succeeded" in summary
    assert "tried more than once: 1" in summary
    assert "t1 (worker) raised: ValueError: no t1" in summary


def test_the_times_of_a_stream_are_kept(make_runner: MakeRunner) -> None:
    """When each step began and ended, and where."""
    stream = make_runner(EXECUTOR).stream(make_specs(5))
    assert len(list(stream)) == 5
    for record in stream.run.records:
        assert record.started is not None
        assert record.finished is not None
        assert record.duration_s is not None
        assert record.worker
        assert record.attempts[0].duration_s == record.duration_s


def test_before_its_end_a_stream_has_what_it_has_yielded() -> None:
    """The run is a snapshot, which does not change when the stream goes on."""
    stream = Runner(EXECUTOR).stream(make_specs(4))
    assert list(stream.run) == []
    next(stream)
    next(stream)
    so_far = stream.run
    assert [outcome.task_id for outcome in so_far] == ["t0", "t1"]
    assert len(list(stream)) == 2
    assert len(so_far) == 2
    assert [outcome.task_id for outcome in stream.run] == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("order", ["input", "completion"])
def test_a_stream_that_was_closed_has_all_steps_that_it_had_read(make_runner: MakeRunner, order: Order) -> None:
    """Those that had finished are in the run, and those that were cut short are cancelled."""
    with contextlib.closing(make_runner(EXECUTOR, max_concurrency=2).stream(iter(make_specs(1000)), order)) as stream:
        first = next(stream)
    statuses = [record.status for record in stream.run.records]
    assert set(statuses) <= {"succeeded", "cancelled"}
    assert stream.run[first.task_id].success
    assert 1 <= len(statuses) < 1000
    assert [record.index for record in stream.run.records] == sorted(record.index for record in stream.run.records)
    assert next(stream, None) is None


def test_a_stream_that_was_never_begun_has_an_empty_run() -> None:
    """Closing it before its first outcome runs nothing."""
    stream = Runner(EXECUTOR).stream(make_specs(3))
    stream.close()
    assert list(stream.run) == []
    assert "nothing to do" in stream.run.summary()


def test_a_stream_whose_input_raises_has_what_was_run(make_runner: MakeRunner) -> None:
    """The error ends the stream; its run has all steps, and that of the error those that were not yielded."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(3)
        raise LookupError("no more rows")

    stream = make_runner(EXECUTOR).stream(specs())
    with pytest.raises(InputError):
        list(stream)
    assert [record.status for record in stream.run.records] == ["succeeded"] * 3


def test_an_interrupted_stream_has_the_run_of_all_its_steps() -> None:
    """Those that it had yielded, and the cancelled ones."""
    stream = Runner(EXECUTOR, max_concurrency=1).stream(make_specs(5))
    next(stream)
    next(stream)
    with pytest.raises(FanoutInterrupted) as caught:
        stream.throw(KeyboardInterrupt())
    assert [outcome.task_id for outcome in stream.run] == ["t0", "t1", "t2", "t3", "t4"]
    assert stream.run.records[4].status == "cancelled"
    assert len(caught.value.run) == 3


def test_an_interrupted_stream_that_goes_on_has_each_step_once() -> None:
    """With `on_interrupt="return"` what is left is yielded, and the run has it once."""
    stream = Runner(EXECUTOR, max_concurrency=1, on_interrupt="return").stream(make_specs(4))
    seen = [next(stream), stream.throw(KeyboardInterrupt()), *stream]
    assert [outcome.task_id for outcome in stream.run] == [outcome.task_id for outcome in seen]


def test_the_run_of_a_resumed_stream_says_what_was_reused(tmp_path: Path) -> None:
    """Reused steps have the records of the run in which they ran; their usage is not counted again."""
    runner = Runner(EXECUTOR, journal=tmp_path / "run.db", retry=Retry(2, wait=0, retry_on=OSError))
    specs = specs_of(*PROMPTS)
    earlier = runner.run(specs[:4])
    stream = runner.stream(specs)
    assert len(list(stream)) == len(specs)
    assert [record.from_journal for record in stream.run.records] == [True, False, True, True, *[False] * 4]
    assert stream.run.records[2].started == earlier.records[2].started
    assert stream.run.records[2].finished == earlier.records[2].finished
    assert stream.run.records[3].attempts == earlier.records[3].attempts
    assert "from the journal: 3" in stream.run.summary()
    assert stream.run.usage == Usage(30, 0, 0.25)
    assert stream.run.to_dicts()[2]["cost_usd"] == 0.25


def test_the_summary_of_a_stream_says_how_much_of_the_budget_is_used() -> None:
    """As of the end of the stream."""
    stream = Runner(EXECUTOR, budget=Budget(max_cost_usd=1)).stream(specs_of("spend", "spend"))
    list(stream)
    assert "budget: $0.50 of $1" in stream.run.summary()


def test_a_stream_keeps_no_outputs() -> None:
    """However large outputs are, what is kept of a step is less than a thousand bytes."""
    count = 2000
    stream = Runner(FunctionExecutor({"tester": lambda spec: "x" * 10_000})).stream(iter(make_specs(count)))
    tracemalloc.start()
    try:
        for outcome in stream:
            assert len(outcome.output) == 10_000
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(stream.run) == count
    assert kept / count < 1000


def test_a_stream_keeps_the_tracebacks_of_the_first_failures() -> None:
    """Each later one has its type and message."""

    def fail(spec: AgentStepSpec) -> Any:
        raise ValueError("x" * 5000)

    stream = Runner(FunctionExecutor({"tester": fail})).stream(make_specs(MAX_TRACEBACKS + 5))
    list(stream)
    errors = [record.error for record in stream.run.records]
    assert sum(error is not None and error.traceback is not None for error in errors) == MAX_TRACEBACKS
    assert all(error is not None and error.type == "ValueError" and len(error.message) < 2100 for error in errors)
    assert all(len(outcome.output) < 2100 for outcome in stream.run)


def test_the_run_of_a_stream_can_be_pickled() -> None:
    """As that of `Runner.run` can, to be looked at later."""
    stream = Runner(EXECUTOR).stream(specs_of(*PROMPTS))
    list(stream)
    again = pickle.loads(pickle.dumps(stream.run))
    assert again == stream.run
    assert list(again.records) == list(stream.run.records)
    assert again.summary() == stream.run.summary()


def test_a_stream_is_an_iterator_like_a_generator() -> None:
    """It is its own iterator, and can be closed, sent to and thrown into."""
    stream = Runner(EXECUTOR).stream(make_specs(3))
    assert iter(stream) is stream
    assert stream.send(None).task_id == "t0"
    with pytest.raises(ZeroDivisionError):
        stream.throw(ZeroDivisionError())
    assert list(stream) == []
    assert stream.run[0].task_id == "t0"  # the others too, if they had been read by then


@pytest.mark.parametrize("way", ["next", "send", "throw"])
def test_an_interrupt_in_a_method_of_a_stream_loses_no_outcome(way: str) -> None:
    """One that comes just before the method returns is noted, and the outcome is handed out."""
    # All in C, so that the interrupt strikes the frame of the method.
    interrupts: Any = map(signal.raise_signal, [signal.SIGINT])
    interrupted = partial(next, interrupts)
    outcomes: Any = interrupts if way == "next" else SimpleNamespace(send=interrupted, throw=interrupted)
    kept = _Kept()
    stream = OutcomeStream(outcomes, kept)
    methods: dict[str, Callable[[], object]] = {
        "next": partial(next, stream),
        "send": partial(stream.send, None),
        "throw": stream.throw,
    }
    with kept.scope:
        kept.scope.in_package_code = False  # as while an outcome is handed out
        methods[way]()
        assert kept.scope.is_interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # in the caller's code
