"""The progress of a call: that its numbers add up, whatever becomes of the steps, and when it is reported."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, Literal

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentStepSpec,
    Budget,
    Continue,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    Progress,
    RateLimit,
    Retry,
    Run,
    Runner,
    Stop,
    Usage,
    current_step,
    fanout_map,
    fanout_stream,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def _mixed(spec: AgentStepSpec) -> str:
    """Use a hundred tokens; of ten steps, number 3 fails always and number 6 at its first attempt."""
    current_step().add_usage(prompt_tokens=90, completion_tokens=10, cost_usd=0.25)
    number = int(spec.task_id[1:]) % 10
    if number == 3 or (number == 6 and current_step().attempt == 1):
        raise ConnectionError("refused")
    return spec.prompt


MIXED = FunctionExecutor({"tester": _mixed})
ECHO = FunctionExecutor({"tester": lambda spec: spec.prompt})


def _assert_consistent(seen: list[Progress]) -> None:
    """Every number only grows but those of what is under way, and the parts of `done` are all of it."""
    for before, after in pairwise(seen):
        for name in ("done", "succeeded", "failed", "cancelled", "retried", "reused", "elapsed_s"):
            assert getattr(before, name) <= getattr(after, name)
        assert before.usage.cost_usd <= after.usage.cost_usd
    for each in seen:
        assert each.done == each.succeeded + each.failed + each.cancelled
        assert each.total is None or each.done + each.running + each.waiting <= each.total
    assert (seen[-1].running, seen[-1].waiting) == (0, 0)


# The numbers ----------------------------------------------------------------------------------------------------------


def test_the_numbers_add_up(make_runner: MakeRunner) -> None:
    """With failures, attempts that are made again, and usage; they are those of the run."""
    seen: list[Progress] = []
    run = make_runner(MIXED, progress=seen.append, retry=Retry(attempts=2, wait=0)).run(make_specs(40))
    last = seen[-1]
    assert (last.total, last.done, last.succeeded, last.failed, last.retried) == (40, 40, 36, 4, 8)
    assert (last.cancelled, last.reused, last.eta_s) == (0, 0, 0.0)
    assert last.usage == run.usage == Usage(48 * 90, 48 * 10, 12.0)
    assert 0 < last.elapsed_s < HANG_BOUND_S
    _assert_consistent(seen)


def test_what_the_journal_has_is_reused(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Reused outcomes count as done, and cost nothing."""
    seen: list[Progress] = []
    options: dict[str, Any] = {"journal": tmp_path / "run.db", "progress": seen.append}
    make_runner(MIXED, **options).run(make_specs(10))
    assert (seen[-1].succeeded, seen[-1].failed, seen[-1].reused) == (8, 2, 0)
    _assert_consistent(seen)
    seen.clear()
    run = make_runner(MIXED, **options, retry=Retry(attempts=2, wait=0)).run(make_specs(20))
    assert (seen[-1].done, seen[-1].succeeded, seen[-1].failed, seen[-1].reused) == (20, 18, 2, 8)
    assert seen[-1].usage == run.usage
    _assert_consistent(seen)


def test_usage_never_falls_while_outcomes_are_being_journalled(tmp_path: Path) -> None:
    """What a step has used is counted from its report on, also between its end and the moment when it is durable."""
    seen: list[Progress] = []
    runner = Runner(MIXED, max_concurrency=8, journal=tmp_path / "run.db", progress=seen.append)
    for _ in runner.stream(make_specs(3000)):
        pass
    assert len(seen) > 2
    _assert_consistent(seen)


def test_after_too_many_failures_the_rest_is_cancelled(make_runner: MakeRunner) -> None:
    """Cancelled steps have a count of their own."""
    seen: list[Progress] = []
    executor = FunctionExecutor({"tester": lambda spec: 1 / 0})
    run = make_runner(executor, max_failures=3, progress=seen.append).run(make_specs(100))
    statuses = [record.status for record in run.records]
    assert (seen[-1].done, seen[-1].succeeded) == (100, 0)
    assert (seen[-1].failed, seen[-1].cancelled) == (statuses.count("raised"), statuses.count("cancelled"))
    _assert_consistent(seen)


def test_when_the_budget_is_exhausted_the_rest_is_cancelled(make_runner: MakeRunner) -> None:
    """The usage is that of the steps that ran."""
    seen: list[Progress] = []
    run = make_runner(MIXED, budget=Budget(max_steps=5), progress=seen.append).run(make_specs(30))
    assert (seen[-1].done, seen[-1].cancelled) == (30, 25)
    assert seen[-1].usage == run.usage == Usage(450, 50, 1.25)
    _assert_consistent(seen)


def test_steps_that_die_are_failed() -> None:
    """So are those that take too long."""
    seen: list[Progress] = []
    executor = FunctionExecutor({"tester": lambda spec: os._exit(3) if spec.task_id == "t1" else "alive"})
    Runner(executor, backend="process", max_concurrency=2, progress=seen.append).run(make_specs(4))
    assert (seen[-1].succeeded, seen[-1].failed) == (3, 1)
    slow = FunctionExecutor({"tester": lambda spec: current_step().cancelled.wait(HANG_BOUND_S)})
    Runner(slow, timeout=0.05, progress=seen.append).run(make_specs(2))
    assert (seen[-1].succeeded, seen[-1].failed) == (0, 2)


def test_steps_that_run_are_running_and_their_usage_counts() -> None:
    """All of it before the first step has ended."""
    seen: list[Progress] = []
    may_end = threading.Event()

    def wait(spec: AgentStepSpec) -> str:
        current_step().add_usage(completion_tokens=5)
        assert may_end.wait(HANG_BOUND_S)
        return "done"

    def look(progress: Progress) -> None:
        seen.append(progress)
        if progress.usage.tokens == 15:
            may_end.set()

    Runner(FunctionExecutor({"tester": wait}), max_concurrency=3, progress=look).run(make_specs(10))
    assert may_end.is_set()
    first = next(each for each in seen if each.usage.tokens == 15)
    assert (first.done, first.running, first.waiting, first.eta_s) == (0, 3, 0, None)
    assert seen[-1].usage.tokens == 50


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("call", ["run", "stream"])
def test_all_slots_are_in_use_when_a_step_has_ended(call: str, slots: int, make_runner: MakeRunner) -> None:
    """Its place is taken again before the progress is reported; of a lazy input, too."""
    seen: list[Progress] = []
    # Longer than the interval of the reports, so that there is one whenever a step ends.
    executor = FunctionExecutor({"tester": lambda spec: current_step().cancelled.wait(0.12) or "done"})
    runner = make_runner(executor, max_concurrency=slots, progress=seen.append)
    specs = make_specs(4 * slots)
    list(runner.run(specs) if call == "run" else runner.stream(iter(specs)))
    assert len(seen) > 2
    for each in seen[1:-1]:
        assert each.running == min(slots, len(specs) - each.done)


def test_sums_of_usage_have_no_upper_limit_that_anything_fails_for(make_runner: MakeRunner) -> None:
    """Each step may report the largest number that there is, also twice."""
    seen: list[Progress] = []

    def use(spec: AgentStepSpec) -> str:
        for _ in range(2):
            current_step().add_usage(prompt_tokens=2**63 - 1, completion_tokens=2**63 - 1, cost_usd=1.5e308)
        return "done"

    runner = make_runner(FunctionExecutor({"tester": use}), progress=seen.append)
    run = runner.run(make_specs(3))
    most = Usage(2**63 - 1, 2**63 - 1, sys.float_info.max)
    assert run.usage == seen[-1].usage == run.records[0].usage == most
    assert "succeeded" in run._repr_html_()
    handle = runner.start(make_specs(3))
    assert len(handle.result(HANG_BOUND_S).succeeded) == 3
    assert handle.progress().usage == most


def test_steps_held_back_by_a_limit_are_waiting(make_runner: MakeRunner) -> None:
    """They are not running, and nothing runs meanwhile."""
    seen: list[Progress] = []

    def look(progress: Progress) -> None:
        seen.append(progress)
        _interrupt_if(progress.done == 2 and progress.waiting)

    limit = RateLimit(requests_per_minute=2)
    with pytest.raises(FanoutInterrupted):
        make_runner(ECHO, max_concurrency=4, rate_limit=limit, progress=look).run(make_specs(10))
    assert any(each.waiting == 4 and each.running == 0 and each.done == 2 for each in seen)
    assert (seen[-1].succeeded, seen[-1].cancelled) == (2, 8)
    _assert_consistent(seen)


def test_steps_that_wait_for_their_next_attempt_are_waiting() -> None:
    """They hold no place, and are not running."""
    seen: list[Progress] = []

    def look(progress: Progress) -> None:
        seen.append(progress)
        _interrupt_if(progress.waiting == 5)

    executor, retry = FunctionExecutor({"tester": lambda spec: 1 / 0}), Retry(attempts=2, wait=3600)
    with pytest.raises(FanoutInterrupted):
        Runner(executor, max_concurrency=2, retry=retry, progress=look).run(make_specs(5))
    assert any((each.waiting, each.running, each.retried, each.done) == (5, 0, 5, 0) for each in seen)
    assert (seen[-1].done, seen[-1].cancelled) == (5, 5)


def _interrupt_if(condition: object) -> None:
    if condition:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_leaves_true_numbers(make_runner: MakeRunner) -> None:
    """They are those of the run that the error carries."""
    seen: list[Progress] = []

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(20)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(FanoutInterrupted) as interrupted:
        make_runner(MIXED, progress=seen.append).run(specs())
    statuses = [record.status for record in interrupted.value.run.records]
    assert seen[-1].cancelled == statuses.count("cancelled")
    assert seen[-1].failed == statuses.count("raised")
    assert seen[-1].done == len(statuses)
    _assert_consistent(seen)


def test_the_total_is_unknown_for_a_generator(make_runner: MakeRunner) -> None:
    """Nobody can tell then how long it takes."""
    seen: list[Progress] = []
    make_runner(ECHO, progress=seen.append).run(spec for spec in make_specs(7))
    assert {each.total for each in seen} == {None}
    assert {each.eta_s for each in seen} == {None}
    assert seen[-1].done == 7


def test_nothing_to_do_is_done() -> None:
    """The function is called nevertheless."""
    seen: list[Progress] = []
    Runner(ECHO, progress=seen.append).run([])
    assert (seen[-1].total, seen[-1].done, seen[-1].eta_s) == (0, 0, 0.0)


# Every way to run -----------------------------------------------------------------------------------------------------


def test_a_stream_has_progress_in_either_order(make_runner: MakeRunner) -> None:
    """As a run has."""
    orders: tuple[Literal["input", "completion"], ...] = ("input", "completion")
    for order in orders:
        seen: list[Progress] = []
        outcomes = list(make_runner(MIXED, progress=seen.append).stream(make_specs(20), order=order))
        assert (seen[-1].total, seen[-1].done, seen[-1].failed) == (20, len(outcomes), 4)
        _assert_consistent(seen)


def test_a_stream_that_is_left_says_so_once_more(make_runner: MakeRunner) -> None:
    """What was under way is cancelled."""
    seen: list[Progress] = []
    stream = make_runner(ECHO, max_concurrency=2, progress=seen.append).stream(make_specs(50))
    next(stream)
    stream.close()
    assert seen[-1].running == 0
    assert 1 <= seen[-1].succeeded <= seen[-1].done < 50
    count = len(seen)
    stream.close()
    assert len(seen) == count


def test_a_pipeline_counts_items(make_runner: MakeRunner) -> None:
    """An item that no stage makes a step of is one of them."""

    def first(outcome: Any, item: int) -> AgentStepSpec | None:
        return AgentStepSpec(f"t{item}", "tester", "", "first") if item != 4 else None

    def second(outcome: Any, item: int) -> AgentStepSpec:
        return AgentStepSpec(f"t1{item}", "tester", "", "second")

    seen: list[Progress] = []
    make_runner(MIXED, progress=seen.append).pipeline(range(6), [first, second])
    last = seen[-1]
    assert (last.total, last.done) == (6, 6)
    assert (last.succeeded, last.failed) == (8, 1), "steps: one item has none, and one fails at its first"
    assert all(each.done <= 6 for each in seen)


def test_a_loop_counts_rounds(make_runner: MakeRunner) -> None:
    """The total is known when it stops; steps and usage are those of all rounds."""
    seen: list[Progress] = []

    rounds = iter((Continue(make_specs(10)), Continue(make_specs(10)), Stop()))

    def next_round(outcomes: Any) -> Continue | Stop:
        return next(rounds)

    make_runner(MIXED, progress=seen.append).loop(make_specs(10), 8, next_round)
    last = seen[-1]
    assert seen[0].total == 8
    assert (last.total, last.done, last.succeeded, last.failed) == (3, 3, 24, 6)
    assert last.usage == Usage(2700, 300, 7.5)


def test_a_loop_that_ends_early_has_its_total(make_runner: MakeRunner) -> None:
    """It has no steps, or too many have failed; there is nothing left to be done then."""
    for specs, options in (([], {}), (make_specs(10), {"max_failures": 1})):
        seen: list[Progress] = []
        make_runner(MIXED, progress=seen.append, **options).loop(specs, 5, lambda outcomes: Stop())
        assert (seen[-1].total, seen[-1].done, seen[-1].eta_s) == (1, 1, 0.0)


def test_what_was_cut_short_has_no_time_left(make_runner: MakeRunner) -> None:
    """Nobody goes on with it."""
    seen: list[Progress] = []
    stream = make_runner(ECHO, progress=seen.append, max_concurrency=1).stream(make_specs(2000))
    next(stream)
    stream.close()
    assert seen[-1].eta_s is None or seen[-1].done == seen[-1].total

    def fail(outcomes: Any) -> Stop:
        raise ValueError("no")

    with pytest.raises(InputError):
        make_runner(ECHO, progress=seen.append).loop(make_specs(3), 5, fail)
    assert (seen[-1].total, seen[-1].done, seen[-1].eta_s) == (5, 1, None)


def test_functions_over_items_have_progress() -> None:
    """So have those that take a runner's options."""
    seen: list[Progress] = []
    fanout_map(str, range(5), progress=seen.append)
    assert (seen[-1].total, seen[-1].done) == (5, 5)
    list(fanout_stream(str, range(6), progress=seen.append))
    assert (seen[-1].total, seen[-1].done) == (6, 6)


def test_nested_runs_each_have_their_own() -> None:
    """The runs within steps do not count in the outer one."""
    outer: list[Progress] = []
    inner: list[Progress] = []

    def nested(item: int) -> int:
        return len(fanout_map(str, range(item), progress=inner.append))

    fanout_map(nested, [1, 2, 3], progress=outer.append)
    assert (outer[-1].total, outer[-1].done) == (3, 3)
    assert {each.total for each in inner} == {1, 2, 3}


# When it is called ----------------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("timing")
def test_it_is_called_at_most_ten_times_a_second(make_runner: MakeRunner) -> None:
    """At the beginning, then no two calls in a tenth of a second, and at the end."""
    called: list[float] = []
    seen: list[Progress] = []

    def look(progress: Progress) -> None:
        called.append(time.monotonic())
        seen.append(progress)

    stop_at = time.monotonic() + 0.7
    specs = repeat(make_specs(1)[0])
    for _ in make_runner(ECHO, progress=look).stream(specs):
        if time.monotonic() > stop_at:
            break
    assert seen[0].done == 0
    assert len(called) >= 3
    assert min(after - before for before, after in pairwise(called[:-1])) >= 0.1


def test_it_is_called_while_no_step_ends(make_runner: MakeRunner) -> None:
    """So that a clock goes on."""
    seen: list[Progress] = []
    progressed = threading.Event()

    def look(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) > 3:
            signal.raise_signal(signal.SIGINT)
            progressed.set()

    executor = FunctionExecutor({"tester": lambda spec: current_step().cancelled.wait(HANG_BOUND_S)})
    with pytest.raises(FanoutInterrupted):
        make_runner(executor, max_concurrency=1, progress=look).run(make_specs(1))
    assert [each.done for each in seen[:4]] == [0] * 4


def test_it_is_called_in_the_thread_of_the_call() -> None:
    """A function needs no lock."""
    threads: set[int] = set()
    Runner(ECHO, progress=lambda progress: threads.add(threading.get_ident())).run(make_specs(5))
    assert threads == {threading.get_ident()}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_a_function_that_raises_costs_the_run_nothing(
    error: BaseException, make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged once, and the function is not called again."""
    calls: list[Progress] = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise error

    run = make_runner(ECHO, progress=broken).run(make_specs(30))
    assert len(run.succeeded) == 30
    assert len(calls) == 1
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the progress of a run cannot be shown any more")
    ]


def test_an_interrupt_in_the_function_interrupts_the_run(make_runner: MakeRunner) -> None:
    """Nothing is lost: what had finished is in the run."""
    with pytest.raises(FanoutInterrupted) as interrupted:
        make_runner(ECHO, progress=lambda progress: _interrupt_if(progress.elapsed_s > 0)).run(make_specs(30))
    assert len(interrupted.value.run) == 30


def test_an_input_that_raises_ends_the_progress() -> None:
    """With the numbers of what was run."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(3)
        raise LookupError("no more")

    seen: list[Progress] = []
    with pytest.raises(InputError) as caught:
        Runner(ECHO, progress=seen.append).run(specs())
    assert isinstance(caught.value.run, Run)
    assert (seen[-1].done, seen[-1].succeeded, seen[-1].running) == (3, 3, 0)


def test_a_child_forked_by_the_function_does_not_go_on_with_the_run(tmp_path: Path) -> None:
    """It leaves the call as any other child does, and the parent's progress goes on."""
    seen: list[Progress] = []
    parent, left = os.getpid(), tmp_path / "left"

    def fork(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 1 and (pid := os.fork()):
            os.waitpid(pid, 0)

    try:
        run = Runner(ECHO, progress=fork).run(make_specs(5))
    except RuntimeError as error:
        left.write_text(str(error))
        raise
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert len(run.succeeded) == 5
    assert "fork" in left.read_text()
    assert seen[-1].done == 5
