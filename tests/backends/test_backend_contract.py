"""`ThreadBackend` and `ProcessBackend` keep the contract of `concurrent.futures.Executor`."""

from __future__ import annotations

import contextvars
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, as_completed, wait
from pathlib import Path
from typing import Any

import misdeeds
import pytest
from bounds import HANG_BOUND_S
from processes import wait_for_file

from fanout_sync import AgentStepSpec, OptionError, ProcessBackend, ThreadBackend
from fanout_sync.workers.calls import Calls
from fanout_sync.workers.lanes import Lanes

MakeBackend = Callable[..., Executor]


@pytest.fixture(params=[ThreadBackend, ProcessBackend])
def make_backend(request: pytest.FixtureRequest) -> Iterator[MakeBackend]:
    made: list[Executor] = []

    def make(max_workers: int = 2) -> Executor:
        made.append(request.param(max_workers))
        return made[-1]

    yield make
    for backend in made:
        backend.shutdown()


def _wait_until_running(future: Future[Any]) -> None:
    for _ in range(HANG_BOUND_S * 100):
        if future.running():
            return
        threading.Event().wait(0.01)
    raise TimeoutError(future)


def test_submit_returns_the_result(make_backend: MakeBackend) -> None:
    """A future has what its function returned, with positional and keyword arguments."""
    backend = make_backend()
    assert backend.submit(pow, 2, 5).result(HANG_BOUND_S) == 32
    assert backend.submit(int, "ff", base=16).result(HANG_BOUND_S) == 255


def test_closures_and_lambdas(make_backend: MakeBackend) -> None:
    """Functions that cannot be imported can be submitted all the same."""
    factor = 7
    assert make_backend().submit(lambda number: number * factor, 6).result(HANG_BOUND_S) == 42


def test_the_first_calls_may_come_from_many_threads_at_once() -> None:
    """If several threads submit first, there is one watcher thread, and every call is done."""
    gate = threading.Barrier(8)
    results: list[int] = []
    with ProcessBackend(2) as backend:

        def submit() -> None:
            gate.wait(HANG_BOUND_S)
            results.append(backend.submit(abs, -1).result(HANG_BOUND_S))
            watcher_counts.append(sum(thread.name == "fanout-watcher" for thread in threading.enumerate()))

        watcher_counts: list[int] = []
        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_BOUND_S)
    assert results == [1] * 8
    assert set(watcher_counts) == {1}


def test_map_keeps_the_order(make_backend: MakeBackend) -> None:
    """`map` yields results in the order of its arguments."""
    assert list(make_backend().map(operator.mul, range(50), range(50))) == [number**2 for number in range(50)]


def test_the_exception_of_a_call_is_that_of_its_future(make_backend: MakeBackend) -> None:
    """The future has the exception that its function raised, with type and arguments."""
    future = make_backend().submit(math.sqrt, -1)
    error = future.exception(HANG_BOUND_S)
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        future.result()


@pytest.mark.parametrize(
    "misdeed", [misdeeds.raise_falsy, misdeeds.raise_system_exit, misdeeds.raise_keyboard_interrupt]
)
def test_unusual_exceptions_end_their_future_only(
    make_backend: MakeBackend, misdeed: Callable[[AgentStepSpec], Any]
) -> None:
    """Falsy exceptions, and those that are no `Exception`, end their future and nothing else."""
    backend = make_backend(1)
    error = backend.submit(misdeed, AgentStepSpec("t", "a", "", "")).exception(HANG_BOUND_S)
    assert error is not None
    assert type(error).__name__ in ("Falsy", "SystemExit", "KeyboardInterrupt")
    assert backend.submit(abs, -1).result(HANG_BOUND_S) == 1


def test_callbacks_are_called(make_backend: MakeBackend) -> None:
    """A callback is called with its future when the future is done."""
    called: list[Future[int]] = []
    done = threading.Event()
    future = make_backend().submit(abs, -3)
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: done.set())
    assert done.wait(HANG_BOUND_S)
    assert called == [future]


def test_a_waiting_call_can_be_cancelled_and_a_running_one_not(make_backend: MakeBackend, tmp_path: Path) -> None:
    """`cancel` succeeds until the call has begun."""
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    running = backend.submit(wait_for_file, gate)
    waiting = backend.submit(abs, -1)
    _wait_until_running(running)
    assert waiting.cancel()
    assert not running.cancel()
    Path(gate).touch()
    assert running.result(HANG_BOUND_S) == gate
    assert waiting.cancelled()


def test_no_more_calls_run_at_once_than_there_are_workers(make_backend: MakeBackend, tmp_path: Path) -> None:
    """With two workers the third call waits for one of the first two."""
    backend = make_backend(2)
    gates = [str(tmp_path / str(number)) for number in range(3)]
    futures = [backend.submit(wait_for_file, gate) for gate in gates]
    Path(gates[0]).touch()
    Path(gates[2]).touch()
    done, _ = wait(futures, HANG_BOUND_S, FIRST_COMPLETED)
    assert futures[0] in done or futures[2] in done
    assert futures[2].result(HANG_BOUND_S) == gates[2]
    assert not futures[1].done()
    Path(gates[1]).touch()
    assert futures[1].result(HANG_BOUND_S) == gates[1]


def test_shutdown_waits_and_then_refuses(make_backend: MakeBackend) -> None:
    """`shutdown` waits for submitted calls; after it `submit` raises, and another `shutdown` does nothing."""
    backend = make_backend()
    futures = [backend.submit(abs, -number) for number in range(10)]
    backend.shutdown()
    assert [future.result(0) for future in futures] == list(range(10))
    with pytest.raises(RuntimeError, match="shutdown"):
        backend.submit(abs, 1)
    backend.shutdown()


def test_shutdown_can_cancel_waiting_calls(make_backend: MakeBackend, tmp_path: Path) -> None:
    """With `cancel_futures` waiting calls are cancelled, and running ones end normally."""
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    running = backend.submit(wait_for_file, gate)
    _wait_until_running(running)
    waiting = [backend.submit(abs, -1) for _ in range(5)]
    backend.shutdown(wait=False, cancel_futures=True)
    Path(gate).touch()
    backend.shutdown()
    assert running.result(0) == gate
    assert all(future.cancelled() for future in waiting)


def test_a_second_shutdown_can_cancel_too(make_backend: MakeBackend, tmp_path: Path) -> None:
    """`cancel_futures` cancels calls that still wait after an earlier `shutdown` without it."""
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    running = backend.submit(wait_for_file, gate)
    _wait_until_running(running)
    waiting = [backend.submit(abs, -1) for _ in range(3)]
    backend.shutdown(wait=False)
    backend.shutdown(wait=False, cancel_futures=True)
    done, _ = wait(waiting, HANG_BOUND_S)
    assert done == set(waiting)
    Path(gate).touch()
    backend.shutdown()
    assert running.result(0) == gate
    assert all(future.cancelled() for future in waiting)


def test_wait_returns_when_shutdown_cancels_a_future(make_backend: MakeBackend, tmp_path: Path) -> None:
    """`wait` and `as_completed` return cancelled futures at once, while another call still runs."""
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    running = backend.submit(wait_for_file, gate)
    _wait_until_running(running)
    waiting = [backend.submit(abs, -1) for _ in range(3)]
    backend.shutdown(wait=False, cancel_futures=True)
    assert set(as_completed(waiting, HANG_BOUND_S)) == set(waiting)
    assert not running.done()
    Path(gate).touch()
    assert running.result(HANG_BOUND_S) == gate


def test_callbacks_of_cancelled_futures_may_use_the_backend(make_backend: MakeBackend, tmp_path: Path) -> None:
    """A callback that submits while `shutdown` cancels its future gets an error and does not block."""
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    refusals: list[BaseException] = []

    def submit_again(_: Future[int]) -> None:
        try:
            backend.submit(abs, -1)
        except RuntimeError as error:
            refusals.append(error)

    backend.submit(wait_for_file, gate)
    backend.submit(abs, -1).add_done_callback(submit_again)
    backend.shutdown(wait=False, cancel_futures=True)
    Path(gate).touch()
    backend.shutdown()
    assert [type(error) for error in refusals] == [RuntimeError]


@pytest.mark.parametrize("left_by", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits_ends_neither_its_future_nor_the_pool(
    make_backend: MakeBackend, left_by: type, tmp_path: Path
) -> None:
    """If a callback raises `SystemExit`, its future keeps its result, and the other calls are done."""

    def leave(_: Future[Any]) -> None:
        called.append(True)
        raise left_by

    called: list[bool] = []
    backend = make_backend(1)
    gate = str(tmp_path / "gate")
    ending_well = backend.submit(wait_for_file, gate)
    ending_badly = backend.submit(math.sqrt, -1)
    after = [backend.submit(abs, -number) for number in range(3)]
    ending_well.add_done_callback(leave)
    ending_badly.add_done_callback(leave)
    Path(gate).touch()
    assert [future.result(HANG_BOUND_S) for future in after] == [0, 1, 2]
    assert ending_well.result(0) == gate
    assert isinstance(ending_badly.exception(0), ValueError)
    assert called == [True, True]
    assert backend.submit(abs, -1).result(HANG_BOUND_S) == 1


def test_a_call_that_is_accepted_is_done_though_shutdown_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that `submit` has accepted is done, even if another thread calls `shutdown` at the same time."""
    accept = Calls.submit
    shut_down = threading.Event()

    def accept_late(calls: Calls, payload: bytes) -> Future[Any]:
        other.start()
        shut_down.wait(0.2)  # it cannot be set yet
        return accept(calls, payload)

    monkeypatch.setattr(Calls, "submit", accept_late)
    backend = ProcessBackend(1)

    def shut() -> None:
        backend.shutdown()
        shut_down.set()

    other = threading.Thread(target=shut)
    assert backend.submit(abs, -1).result(HANG_BOUND_S) == 1
    assert shut_down.wait(HANG_BOUND_S)


def test_an_internal_error_ends_every_future(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the watcher thread fails, every future gets a `BrokenExecutor` that says why, and `submit` raises one."""
    backend = ProcessBackend(1)
    running = backend.submit(wait_for_file, str(tmp_path / "never there"))
    _wait_until_running(running)
    waiting = backend.submit(abs, -1)
    cancelled = backend.submit(abs, -1)
    assert cancelled.cancel()

    def fail(lanes: Lanes) -> None:
        raise SystemError("an internal error")

    monkeypatch.setattr(Lanes, "turn", fail)
    last = backend.submit(abs, -1)
    for future in (running, waiting, last):
        with pytest.raises(BrokenExecutor, match="SystemError: an internal error"):
            future.result(HANG_BOUND_S)
    assert wait([cancelled], HANG_BOUND_S).done == {cancelled}
    with pytest.raises(BrokenExecutor, match="are gone"):
        backend.submit(abs, -1)
    backend.shutdown()


def test_as_a_context_manager(make_backend: MakeBackend) -> None:
    """The end of the `with` block is a shutdown."""
    with make_backend() as backend:
        future = backend.submit(abs, -5)
    assert future.result(0) == 5
    with pytest.raises(RuntimeError):
        backend.submit(abs, 1)


def test_a_dropped_backend_still_ends_its_calls(make_backend: MakeBackend) -> None:
    """When the backend is deleted, its calls are still done, and its workers end."""
    kind: Any = type(make_backend())
    future = kind(1).submit(abs, -8)
    assert future.result(HANG_BOUND_S) == 8


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def test_threads_run_calls_in_a_copy_of_the_callers_context() -> None:
    """A context variable is seen by the call, and not changed by it."""

    def touch() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("dirty")
        return seen

    token = VARIABLE.set("caller")
    with ThreadBackend(1) as backend:
        assert [backend.submit(touch).result(HANG_BOUND_S) for _ in range(2)] == ["caller", "caller"]
    VARIABLE.reset(token)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True])
def test_the_number_of_workers_is_checked(size: Any) -> None:
    """An invalid number of workers is refused."""
    for kind in (ThreadBackend, ProcessBackend):
        with pytest.raises(OptionError, match="max_workers must be an int of at least 1"):
            kind(size)


def _identity(value: Any) -> Any:
    return value


def test_a_call_that_cannot_be_pickled_is_refused_at_once() -> None:
    """`submit` raises the error of pickling the arguments, and later calls are done."""
    with ProcessBackend(1) as backend:
        with pytest.raises(TypeError, match="pickle"):
            backend.submit(_identity, threading.Lock())
        assert backend.submit(abs, -1).result(HANG_BOUND_S) == 1


def test_a_dead_worker_fails_one_future() -> None:
    """The future whose call ended the worker gets a `BrokenExecutor` that names the exit code."""
    with ProcessBackend(2) as backend:
        futures = [backend.submit(abs, -number) for number in range(20)]
        broken = backend.submit(os._exit, 9)
        futures += [backend.submit(abs, -number) for number in range(20)]
        with pytest.raises(BrokenExecutor, match="exited with code 9"):
            broken.result(HANG_BOUND_S)
        assert [future.result(HANG_BOUND_S) for future in futures] == [*range(20), *range(20)]


def test_the_traceback_of_the_worker_is_shown() -> None:
    """The exception of a call has the worker's traceback as its cause."""
    with ProcessBackend(1) as backend:
        error = backend.submit(misdeeds.raise_value_error, AgentStepSpec("t", "a", "", "")).exception(HANG_BOUND_S)
    assert error is not None
    assert "raise_value_error" in str(error.__cause__)
