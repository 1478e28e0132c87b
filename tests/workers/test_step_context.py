"""Context variables and the decimal context: every step sees what `setup` sets, and only itself what it sets."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventSender,
    FunctionExecutor,
    ProcessBackend,
    Runner,
    StepOutcome,
    ThreadBackend,
    current_step,
)
from fanout_sync.testing import Ledger, make_specs

LABEL: contextvars.ContextVar[str] = contextvars.ContextVar("LABEL", default="unset")
"""Workers import this module, so every step has the same variable."""

STEPS = 3
DEFAULT_PRECISION = 28


def seen() -> str:
    """Return the values that a step sees."""
    return f"{LABEL.get()} {decimal.getcontext().prec} {decimal.getcontext().rounding}"


def change(label: str) -> None:
    """Change everything that a later step might see."""
    LABEL.set(label)
    decimal.getcontext().prec = 5
    decimal.getcontext().rounding = decimal.ROUND_UP
    decimal.getcontext().traps[decimal.Inexact] = True


def look_and_change(spec: AgentStepSpec) -> str:
    before = seen()
    change(spec.task_id)
    return before


def look_and_raise(spec: AgentStepSpec) -> str:
    before = seen()
    change(spec.task_id)
    raise ValueError(before)


async def look_and_change_async(spec: AgentStepSpec) -> str:
    await asyncio.sleep(0)
    before = seen()
    change(spec.task_id)
    await asyncio.gather(asyncio.to_thread(change, "in a thread"), asyncio.sleep(0))
    return before


@pytest.fixture(autouse=True)
def _own_context() -> Any:
    """Give each test a decimal context of its own, and check that the test leaves it unchanged."""
    with decimal.localcontext(decimal.Context(prec=DEFAULT_PRECISION, rounding=decimal.ROUND_HALF_EVEN)) as context:
        yield
        assert (context.prec, context.rounding) == (DEFAULT_PRECISION, decimal.ROUND_HALF_EVEN)
        assert not context.traps[decimal.Inexact]
        assert LABEL.get() == "unset"


@pytest.mark.parametrize("agent", [look_and_change, look_and_change_async])
def test_a_step_sees_no_change_of_another_step(agent: Any, make_runner: Callable[..., Runner]) -> None:
    """Each of several steps in one worker finds the context variables and the decimal context unchanged."""
    run = make_runner(FunctionExecutor({"tester": agent}), max_concurrency=1).run(make_specs(STEPS))
    assert [outcome.output for outcome in run] == [f"unset {DEFAULT_PRECISION} ROUND_HALF_EVEN"] * STEPS


def test_a_step_that_raises_leaves_no_change(make_runner: Callable[..., Runner]) -> None:
    """The changes of a step that fails are seen neither by its next attempt nor by other steps."""
    runner = make_runner(FunctionExecutor({"tester": look_and_raise}), max_concurrency=1, retry=2)
    records = runner.run(make_specs(STEPS)).records
    errors = [record.error.message for record in records if record.error is not None]
    assert errors == [f"unset {DEFAULT_PRECISION} ROUND_HALF_EVEN"] * STEPS
    assert [len(record.attempts) for record in records] == [2] * STEPS


class Preparing(AgentExecutor):
    """Sets both in `setup`, and notes in `teardown` what it sees there."""

    def __init__(self, ledger: Ledger, label: str, precision: int) -> None:
        self.ledger = ledger
        self.label = label
        self.precision = precision

    def concurrency_hint(self) -> int:
        return 1

    def setup(self) -> None:
        self.ledger.note(f"setup:{LABEL.get()}:{decimal.getcontext().prec}")
        LABEL.set(self.label)
        decimal.getcontext().prec = self.precision

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        before = f"{LABEL.get()} {decimal.getcontext().prec}"
        change(spec.task_id)
        return StepOutcome.completed(spec, before)

    def teardown(self) -> None:
        self.ledger.note(f"teardown:{LABEL.get()}:{decimal.getcontext().prec}")
        change("torn-down")


def test_what_setup_sets_is_seen_by_every_step_and_by_teardown(
    ledger: Ledger, make_runner: Callable[..., Runner]
) -> None:
    """Steps run in a copy of the context of `setup`, and `teardown` in that context itself."""
    run = make_runner(Preparing(ledger, "prepared", 50)).run(make_specs(STEPS))
    assert [outcome.output for outcome in run] == ["prepared 50"] * STEPS
    assert ledger.counts() == {f"setup:unset:{DEFAULT_PRECISION}": 1, "teardown:prepared:50": 1}


def test_a_warm_worker_keeps_no_context_of_an_earlier_executor(ledger: Ledger) -> None:
    """The next executor in the same worker does not see what `setup` and `teardown` of the last one set."""
    backend = ProcessBackend()
    with Runner(Preparing(ledger, "first", 50), backend=backend) as first:
        before = first.run(make_specs(1))
        run = Runner(Preparing(ledger, "second", 60), backend=backend).run(make_specs(1))
        assert run.records[0].worker == before.records[0].worker
        plain = Runner(FunctionExecutor({"tester": look_and_change}), backend=backend, max_concurrency=1)
        assert plain.run(make_specs(1))[0].output == f"unset {DEFAULT_PRECISION} ROUND_HALF_EVEN"
    assert ledger.counts() == {
        f"setup:unset:{DEFAULT_PRECISION}": 2,
        "teardown:first:50": 1,
        "teardown:second:60": 1,
    }


def test_steps_on_threads_do_not_change_the_context_of_the_caller() -> None:
    """On threads steps see what the caller has set, and the caller does not see what they change."""
    decimal.getcontext().prec = 40
    token = LABEL.set("caller")
    try:
        run = Runner(FunctionExecutor({"tester": look_and_change}), max_concurrency=1).run(make_specs(STEPS))
        assert [outcome.output for outcome in run] == ["caller 40 ROUND_HALF_EVEN"] * STEPS
        assert (decimal.getcontext().prec, LABEL.get()) == (40, "caller")
    finally:
        LABEL.reset(token)
        decimal.getcontext().prec = DEFAULT_PRECISION


def call(label: str) -> str:
    before = seen()
    change(label)
    return before


@pytest.mark.parametrize("make_backend", [ThreadBackend, ProcessBackend])
def test_a_call_sees_no_change_of_another_call(make_backend: Any) -> None:
    """Each function that is submitted to a backend runs in a context of its own."""
    with make_backend(max_workers=1) as backend:
        results = [backend.submit(call, f"c{number}").result() for number in range(STEPS)]
    assert results == [f"unset {DEFAULT_PRECISION} ROUND_HALF_EVEN"] * STEPS


_outliving: list[threading.Thread] = []
_may_ask = threading.Event()
_answers: list[str] = []


def leave_a_thread(spec: AgentStepSpec) -> str:
    def ask() -> None:
        _may_ask.wait(60)
        _answers.append(current_step().spec.task_id)

    if not _outliving:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
        thread.start()
        _outliving.append(thread)
        return "left"
    _may_ask.set()
    _outliving[0].join(60)
    return _answers[0]


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_thread_that_outlives_its_step_keeps_that_step(backend: Any) -> None:
    """In a thread with the context of a step, `current_step()` is that step, also while a later step runs."""
    _outliving.clear()
    _answers.clear()
    _may_ask.clear()
    run = Runner(FunctionExecutor({"tester": leave_a_thread}), backend=backend, max_concurrency=1).run(make_specs(2))
    assert [outcome.output for outcome in run] == ["left", "t0"]


def ask_outside(_: int) -> str:
    try:
        return current_step().spec.task_id
    except RuntimeError as error:
        return str(error)


class AskingInTeardown(AgentExecutor):
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, current_step().spec.task_id)

    def teardown(self) -> None:
        self.ledger.note("outside" if ask_outside(0).startswith("no step is running here") else "inside")


def test_no_step_is_running_in_teardown(ledger: Ledger, make_runner: Callable[..., Runner]) -> None:
    """In `teardown`, `current_step()` raises an error."""
    run = make_runner(AskingInTeardown(ledger), max_concurrency=1).run(make_specs(STEPS))
    assert [outcome.output for outcome in run] == ["t0", "t1", "t2"]
    assert ledger.counts() == {"outside": 1}
