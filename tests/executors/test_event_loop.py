"""The event loop of a process: what belongs to it is shared, and no step that blocks or ignores it costs another."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import run_python

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventSender,
    FunctionExecutor,
    Retry,
    RetryAfter,
    Runner,
    StepOutcome,
    ThreadBackend,
    current_step,
)
from fanout_sync.executors.loops import THREAD_NAME
from fanout_sync.testing import make_specs

MODULE_LOCK = asyncio.Lock()
"""Made when the module is imported, in the caller and in each worker."""

LABEL: contextvars.ContextVar[str] = contextvars.ContextVar("LABEL", default="unset")

STEPS = 12


def identity_of_the_loop() -> str:
    return f"{os.getpid()} {id(asyncio.get_running_loop())} {threading.get_ident()}"


class Plain(FunctionExecutor):
    """Makes what belongs to a loop in a plain `setup`."""

    def __init__(self) -> None:
        super().__init__({"tester": self.ask})

    def setup(self) -> None:
        LABEL.set("set up")
        self.semaphore = asyncio.Semaphore(2)
        self.condition = asyncio.Condition()
        self.owner = asyncio.get_running_loop()
        self.queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def ask(self, spec: AgentStepSpec) -> str:
        assert self.owner is asyncio.get_running_loop()
        assert LABEL.get() == "set up"
        async with MODULE_LOCK, self.semaphore:
            await asyncio.sleep(0.001)
        await asyncio.gather(self.queue.put(1), self.queue.get())
        async with self.condition:
            self.condition.notify_all()
        return identity_of_the_loop()


class Async(Plain):
    """Makes the same in an async one."""

    async def setup(self) -> None:  # type: ignore[override]  # the plain one that it overrides returns None
        await asyncio.sleep(0)
        super().setup()

    async def teardown(self) -> None:
        await asyncio.sleep(0)
        assert self.owner is asyncio.get_running_loop()


class AsyncStep(AgentExecutor):
    """Its `execute_step` is async."""

    def setup(self) -> None:
        self.owner = asyncio.get_running_loop()

    async def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:  # type: ignore[override]
        async with MODULE_LOCK:
            await asyncio.sleep(0)
        assert self.owner is asyncio.get_running_loop()
        if spec.prompt == "1":
            raise ValueError("no such answer")
        return StepOutcome.completed(spec, current_step().spec.prompt)


class Mixed(Plain):
    """Has a plain agent, too; its plain `setup` is called where that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register("plain")(lambda spec: str(threading.get_ident()))

    def setup(self) -> None:
        LABEL.set("set up")
        self.semaphore = asyncio.Semaphore(1)

    async def ask(self, spec: AgentStepSpec) -> str:
        async with self.semaphore:
            await asyncio.sleep(0.001)
        return LABEL.get()


async def make_lock() -> asyncio.Lock:
    await asyncio.sleep(0)
    lock = asyncio.Lock()
    lock.made_in = asyncio.get_running_loop()  # type: ignore[attr-defined]
    return lock


async def drop_lock(lock: Any) -> None:
    assert lock.made_in is asyncio.get_running_loop()


async def use_lock(spec: AgentStepSpec, lock: Any) -> str:
    async with lock:
        await asyncio.sleep(0.001)
    assert lock.made_in is asyncio.get_running_loop()
    return "used"


def use_nothing(spec: AgentStepSpec, lock: Any) -> str:
    return "used"


@pytest.mark.parametrize("second", [use_lock, use_nothing])
def test_async_functions_for_setup_and_teardown(
    second: Callable[..., Any], make_runner: Callable[..., Runner], caplog: pytest.LogCaptureFixture
) -> None:
    """What an async `setup=` makes belongs to the loop of the async agents, also beside plain agents."""
    executor = FunctionExecutor({"tester": use_lock, "second": second}, setup=make_lock, teardown=drop_lock)
    run = make_runner(executor, max_concurrency=4).run(make_specs(STEPS))
    assert [outcome.output for outcome in run] == ["used"] * STEPS, run.summary()
    assert "teardown" not in caplog.text


@pytest.mark.parametrize("make", [Plain, Async])
def test_what_belongs_to_a_loop_is_shared_by_steps_and_runs(
    make: type[FunctionExecutor], make_runner: Callable[..., Runner]
) -> None:
    """Locks, queues and the like work in every step of every run, whether an import or `setup` has made them."""
    with make_runner(make(), max_concurrency=4) as runner:
        runs = [runner.run(make_specs(STEPS)) for _ in range(2)]
    for run in runs:
        assert not run.failed, run.summary()
    loops = {outcome.output for run in runs for outcome in run}
    processes = {loop.split()[0] for loop in loops}
    assert len(loops) == len(processes)  # one loop and one thread in each


def test_an_executor_whose_steps_are_async(make_runner: Callable[..., Runner]) -> None:
    """`async def execute_step` works as a plain one does, and so does what it raises."""
    run = make_runner(AsyncStep(), max_concurrency=4).run(make_specs(3))
    assert [outcome.output for outcome in run if outcome.success] == ["0", "2"]
    assert (run.records[1].status, run.records[1].error) == ("raised", run.records[1].error)
    assert "ValueError: no such answer" in run[1].output


def test_plain_and_async_agents_in_one_executor(make_runner: Callable[..., Runner]) -> None:
    """The async ones see what a plain `setup` has made and set."""
    specs = [AgentStepSpec(f"t{n}", "plain" if n % 2 else "tester", "", "") for n in range(STEPS)]
    run = make_runner(Mixed(), max_concurrency=4).run(specs)
    assert not run.failed, run.summary()
    assert {outcome.output for outcome in run if outcome.agent == "tester"} == {"set up"}


def test_a_failing_async_setup_is_reported(make_runner: Callable[..., Runner]) -> None:
    """Each step fails with what an async `setup` raises."""

    class Failing(AsyncStep):
        async def setup(self) -> None:  # type: ignore[override]  # the plain one that it overrides returns None
            await asyncio.sleep(0)
            raise ConnectionError("no server")

    run = make_runner(Failing(), max_concurrency=2).run(make_specs(3))
    assert all("no server" in outcome.output for outcome in run)


def test_every_copy_of_an_executor_has_its_async_hooks(make_runner: Callable[..., Runner]) -> None:
    """On threads with a copy each, an async `setup` and `teardown` are called for every copy."""
    calls = []

    class Counted(FunctionExecutor):
        async def setup(self) -> None:
            await asyncio.sleep(0)
            calls.append("setup")

        async def teardown(self) -> None:
            await asyncio.sleep(0)
            calls.append("teardown")

    backend = ThreadBackend(copies=True)
    barrier = threading.Barrier(2)
    executor = Counted({"tester": lambda spec: barrier.wait(HANG_BOUND_S) and ""})
    # A lock is not copied, so that the two steps run at the same time on two copies.
    executor.__deepcopy__ = lambda memo: Counted(executor._functions)  # type: ignore[attr-defined]
    Runner(executor, backend=backend, max_concurrency=2).run(make_specs(2))
    assert sorted(calls) == ["setup", "setup", "teardown", "teardown"]


def test_two_runs_at_once_share_the_loop() -> None:
    """Steps of runs in several threads meet in one loop."""
    both_are_there = asyncio.Event()
    there = []

    async def meet(spec: AgentStepSpec) -> str:
        there.append(spec.task_id)
        if len(there) == 2:
            both_are_there.set()
        await both_are_there.wait()
        return "met"

    runner = Runner(FunctionExecutor({"tester": meet}), timeout=HANG_BOUND_S)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(runner.run, [make_specs(1)] * 2))
    assert [run[0].output for run in runs] == ["met", "met"]


# Timeouts and cancellation --------------------------------------------------------------------------------------------


def test_an_overdue_task_is_cancelled() -> None:
    """It can clean up; the other steps go on in the same loop."""
    cancelled = threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            try:
                await asyncio.sleep(HANG_BOUND_S)
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return identity_of_the_loop()

    run = Runner(FunctionExecutor({"tester": ask}), max_concurrency=2, timeout=0.3).run(make_specs(6))
    assert run.records[0].status == "timed_out"
    assert "timed out after 0.3 s" in run[0].output
    assert len({outcome.output for outcome in run if outcome.success}) == 1
    assert cancelled.wait(HANG_BOUND_S)


@pytest.mark.filterwarnings("ignore:the timeout is a soft one")
@pytest.mark.parametrize("backend", ["thread", "foreign"])
def test_a_task_that_ignores_its_cancellation_is_abandoned(backend: str) -> None:
    """The step is reported as timed out, and its thread is free again."""
    release = threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        while spec.prompt == "0" and not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return "done"

    with ThreadPoolExecutor(1) as pool:
        place: Any = pool if backend == "foreign" else backend
        run = Runner(FunctionExecutor({"tester": ask}), backend=place, max_concurrency=1, timeout=0.2).run(
            make_specs(2)
        )
        assert pool.submit(lambda: "free").result(HANG_BOUND_S) == "free"
    release.set()
    assert [record.status for record in run.records] == ["timed_out", "succeeded"]


def test_the_tasks_of_a_run_that_is_given_up_are_cancelled() -> None:
    """Leaving a stream cancels the tasks of its steps, which can clean up."""
    begun, cancelled = threading.Event(), threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            return "first"
        begun.set()
        try:
            await asyncio.sleep(HANG_BOUND_S)
        finally:
            cancelled.set()
        return "never"

    stream = Runner(FunctionExecutor({"tester": ask}), max_concurrency=2).stream(make_specs(4))
    assert next(stream).output == "first"
    assert begun.wait(HANG_BOUND_S)
    stream.close()
    assert cancelled.wait(HANG_BOUND_S)


def test_steps_that_ctrl_c_cancels_are_cancelled(tmp_path: Path) -> None:
    """An interrupt cancels the tasks; their outcomes say that the run was interrupted, not that they raised."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, os, signal
from fanout_sync import FunctionExecutor, Runner, FanoutInterrupted
from fanout_sync.testing import make_specs

async def ask(spec):
    if spec.prompt == "0":
        return "done"
    if spec.prompt == "3":
        os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", spec.task_id, flush=True)

try:
    Runner(FunctionExecutor({"tester": ask}), max_concurrency=4).run(make_specs(4))
except FanoutInterrupted as error:
    print([record.status for record in error.run.records])
"""
    )
    done = run_python(script)
    lines = done.stdout.splitlines()
    assert sorted(lines[:-1]) == ["cleaned up t1", "cleaned up t2", "cleaned up t3"], done.stderr
    assert lines[-1] == "['succeeded', 'cancelled', 'cancelled', 'cancelled']"
    assert done.stderr == ""


def test_retries_of_an_async_agent(make_runner: Callable[..., Runner]) -> None:
    """Each attempt is a task of its own with its own `current_step()`."""

    async def ask(spec: AgentStepSpec) -> str:
        await asyncio.sleep(0)
        if current_step().attempt < 3:
            raise RetryAfter(0.0)
        return f"{current_step().attempt}"

    run = make_runner(FunctionExecutor({"tester": ask}), retry=3).run(make_specs(3))
    assert [outcome.output for outcome in run] == ["3", "3", "3"]


# A loop that is blocked -----------------------------------------------------------------------------------------------


def test_a_blocked_loop_is_replaced_and_the_blocker_named(caplog: pytest.LogCaptureFixture) -> None:
    """Each step in it ends at its own timeout, told what blocks it; new steps run in another loop; one log record."""
    release, waiting, blocks = threading.Event(), threading.Semaphore(0), threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            blocks.set()
            release.wait(HANG_BOUND_S)
        if spec.prompt in "12":
            waiting.release()
            await asyncio.sleep(HANG_BOUND_S)
        return identity_of_the_loop()

    class Late(FunctionExecutor):
        def timeout_for(self, spec: AgentStepSpec) -> float:
            return 3.0 if spec.prompt == "2" else 2.5

    specs = make_specs(6)
    specs = [specs[1], specs[2], specs[0], *specs[3:]]
    with caplog.at_level(logging.WARNING, "fanout_sync"):
        run = Runner(Late({"tester": ask}), max_concurrency=3).run(specs)
    release.set()
    assert [record.status for record in run.records] == ["timed_out"] * 3 + ["succeeded"] * 3
    place = f"{__file__}:"
    for overdue in (0, 1):
        assert "; step 't0' of agent 'tester' blocks the event loop, at " in run[overdue].output, run[overdue].output
        assert place in run[overdue].output
    assert "; it blocks the event loop, at " in run[2].output
    assert len({outcome.output for outcome in run if outcome.success}) == 1
    told = [record.getMessage() for record in caplog.records if "has blocked the event loop" in record.getMessage()]
    assert len(told) == 1, told
    assert "step 't0' of agent 'tester'" in told[0]


def test_a_blocked_loop_goes_on_for_steps_without_a_timeout() -> None:
    """What blocks for a while delays the others, and costs none of them its result."""

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            time.sleep(0.5)
        await asyncio.sleep(0.01)
        return identity_of_the_loop()

    run = Runner(FunctionExecutor({"tester": ask}), max_concurrency=4).run(make_specs(8))
    assert len({outcome.output for outcome in run}) == 1


def test_an_abandoned_loop_ends_when_it_turns_again() -> None:
    """Its thread does not stay for good once nothing uses it any more."""
    release = threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            release.wait(HANG_BOUND_S)
        return str(threading.get_ident())

    run = Runner(FunctionExecutor({"tester": ask}), max_concurrency=1, timeout=0.5).run(make_specs(2))
    assert [record.status for record in run.records] == ["timed_out", "succeeded"]
    loops = [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]
    assert len(loops) == 2
    release.set()
    for thread in loops:
        if str(thread.ident) != run[1].output:
            thread.join(HANG_BOUND_S)
            assert not thread.is_alive()


def test_a_run_that_an_async_agent_calls_directly() -> None:
    """It blocks the loop meanwhile, so its own async steps run in another one, at any depth."""

    async def ask(spec: AgentStepSpec) -> str:
        await asyncio.sleep(0)
        depth = int(spec.prompt)
        if depth == 0:
            return "leaf"
        inner = [AgentStepSpec(f"{spec.task_id}.{n}", "tester", "", str(depth - 1)) for n in range(2)]
        run = Runner(FunctionExecutor({"tester": ask}), max_concurrency=2).run(inner)
        return "+".join(outcome.output for outcome in run)

    specs = [AgentStepSpec("a", "tester", "", "2"), AgentStepSpec("b", "tester", "", "1")]
    run = Runner(FunctionExecutor({"tester": ask}), timeout=HANG_BOUND_S).run(specs)
    assert [outcome.output for outcome in run] == ["leaf+leaf+leaf+leaf", "leaf+leaf"]


def test_an_executor_that_an_async_agent_calls_directly() -> None:
    """`execute_step` of an executor with async functions works there as well."""

    async def inner(spec: AgentStepSpec) -> str:
        await asyncio.sleep(0)
        return "inner"

    async def outer(spec: AgentStepSpec) -> str:
        return FunctionExecutor({"tester": inner}).execute_step(spec).output

    assert Runner(FunctionExecutor({"tester": outer}), timeout=HANG_BOUND_S).run(make_specs(1))[0].output == "inner"


def test_a_run_in_a_thread_of_an_async_agent_shares_its_loop() -> None:
    """With `asyncio.to_thread` the loop goes on, so what belongs to it can be used in the inner run, too."""
    lock = asyncio.Lock()

    async def leaf(spec: AgentStepSpec) -> str:
        async with lock:
            await asyncio.sleep(0.001)
        return identity_of_the_loop()

    async def ask(spec: AgentStepSpec) -> str:
        run = await asyncio.to_thread(Runner(FunctionExecutor({"tester": leaf})).run, make_specs(4))
        assert {outcome.output for outcome in run} == {identity_of_the_loop()}, run.summary()
        return "same"

    run = Runner(FunctionExecutor({"tester": ask}), timeout=HANG_BOUND_S).run(make_specs(2))
    assert [outcome.output for outcome in run] == ["same", "same"]


class WithSemaphore(FunctionExecutor):
    """Shares a semaphore, which belongs to the loop in which it is used first."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__({"tester": self.ask})
        self._function = function
        self.setups = 0

    def setup(self) -> None:
        self.setups += 1
        self.semaphore = asyncio.Semaphore(1)

    async def ask(self, spec: AgentStepSpec) -> Any:
        async with self.semaphore:
            await asyncio.sleep(0.001)
        return self._function(spec)


def test_setup_is_called_again_in_the_new_loop() -> None:
    """What belongs to the loop that was abandoned is made anew, so that the steps after it succeed."""
    release = threading.Event()

    def block(spec: AgentStepSpec) -> str:
        if spec.prompt == "3":
            release.wait(HANG_BOUND_S)
        return "done"

    executor = WithSemaphore(block)
    run = Runner(executor, max_concurrency=4, timeout=1.5).run(make_specs(24))
    release.set()
    overdue = [record.status for record in run.records].count("timed_out")
    assert 1 <= overdue <= 4, run.summary()
    assert len(run.succeeded) == 24 - overdue, run.summary()
    assert executor.setups == 2


def test_a_step_that_computes_for_a_while_costs_no_other_one_anything() -> None:
    """A loop that is busy for a moment when the timeout of a step is over is not abandoned."""

    def compute(spec: AgentStepSpec) -> str:
        time.sleep(0.4)
        return "done"

    class Hanging(WithSemaphore):
        def timeout_for(self, spec: AgentStepSpec) -> float:
            return 2.0 if spec.prompt == "0" else HANG_BOUND_S

        async def ask(self, spec: AgentStepSpec) -> Any:
            if spec.prompt == "0":
                await asyncio.sleep(HANG_BOUND_S)
            return await super().ask(spec)

    executor = Hanging(compute)
    run = Runner(executor, max_concurrency=4).run(make_specs(12))
    assert [record.status for record in run.records] == ["timed_out", *["succeeded"] * 11], run.summary()
    assert executor.setups == 1


def test_a_run_after_an_interrupted_blocker(tmp_path: Path) -> None:
    """When a cell whose agent blocks is interrupted and run again, its steps and hooks get another loop."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, os, signal, threading
from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner
from fanout_sync.testing import make_specs

begun = threading.Event()

async def block(spec):
    begun.set()
    threading.Event().wait()

async def quick(spec, lock=None):
    return "quick"

def press_ctrl_c():
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press_ctrl_c, daemon=True).start()
try:
    Runner(FunctionExecutor({"tester": block})).run(make_specs(2))
except FanoutInterrupted as error:
    print(error)
for options in ({}, {"setup": lambda: {"lock": asyncio.Lock()}}):
    executor = FunctionExecutor({"tester": quick}, **options)
    print([outcome.output for outcome in Runner(executor, timeout=30).run(make_specs(2))])
"""
    )
    done = run_python(script)
    assert done.stdout.splitlines() == [
        "interrupted: 0 of 2 steps were done, 2 are cancelled",
        "['quick', 'quick']",
        "['quick', 'quick']",
    ], done.stderr


def test_a_run_without_hooks_waits_for_no_blocker() -> None:
    """Where `setup` and `teardown` do nothing, the loop is not needed for them: the timeout of a step holds."""
    release, blocks = threading.Event(), threading.Event()

    async def block(spec: AgentStepSpec) -> str:
        blocks.set()
        release.wait(HANG_BOUND_S)
        return "done"

    async def quick(spec: AgentStepSpec) -> str:
        return "quick"

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(Runner(FunctionExecutor({"tester": block})).run, make_specs(1))
        assert blocks.wait(HANG_BOUND_S)
        run = Runner(FunctionExecutor({"tester": quick}), timeout=1.0, retry=Retry(2, on_timeout=True)).run(
            make_specs(1)
        )
        assert run[0].output == "quick"  # the second attempt is in another loop
        release.set()
        assert blocked.result(HANG_BOUND_S)[0].output == "done"


@pytest.mark.filterwarnings("ignore:the timeout is a soft one")
def test_the_blocker_is_named_on_a_pool_of_the_callers() -> None:
    """A step that is given up there says what blocks the loop, too."""
    release = threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            release.wait(HANG_BOUND_S)
        await asyncio.sleep(HANG_BOUND_S)
        return "never"

    with ThreadPoolExecutor(2) as pool:
        run = Runner(FunctionExecutor({"tester": ask}), backend=pool, timeout=1.0).run(make_specs(2))
        release.set()
    assert "; it blocks the event loop, at " in run[0].output
    assert "; step 't0' of agent 'tester' blocks the event loop, at " in run[1].output


def test_an_agent_that_blocks_in_another_executor_is_named() -> None:
    """Also after it has called another executor, whose async code has ended."""
    release = threading.Event()

    async def inner(spec: AgentStepSpec) -> str:
        return "inner"

    async def outer(spec: AgentStepSpec) -> str:
        FunctionExecutor({"tester": inner}).execute_step(spec)
        release.wait(HANG_BOUND_S)
        return "never"

    run = Runner(FunctionExecutor({"tester": outer}), timeout=1.0).run(make_specs(1))
    release.set()
    assert "; it blocks the event loop, at " in run[0].output


def test_teardown_waits_for_agents_that_clean_up() -> None:
    """An overdue agent uses its client in `finally`, before `teardown` closes it."""
    is_open = []

    class Closing(FunctionExecutor):
        def setup(self) -> None:
            self.is_open = True

        async def teardown(self) -> None:
            self.is_open = False

        async def ask(self, spec: AgentStepSpec) -> str:
            try:
                await asyncio.sleep(HANG_BOUND_S)
            finally:
                await asyncio.sleep(0.3)
                is_open.append(self.is_open)
            return "never"

    executor = Closing()
    executor.register("tester")(executor.ask)
    run = Runner(executor, timeout=0.3).run(make_specs(2))
    assert [record.status for record in run.records] == ["timed_out", "timed_out"]
    assert "its task is cancelled" in run[0].output
    assert is_open == [True, True]
    assert not executor.is_open


def test_many_agents_that_each_compute_a_little_block_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that is slow because many use it is not said to be blocked by one of them."""

    async def slices(spec: AgentStepSpec) -> str:
        for _ in range(10):
            time.sleep(0.004)
            await asyncio.sleep(0)
        return "done"

    run = Runner(FunctionExecutor({"tester": slices}), max_concurrency=60).run(make_specs(60))
    assert len(run.succeeded) == 60
    assert "blocked the event loop" not in caplog.text


def test_calls_in_threads_do_not_wait_for_each_other() -> None:
    """Runs in `asyncio.to_thread` whose steps call `asyncio.to_thread`, and calls that hang, use up no pool."""
    release = threading.Event()

    async def inner(spec: AgentStepSpec) -> str:
        return await asyncio.to_thread(lambda: "inner")

    async def outer(spec: AgentStepSpec) -> str:
        if spec.prompt == "hang":
            await asyncio.to_thread(release.wait, HANG_BOUND_S)
        run = await asyncio.to_thread(Runner(FunctionExecutor({"tester": inner})).run, make_specs(2))
        return run[0].output

    hanging = [AgentStepSpec(f"h{n}", "tester", "", "hang") for n in range(40)]
    runner = Runner(FunctionExecutor({"tester": outer}), max_concurrency=40, timeout=1.0)
    assert {record.status for record in runner.run(hanging).records} == {"timed_out"}
    patient = Runner(FunctionExecutor({"tester": outer}), max_concurrency=40, timeout=HANG_BOUND_S)
    assert {outcome.output for outcome in patient.run(make_specs(40))} == {"inner"}
    release.set()


def test_an_executor_that_sets_up_another_one_itself(make_runner: Callable[..., Runner]) -> None:
    """Its `setup` calls that of a `FunctionExecutor` whose agents are all async, and awaits nothing."""

    class Wrapping(AgentExecutor):
        def __init__(self) -> None:
            self.inner = FunctionExecutor({"tester": use_lock}, setup=make_lock, teardown=drop_lock)

        def setup(self) -> None:
            self.inner.setup()

        def teardown(self) -> None:
            self.inner.teardown()

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            return self.inner.execute_step(spec, event_tx)

    run = make_runner(Wrapping()).run(make_specs(2))
    assert [outcome.output for outcome in run] == ["used", "used"]


def test_what_a_failed_step_holds_is_released_at_once() -> None:
    """No reference cycle keeps the locals of an agent that has raised, or was cancelled."""

    class Large:
        """Something that is not to stay in memory."""

    alive: list[weakref.ref[Large]] = []

    async def ask(spec: AgentStepSpec) -> str:
        large = Large()
        alive.append(weakref.ref(large))
        if spec.prompt == "0":
            raise ValueError("no")
        await asyncio.sleep(HANG_BOUND_S)
        return "never"

    gc.collect()
    gc.disable()
    try:
        Runner(FunctionExecutor({"tester": ask}), timeout=0.3).run(make_specs(2))
        assert eventually(lambda: [reference() for reference in alive] == [None, None])
    finally:
        gc.enable()


# What steps do to the loop --------------------------------------------------------------------------------------------


async def _exit() -> None:
    sys.exit(3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_step_ends_the_loop(make_runner: Callable[..., Runner], caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit in a task, `loop.stop()` and the like cost no other step anything."""

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            sys.exit(3)
        if spec.prompt == "1":
            task = asyncio.create_task(_exit())
            await asyncio.wait([task])
            assert isinstance(task.exception(), SystemExit)
        if spec.prompt == "2":
            asyncio.get_running_loop().stop()
        if spec.prompt == "3":
            asyncio.get_running_loop().close()
        if spec.prompt == "4":
            raise KeyboardInterrupt
        if spec.prompt == "5":
            raise asyncio.CancelledError
        await asyncio.sleep(0.001)
        return "done"

    run = make_runner(FunctionExecutor({"tester": ask}), max_concurrency=4).run(make_specs(10))
    assert [outcome.task_id for outcome in run if not outcome.success] == ["t0", "t3", "t4", "t5"]
    assert {record.status for record in run.records if record.error} == {"raised"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_a_loop_of_its_own(tmp_path: Path) -> None:
    """A child of the caller, and one that an async agent has forked in the loop, leave the parent's loop alone."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, os, warnings
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

warnings.simplefilter("ignore", DeprecationWarning)

async def ask(spec):
    await asyncio.sleep(0.01)
    return str(os.getpid())

async def fork(spec):
    if spec.prompt == "1":
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        else:
            await asyncio.sleep(0)
            print("a child went on", flush=True)
    await asyncio.sleep(0.01)
    return str(os.getpid())

def all_here(agent):
    run = Runner(FunctionExecutor({"tester": agent}), timeout=30).run(make_specs(4))
    return {outcome.output for outcome in run} == {str(os.getpid())}

print(all_here(ask), flush=True)
child = os.fork()
if not child:
    print("child", all_here(ask), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], all_here(ask), all_here(fork), flush=True)
"""
    )
    done = run_python(script)
    assert (done.stdout, done.stderr) == ("True\nchild True\n0 True True\n", "")


CLOSING = """
import asyncio
from concurrent.futures import ProcessPoolExecutor
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

kept = []

async def numbers():
    try:
        for number in range(10):
            yield number
    finally:
        await asyncio.sleep(0)
        print("generator closed", flush=True)

async def background():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("task cancelled", flush=True)

async def ask(spec):
    task = asyncio.create_task(background())
    generator = numbers()
    kept.extend((task, generator))
    return str(await generator.__anext__())

if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        backend = pool if BACKEND == "foreign" else BACKEND
        run = Runner(FunctionExecutor({"tester": ask}), backend=backend).run(make_specs(1))
        print(run[0].output, flush=True)
"""


@pytest.mark.parametrize("backend", ["thread", "process", "foreign"])
def test_generators_and_tasks_are_closed_at_the_end(backend: str, tmp_path: Path) -> None:
    """What is pending when the program or the worker ends is cancelled, and can clean up."""
    script = tmp_path / "script.py"
    script.write_text(CLOSING.replace("BACKEND", repr(backend)))
    done = run_python(script)
    assert sorted(done.stdout.splitlines()) == ["0", "generator closed", "task cancelled"]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_program_ends_though_an_async_agent_hangs(backend: str, tmp_path: Path) -> None:
    """Neither a blocked loop nor a hanging `asyncio.to_thread` of an overdue step keeps the program from ending."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import asyncio, threading
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

async def ask(spec):
    if spec.prompt == "0":
        await asyncio.to_thread(threading.Event().wait)
    threading.Event().wait()

if __name__ == "__main__":
    executor = FunctionExecutor({{"tester": ask}}, concurrency=1)
    run = Runner(executor, backend={backend!r}, timeout=0.5).run(make_specs(2))
    print([record.status for record in run.records])
"""
    )
    done = run_python(script)
    assert (done.stdout, done.returncode) == ("['timed_out', 'timed_out']\n", 0), done.stderr


def test_a_closed_stream_of_an_async_generator_is_the_users(make_runner: Callable[..., Runner]) -> None:
    """Async generators and `async for` work in agents."""

    async def ask(spec: AgentStepSpec) -> str:
        async def count() -> AsyncIterator[int]:
            for number in range(3):
                await asyncio.sleep(0)
                yield number

        return "".join([str(number) async for number in count()])

    assert make_runner(FunctionExecutor({"tester": ask})).run(make_specs(1))[0].output == "012"
