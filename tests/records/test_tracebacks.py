"""The tracebacks of records: the user's frames, without those of this package."""

from __future__ import annotations

import asyncio
import builtins
import functools
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tenacity

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    FunctionExecutor,
    Runner,
    StepError,
    StepOutcome,
    current_step,
    fanout_map,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def deeper(spec: AgentStepSpec) -> Any:
    raise ValueError("boom")


def plain(spec: AgentStepSpec) -> Any:
    return deeper(spec)


async def from_async(spec: AgentStepSpec) -> Any:
    await asyncio.sleep(0)
    return deeper(spec)


@tenacity.retry(stop=tenacity.stop_after_attempt(2), reraise=True)
def tried_again(spec: AgentStepSpec) -> Any:
    return deeper(spec)


@tenacity.retry(stop=tenacity.stop_after_attempt(2))
def given_up(spec: AgentStepSpec) -> Any:
    return deeper(spec)


def chained(spec: AgentStepSpec) -> Any:
    try:
        deeper(spec)
    except ValueError as error:
        raise LookupError("the cause is above") from error


def in_context(spec: AgentStepSpec) -> Any:
    try:
        deeper(spec)
    except ValueError:
        return [][1]


def misused(spec: AgentStepSpec) -> Any:
    current_step().add_usage(prompt_tokens=-1)


def nested(spec: AgentStepSpec) -> Any:
    def specs() -> Any:
        yield from make_specs(1)
        deeper(spec)

    Runner(FunctionExecutor({"tester": lambda spec: "fine"})).run(specs())


def through_a_pool(spec: AgentStepSpec) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(deeper, spec).result()


AGENTS = [plain, from_async, tried_again, given_up, chained, in_context, misused, nested, through_a_pool]


def files_in(text: str | None) -> list[str]:
    return re.findall(r'File "([^"]+)", line', text or "")


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_only_the_users_frames_are_shown(make_runner: MakeRunner, agent: Any) -> None:
    """No frame of this package, and none of the libraries through which it called the step."""
    (record,) = make_runner(FunctionExecutor({"tester": agent})).run(make_specs(1)).records
    assert record.error is not None
    text = record.error.traceback or ""
    assert "/fanout_sync/" not in text
    assert "test_tracebacks.py" in files_in(text)[0]
    assert text.startswith("Traceback (most recent call last):\n")
    assert (agent is misused) or ", in deeper\n" in text
    assert record.error.message in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("agent", "link"),
    [(chained, "direct cause"), (in_context, "During handling"), (given_up, "direct cause")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_causes_and_contexts_are_shown(agent: Any, link: str) -> None:
    """With their own frames, as Python shows them."""
    (record,) = Runner(FunctionExecutor({"tester": agent})).run(make_specs(1)).records
    assert record.error is not None
    assert record.error.traceback is not None
    assert link in record.error.traceback
    assert record.error.traceback.count("Traceback (most recent call last):") == 2


class Broken(AgentExecutor):
    """Fails where the test says."""

    def __init__(self, where: str) -> None:
        self.where = where

    def setup(self) -> None:
        if self.where == "setup":
            deeper(make_specs(1)[0])

    def execute_step(self, spec: AgentStepSpec, event_tx: object = None) -> StepOutcome:
        return StepOutcome.completed(spec, "fine")


def test_a_failed_setup_shows_the_users_frames(make_runner: MakeRunner) -> None:
    """As a failed step does."""
    (record,) = make_runner(Broken("setup")).run(make_specs(1)).records
    assert record.error is not None
    assert "/fanout_sync/" not in (record.error.traceback or "")
    assert ", in setup\n" in (record.error.traceback or "")


class Unloadable:
    def __reduce__(self) -> Any:
        return deeper, (make_specs(1)[0],)


def test_an_executor_that_cannot_be_unpickled_shows_the_users_frames() -> None:
    """The traceback of the worker has what the class has done, and not how it was loaded."""
    from fanout_sync import ExecutorNotPicklable

    executor = Broken("loading")
    executor.client = Unloadable()  # type: ignore[attr-defined]  # any attribute
    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(executor, backend="process").run(make_specs(1))
    assert "/fanout_sync/" not in (caught.value.traceback or "")
    assert ", in deeper\n" in (caught.value.traceback or "")


class NoEquals:
    def __eq__(self, other: object) -> bool:
        raise LookupError("never equal")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_function_in_c_shows_the_exception_alone(backend: Any) -> None:
    """It has no frame, and those of this package say nothing."""
    for function, item, told in (
        (int, "x", "ValueError: invalid literal for int() with base 10: 'x'\n"),
        ({}.__getitem__, "x", "KeyError: 'x'\n"),
        (abs, "x", "TypeError: bad operand type for abs(): 'str'\n"),
        (functools.partial(int, base=2), "x", "ValueError: invalid literal for int() with base 2: 'x'\n"),
    ):
        (record,) = fanout_map(function, [item], backend=backend).records  # type: ignore[arg-type]  # any function
        assert record.error is not None
        assert record.error.traceback == told
    index: Any = [NoEquals()].index
    (record,) = fanout_map(index, [3], backend=backend).records
    assert record.error is not None
    assert re.findall(r", in (\w+)\n", record.error.traceback or "") == ["__eq__"]


def test_an_agent_in_c_shows_the_exception_alone() -> None:
    """As a function of `fanout_map` does."""
    (record,) = Runner(FunctionExecutor({"tester": int})).run(make_specs(1)).records
    assert record.error is not None
    assert (record.error.traceback or "").startswith("TypeError: int() argument must be")


def test_an_error_of_this_package_shows_all_frames() -> None:
    """Where the user has no frame, the error is an internal one, and has to be seen."""
    executor: Any = FunctionExecutor({})
    runner = Runner(executor)
    executor.execute_step = 3
    (record,) = runner.run(make_specs(1)).records
    assert record.error is not None
    assert record.error.type == "TypeError"
    assert "run_attempt" in (record.error.traceback or "")


def test_the_exception_itself_is_not_changed() -> None:
    """It may be the user's own, raised again and again."""
    error = ValueError("the only one")

    def raise_it(spec: AgentStepSpec) -> Any:
        raise error

    Runner(FunctionExecutor({"tester": raise_it})).run(make_specs(1))
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[0] == "run_attempt"
    assert names[-1] == "raise_it"


def test_a_chain_that_leads_back_to_itself_ends() -> None:
    """Each exception of it is shown once."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    text = StepError.of(one).traceback or ""
    assert (text.count("ValueError: one"), text.count("ValueError: two")) == (1, 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no groups of exceptions before 3.11")
def test_the_members_of_a_group_show_the_users_frames() -> None:
    """As other exceptions do."""

    def several(spec: AgentStepSpec) -> Any:
        errors = []
        for _ in range(2):
            try:
                nested(spec)
            except Exception as error:
                errors.append(error)
        raise vars(builtins)["ExceptionGroup"]("several", errors)

    (record,) = Runner(FunctionExecutor({"tester": several})).run(make_specs(1)).records
    assert record.error is not None
    assert "/fanout_sync/" not in (record.error.traceback or "")
    assert (record.error.traceback or "").count("in deeper") == 2


def test_frames_of_threads_of_the_user_are_kept() -> None:
    """An error that was caught in a thread of the step's own has only the user's frames anyway."""

    def in_thread(spec: AgentStepSpec) -> Any:
        caught: list[BaseException] = []

        def body() -> None:
            try:
                deeper(spec)
            except ValueError as error:
                caught.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        raise caught[0]

    (record,) = Runner(FunctionExecutor({"tester": in_thread})).run(make_specs(1)).records
    assert record.error is not None
    assert re.findall(r", in (\w+)\n", record.error.traceback or "") == ["in_thread", "body", "deeper"]
