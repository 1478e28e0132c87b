"""Ctrl-C in the code of the caller that a run calls: it is raised there, and costs no step its outcome."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import tenacity

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    FanoutInterrupted,
    FunctionExecutor,
    MemoryJournal,
    OpenWorkflow,
    RateLimit,
    Runner,
    StepOutcome,
    Stop,
)
from fanout_sync.testing import make_specs


def interrupt() -> None:
    """Interrupt this thread, which is the main one; what comes after does not run if that is raised here."""
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("the interrupt was not raised in the caller's code")


def answer(spec: AgentStepSpec) -> str:
    return spec.prompt


EXECUTOR = FunctionExecutor({"tester": answer}, concurrency=1)
CALLS: dict[str, Callable[[Runner, Any], Any]] = {
    "run": lambda runner, specs: runner.run(specs),
    "stream": lambda runner, specs: list(runner.stream(specs)),
    "loop": lambda runner, specs: runner.loop(specs, 3, lambda outcomes: Stop()),
}
each_call = pytest.mark.parametrize("call", CALLS)


class OddSpecs:
    """Specs whose own methods are interrupted."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.iterations = 0

    def __len__(self) -> int:
        if self.where == "len":
            interrupt()
        return 2

    def __iter__(self) -> Iterator[AgentStepSpec]:
        if self.where == "iter":
            interrupt()
        return iter(make_specs(2))


@pytest.mark.parametrize(("where", "call"), [("len", "run"), ("len", "stream"), ("len", "loop"), ("iter", "run")])
@pytest.mark.parametrize("has_journal", [False, True])
def test_methods_of_the_input(where: str, call: str, has_journal: bool) -> None:
    """An input that is interrupted when it is asked for its length or its iterator ends the call; no step runs."""
    options: dict[str, Any] = {"journal": MemoryJournal()} if has_journal else {}
    with pytest.raises(FanoutInterrupted) as caught:
        CALLS[call](Runner(EXECUTOR, **options), OddSpecs(where))
    assert [outcome.success for outcome in caught.value.run].count(True) == 0


@each_call
def test_the_hint_of_the_executor(call: str) -> None:
    """An executor that is interrupted when it is asked how many steps may run leaves all of them cancelled."""

    class Slow(AgentExecutor):
        def concurrency_hint(self) -> int:
            interrupt()
            return 1

        def execute_step(self, spec: AgentStepSpec, event_tx: object = None) -> StepOutcome:
            raise NotImplementedError

    with pytest.raises(FanoutInterrupted) as caught:
        CALLS[call](Runner(Slow()), make_specs(3))
    assert [record.status for record in caught.value.run.records] == ["cancelled"] * 3


@each_call
def test_the_key_of_a_rate_limit(call: str) -> None:
    """A step whose key is just being asked for is cancelled, not forgotten."""

    def key(spec: AgentStepSpec) -> str:
        if spec.task_id == "t3":
            interrupt()
        return "all"

    runner = Runner(EXECUTOR, rate_limit=RateLimit(600, key=key), max_concurrency=1)
    with pytest.raises(FanoutInterrupted) as caught:
        CALLS[call](runner, make_specs(6))
    assert caught.value.yielded + len(caught.value.run) == 6
    assert "t3" in [outcome.task_id for outcome in caught.value.run if not outcome.success]


@each_call
def test_a_stop_strategy(call: str) -> None:
    """A step for which nobody could say that it has no more attempts is cancelled, and not journalled."""

    def stop(state: tenacity.RetryCallState) -> bool:
        interrupt()
        return False

    def fail(spec: AgentStepSpec) -> str:
        raise ValueError(spec.prompt)

    journal = MemoryJournal()
    retry = tenacity.Retrying(stop=stop, wait=tenacity.wait_none(), retry=tenacity.retry_if_exception_type())
    runner = Runner(FunctionExecutor({"tester": fail}), retry=retry, max_concurrency=1, journal=journal)
    with pytest.raises(FanoutInterrupted) as caught:
        CALLS[call](runner, make_specs(3))
    assert [record.status for record in caught.value.run.records] == ["cancelled"] * 3
    assert caught.value.run.records[0].attempts[0].status == "raised"
    assert len(journal.records("default")) == 0


class Inline(Executor):
    """Runs what it is given then and there."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def be_interrupted(spec: AgentStepSpec) -> str:
    interrupt()
    return spec.prompt


@each_call
def test_a_run_inside_a_step_that_runs_inline(call: str) -> None:
    """An interrupt that ends a run inside a step ends the run that the step is part of, too."""

    def fan_out(spec: AgentStepSpec) -> str:
        if spec.task_id == "t1":
            Runner(FunctionExecutor({"tester": be_interrupted}), backend=Inline()).run(make_specs(2))
        return spec.prompt

    runner = Runner(FunctionExecutor({"tester": fan_out}), backend=Inline(), max_concurrency=1)
    with pytest.raises(FanoutInterrupted) as caught:
        CALLS[call](runner, make_specs(5))
    statuses = {
        outcome.task_id: record.status
        for outcome, record in zip(caught.value.run, caught.value.run.records, strict=True)
    }
    assert [statuses["t3"], statuses["t4"]] == ["cancelled", "cancelled"]


def test_outcomes_that_say_cancelled_are_not_counted_as_done() -> None:
    """What a stream has yielded is counted by what it says: steps after max_failures were not done."""

    def fail(spec: AgentStepSpec) -> str:
        raise ValueError(spec.prompt)

    stream: Any = Runner(FunctionExecutor({"tester": fail}), max_failures=1, max_concurrency=1).stream(make_specs(6))
    assert len([next(stream) for _ in range(4)]) == 4
    with pytest.raises(FanoutInterrupted, match=r"interrupted: 1 of 6 steps were done, 5 are cancelled"):
        stream.throw(KeyboardInterrupt())


def test_workers_are_ended_although_a_stream_cannot_be_closed() -> None:
    """Leaving a `with` ends warm workers, also if the caller's own journal raises when a stream is closed."""

    class Broken(MemoryJournal):
        def open(self, workflow_id: str) -> OpenWorkflow:
            opened = super().open(workflow_id)
            opened.close = fail_to_close  # type: ignore[method-assign]  # a store that breaks
            return opened

    def fail_to_close() -> None:
        raise RuntimeError("the store is down")

    def leave() -> None:
        with Runner(EXECUTOR, backend="process", max_concurrency=1, journal=Broken()) as runner:
            streams.append(runner.stream(make_specs(9)))
            next(streams[0])

    streams: list[Any] = []
    with pytest.raises(RuntimeError, match="the store is down"):
        leave()
    assert multiprocessing.active_children() == []


def test_a_second_interrupt_in_a_later_round_of_a_loop() -> None:
    """What hangs in the second round can be left by a second Ctrl-C as it can in the first one."""

    class Stuck:
        """An `event_tx` whose `send` does not return in the second round, until it is interrupted twice."""

        def send(self, event: object) -> None:
            if rounds:
                signal.raise_signal(signal.SIGINT)
                sent.append(event)
                while True:
                    signal.raise_signal(signal.SIGINT)

    from fanout_sync import Continue

    rounds: list[int] = []
    sent: list[object] = []

    def next_round(outcomes: object) -> Continue:
        rounds.append(1)
        return Continue([AgentStepSpec("u0", "tester", "", "")])

    with pytest.raises(FanoutInterrupted):
        Runner(EXECUTOR, event_tx=Stuck()).loop(make_specs(1), 3, next_round)
    assert sent
