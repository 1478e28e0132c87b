"""Foreign pools as backends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import misdeeds
import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    ExecutorNotPicklable,
    FunctionExecutor,
    Runner,
    StepOutcome,
    TextDelta,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs


@pytest.fixture(params=["stdlib", "loky"])
def process_pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    pool: Executor
    if request.param == "stdlib":
        pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    else:
        from loky import ProcessPoolExecutor as LokyPool

        pool = LokyPool(2)
    with pool:
        yield pool


class Hooked(LedgerExecutor):
    def setup(self) -> None:
        self.lock = threading.Lock()
        self.ledger.note(f"setup-{os.getpid()}")

    def teardown(self) -> None:
        self.ledger.note(f"teardown-{os.getpid()}")

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        if event_tx is not None:
            event_tx.send(TextDelta(spec.task_id, "half"))
        with self.lock:
            return super().execute_step(spec, event_tx)


def test_steps_run_in_the_processes_of_the_pool(process_pool: Executor, ledger: Ledger) -> None:
    """Each process sets the executor up once; outcomes, records and events come back."""
    channel = EventChannel()
    receiver = channel.subscribe()
    run = Runner(Hooked(ledger), backend=process_pool, event_tx=channel).run(make_specs(20))
    assert [outcome.output for outcome in run] == [str(number) for number in range(20)]
    workers = {record.worker for record in run.records}
    assert os.getpid() not in workers
    counts = ledger.counts()
    assert {name for name in counts if name.startswith("setup")} == {f"setup-{worker}" for worker in workers}
    assert all(counts[f"t{number}"] == 1 for number in range(20))
    channel.close()
    assert sum(isinstance(event, TextDelta) for event in receiver) == 20


def test_teardown_runs_when_the_pool_ends(ledger: Ledger) -> None:
    """The processes of a foreign pool tear the executor down at their own end."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        Runner(Hooked(ledger), backend=pool).run(make_specs(3))
    kinds = sorted(name.partition("-")[0] for name in ledger.counts() if "-" in name)
    assert kinds == ["setup", "teardown"]


def test_exceptions_of_steps_are_sent_as_text(process_pool: Executor, ledger: Ledger) -> None:
    """An exception that cannot be unpickled breaks no foreign pool, because it is never sent."""
    misdeeds_by_step = {"t1": misdeeds.raise_unloadable, "t3": misdeeds.raise_unpicklable}
    run = Runner(LedgerExecutor(ledger, misdeeds_by_step), backend=process_pool).run(make_specs(6))
    assert [record.status for record in run.records] == ["succeeded", "raised"] * 2 + ["succeeded"] * 2


def test_a_broken_pool_fails_its_steps_and_all_later_ones(ledger: Ledger) -> None:
    """When one worker breaks a stdlib pool, the steps are reported as crashed, none is lost, and the run ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        executor = LedgerExecutor(ledger, {"t2": misdeeds.exit_at_once}, concurrency=1)
        run = Runner(executor, backend=pool).run(make_specs(6))
    assert [record.status for record in run.records] == ["succeeded"] * 2 + ["crashed"] * 4
    assert [outcome.task_id for outcome in run] == [f"t{number}" for number in range(6)]
    assert "BrokenProcessPool" in (run.records[2].error or pytest.fail("no error")).type


def test_an_executor_that_does_not_pickle_is_refused_before_any_step() -> None:
    """An executor that does not pickle is not sent to a stdlib pool of processes: `run` raises an error."""
    lock = threading.Lock()
    executor = FunctionExecutor({"tester": lambda spec: str(lock)})
    with ProcessPoolExecutor(1) as pool, pytest.raises(ExecutorNotPicklable, match="lock"):
        Runner(executor, backend=pool).run(make_specs(1))


def test_a_pool_that_is_shut_down() -> None:
    """On a pool that is shut down each step fails with the reason."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    run = Runner(FunctionExecutor({"tester": lambda spec: "ran"}), backend=pool).run(make_specs(3))
    assert [record.status for record in run.records] == ["raised"] * 3
    assert "shutdown" in run[0].output


def test_the_bound_holds_on_a_larger_pool() -> None:
    """A pool with more threads than the bound never gets more steps than the bound."""
    running = 0
    most = 0
    lock = threading.Lock()

    def agent(spec: AgentStepSpec) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)  # long enough for other steps to begin, if they could
        with lock:
            running -= 1
        return "ran"

    with ThreadPoolExecutor(16) as pool:
        Runner(FunctionExecutor({"tester": agent}), backend=pool, max_concurrency=3).run(make_specs(50))
    assert most <= 3


class Cancelling(Executor):
    """A pool that cancels every second call."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls += 1
        if self.calls % 2:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_pool_that_cancels() -> None:
    """A step that its pool cancels fails and says so; one that runs inside `submit` succeeds."""
    run = Runner(FunctionExecutor({"tester": lambda spec: "ran"}), backend=Cancelling()).run(make_specs(4))
    assert [record.status for record in run.records] == ["cancelled", "succeeded"] * 2


def test_leaving_a_stream_early_cancels_waiting_steps() -> None:
    """Steps that a foreign pool has not begun are cancelled when the stream is closed."""
    gate = threading.Event()
    ran: list[str] = []

    def agent(spec: AgentStepSpec) -> str:
        ran.append(spec.task_id)
        assert spec.task_id == "t0" or gate.wait(60)
        return "ran"

    class Plain(AgentExecutor):
        def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
            return StepOutcome.completed(spec, agent(spec))

    with ThreadPoolExecutor(1) as pool:
        stream: Any = Runner(Plain(), backend=pool, max_concurrency=4).stream(make_specs(4))
        assert next(stream).task_id == "t0"
        stream.close()
        gate.set()
    assert len(ran) <= 2
