"""Steps that take too long: they are stopped and reported, and their worker is replaced."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import misdeeds
import pytest
from bounds import HANG_BOUND_S
from processes import eventually, is_alive, pids_in

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    EventSender,
    FunctionExecutor,
    OptionError,
    ProcessBackend,
    Retry,
    Runner,
    StepOutcome,
    TextDelta,
    current_step,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

pytestmark = pytest.mark.xdist_group("timing")

SHORT_S = 0.2
FOREVER_S = 3600.0

MakeRunner = Callable[..., Runner]

# A foreign pool with a timeout causes a warning that it cannot be killed.
soft = pytest.mark.filterwarnings("ignore:the timeout is a soft one:UserWarning")


def hang(spec: AgentStepSpec) -> Any:
    """Hang until the process ends or the test sets `RELEASE`."""
    misdeeds.RELEASE.wait(FOREVER_S)


def hang_in_c(spec: AgentStepSpec) -> Any:
    """Hang in a call that holds the interpreter; only SIGKILL ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import ctypes

    ctypes.PyDLL(None).sleep(int(FOREVER_S))


def hang_with_descendants(spec: AgentStepSpec) -> Any:
    """Start children and grandchildren, some of them orphaned or in sessions of their own, and hang."""
    leave_pid = f"echo $$ > {spec.description}/$$.pid; exec sleep {FOREVER_S:g}"
    subprocess.Popen(["sh", "-c", leave_pid], start_new_session=True)
    subprocess.Popen(["sh", "-c", f"trap '' TERM; sh -c '{leave_pid}' & wait"])
    subprocess.run(["setsid", "sh", "-c", f"sh -c '{leave_pid}' & exit"], check=True)
    if os.fork() == 0:
        os.setsid()
        Path(f"{spec.description}/{os.getpid()}.pid").write_text(f"{os.getpid()}\n")
        while True:
            signal.pause()
    hang(spec)


@pytest.fixture
def _release() -> Any:
    misdeeds.RELEASE.clear()
    yield
    misdeeds.RELEASE.set()


@pytest.mark.usefixtures("_release")
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_only_overdue_steps_are_stopped(backend: Any, ledger: Ledger) -> None:
    """An overdue step is `timed_out`; even if as many hang as there are places, every other step runs once."""
    specs = make_specs(12)
    slow = {"t0", "t1", "t2", "t6"}
    executor = LedgerExecutor(ledger, dict.fromkeys(slow, hang), concurrency=3)
    run = Runner(executor, backend=backend, timeout=SHORT_S).run(specs)
    assert [outcome.task_id for outcome in run] == [spec.task_id for spec in specs]
    assert {outcome.task_id for outcome in run.failed} == slow
    assert ledger.counts() == {spec.task_id: 1 for spec in specs}
    for outcome, record in zip(run, run.records, strict=True):
        assert record.status == ("timed_out" if outcome.task_id in slow else "succeeded")
        if outcome.task_id in slow:
            assert outcome.output.startswith(f"timed out after {SHORT_S} s; ")
            assert ("abandoned" if backend == "thread" else "killed") in outcome.output
            assert record.error is not None
            assert record.error.type == "TimeoutError"
            assert record.duration_s is not None
            assert record.duration_s >= SHORT_S
            assert record.worker is not None
            assert record.attempts[0].status == "timed_out"


def test_a_call_into_c_is_stopped(ledger: Ledger) -> None:
    """A step that holds the interpreter in C and ignores SIGTERM is killed."""
    executor = LedgerExecutor(ledger, {"t1": hang_in_c}, concurrency=2)
    run = Runner(executor, backend="process", timeout=SHORT_S).run(make_specs(4))
    assert [record.status for record in run.records] == ["succeeded", "timed_out", "succeeded", "succeeded"]


@pytest.mark.parametrize("unattended", [False, True])
def test_the_whole_tree_of_an_overdue_step_is_killed(unattended: bool, tmp_path: Path) -> None:
    """Children, grandchildren and daemons in sessions of their own are killed with the step that started them."""
    specs = [AgentStepSpec("t0", "descendants", str(tmp_path), ""), AgentStepSpec("t1", "quick", "", "")]
    executor = FunctionExecutor({"descendants": hang_with_descendants, "quick": lambda spec: "done"}, concurrency=2)
    runner = Runner(executor, backend="process", timeout=1.5)
    outcomes = list(runner.stream(specs) if unattended else runner.run(specs))
    pids = pids_in(tmp_path, 4)
    assert [outcome.success for outcome in outcomes] == [False, True]
    assert eventually(lambda: not any(map(is_alive, pids))), "one of them outlives it"


def test_a_crash_kills_the_process_group_of_the_worker(tmp_path: Path) -> None:
    """A process that a step left in the process group of its worker is killed when the worker dies."""

    def leave_and_die(spec: AgentStepSpec) -> Any:
        subprocess.Popen(["sh", "-c", f"echo $$ > {spec.description}/$$.pid; exec sleep {FOREVER_S:g}"])
        while not list(Path(spec.description).glob("*.pid")):
            time.sleep(0.005)  # waits for another process
        os._exit(3)

    executor = FunctionExecutor({"a": leave_and_die})
    run = Runner(executor, backend="process").run([AgentStepSpec("t", "a", str(tmp_path), "")])
    assert (run.records[0].status, run.records[0].exit_code, run.records[0].signal) == ("crashed", 3, None)
    (child,) = pids_in(tmp_path, 1)
    assert eventually(lambda: not is_alive(child))


def nap_a_little(spec: AgentStepSpec) -> str:
    time.sleep(0.1)
    return "rested"


@soft
def test_the_clock_starts_when_the_step_does(make_runner: MakeRunner) -> None:
    """The time that a step waits for a place does not count for its timeout."""
    napping = FunctionExecutor({"tester": nap_a_little})
    run = make_runner(napping, max_concurrency=1, timeout=0.5).run(make_specs(10))
    assert not run.failed


class Limits(AgentExecutor):
    """Evaluates the prompt of a step as a Python expression for its time limit."""

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        step = current_step()
        if spec.description == "hang":
            hang(spec)
        left = None if step.deadline is None else step.deadline - time.monotonic()
        return StepOutcome.completed(spec, "", {"limit": step.timeout_s, "is_in_time": left is None or left > 0})

    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        limit: float | None = eval(spec.prompt, {"inf": math.inf})
        return limit


@soft
@pytest.mark.usefixtures("_release")
def test_the_executor_may_set_limits(make_runner: MakeRunner) -> None:
    """`timeout_for` overrides the runner's `timeout`; `None` keeps that, and infinity means no limit."""
    specs = [
        AgentStepSpec("own", "a", "hang", "0.2"),
        AgentStepSpec("other", "a", "", "50"),
        AgentStepSpec("default", "a", "", "None"),
        AgentStepSpec("none", "a", "", "inf"),
    ]
    run = make_runner(Limits(), timeout=100, max_concurrency=2).run(specs)
    misdeeds.RELEASE.set()
    assert run.records[0].status == "timed_out"
    assert [outcome.structured for outcome in run[1:]] == [
        {"limit": limit, "is_in_time": True} for limit in (50.0, 100.0, None)
    ]


def test_limits_that_differ_are_all_kept() -> None:
    """A step with a short limit is stopped in time, whatever the limits of the other steps are."""
    gate = threading.Event()

    def work(spec: AgentStepSpec) -> str:
        if spec.description == "hang":
            assert current_step().cancelled.wait(FOREVER_S)
        elif spec.description == "wait":
            assert gate.wait(HANG_BOUND_S)
        return ""

    class Sorted(FunctionExecutor):
        def timeout_for(self, spec: AgentStepSpec) -> float | None:
            return float(spec.prompt)

    plan = [("hang", "0.05"), ("wait", "50"), ("", "30"), ("hang", "0.5")]
    specs = [AgentStepSpec(f"t{n}", "work", what, limit) for n, (what, limit) in enumerate(plan)]
    statuses = {}
    for outcome in Runner(Sorted({"work": work}), max_concurrency=2).stream(specs, order="completion"):
        statuses[outcome.task_id] = outcome.success
        if outcome.task_id == "t3":
            gate.set()
    assert statuses == {"t0": False, "t2": True, "t3": False, "t1": True}


@pytest.mark.parametrize(("limit", "said"), [("1/0", "ZeroDivisionError"), ("-1", "timeout_for"), ("'1'", "str '1'")])
def test_an_invalid_limit_fails_its_own_step(limit: str, said: str) -> None:
    """If `timeout_for` raises or returns an invalid limit, that step fails and does not run."""
    specs = [AgentStepSpec("bad", "a", "", limit), AgentStepSpec("good", "a", "", "5")]
    run = Runner(Limits()).run(specs)
    assert [outcome.success for outcome in run] == [False, True]
    assert said in run[0].output
    assert run.records[0].started is None
    assert run.records[0].attempts == ()


def stop_by_itself(spec: AgentStepSpec) -> str:
    """Wait to be cancelled, then write a file."""
    step = current_step()
    assert step.cancelled.wait(FOREVER_S)
    assert step.cancelled.is_set()
    Path(spec.description).write_text("cleaned up")
    return str(os.getpid())


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_step_can_stop_by_itself(backend: Any, tmp_path: Path) -> None:
    """`cancelled` is set at the deadline; a step that returns then is `timed_out`, but its worker is not killed."""
    note = tmp_path / "note"
    executor = FunctionExecutor({"stop": stop_by_itself, "pid": lambda spec: str(os.getpid())})
    specs = [AgentStepSpec("t0", "stop", str(note), ""), AgentStepSpec("t1", "pid", "", "")]
    run = Runner(executor, backend=backend, max_concurrency=1, timeout=1.0).run(specs)
    assert [record.status for record in run.records] == ["timed_out", "succeeded"]
    assert eventually(note.exists)
    if backend == "process":
        assert run.records[0].worker == run.records[1].worker


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_current_step(backend: Any) -> None:
    """A step can get its own data, in coroutines too; `cancelled.wait` returns false after its timeout."""

    async def describe(spec: AgentStepSpec) -> Any:
        import asyncio

        step = await asyncio.to_thread(current_step)
        return [step.spec == spec, step.index, step.attempt, step.deadline, step.cancelled.wait(0.001)]

    run = Runner(FunctionExecutor({"tester": describe}), backend=backend).run(make_specs(3))
    assert [outcome.structured for outcome in run] == [[True, index, 1, None, False] for index in range(3)]


def test_current_step_outside_of_a_step() -> None:
    """`current_step()` raises an error outside of a step, before and after a run."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no step is running here"):
            current_step()
        Runner(FunctionExecutor({"tester": lambda spec: ""})).run(make_specs(1))


def test_an_overdue_worker_is_killed_while_the_consumer_is_busy(ledger: Ledger) -> None:
    """A worker is killed at its deadline, even if the consumer does not ask for the next outcome."""
    executor = LedgerExecutor(ledger, {"t1": hang}, concurrency=2)
    stream = Runner(executor, backend="process", timeout=0.5).stream(make_specs(3), order="completion")
    assert next(stream).success
    before = _workers()
    assert before
    assert eventually(lambda: len(before & _workers()) < len(before))
    assert sorted(outcome.success for outcome in stream) == [False, True]


def _workers() -> set[int]:
    import multiprocessing

    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def test_the_late_result_of_an_abandoned_thread_is_dropped(ledger: Ledger) -> None:
    """The late result of an abandoned attempt is dropped, even if the next attempt is still running."""
    gates = [threading.Event(), threading.Event()]
    ended = threading.Event()

    class Gated(AgentExecutor):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            attempt = current_step().attempt
            ledger.note(f"attempt-{attempt}")
            if attempt == 1:
                gates[0].wait(HANG_BOUND_S)
                ended.set()
            else:
                gates[0].set()
                assert ended.wait(HANG_BOUND_S)
            return StepOutcome.completed(spec, f"attempt {attempt}")

    run = Runner(Gated(), timeout=1.0, retry=Retry(2, wait=0, on_timeout=True)).run(make_specs(1))
    assert run[0].output == "attempt 2"
    assert ledger.counts() == {"attempt-1": 1, "attempt-2": 1}
    assert [attempt.status for attempt in run.records[0].attempts] == ["timed_out", "succeeded"]


def test_teardown_comes_after_abandoned_threads() -> None:
    """`setup` and `teardown` run once each, even if every thread of the run was abandoned."""
    calls = []

    class Hooked(AgentExecutor):
        def setup(self) -> None:
            calls.append("setup")

        def teardown(self) -> None:
            calls.append("teardown")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            assert current_step().cancelled.wait(FOREVER_S)
            return StepOutcome.completed(spec, "")

    run = Runner(Hooked(), timeout=0.1, max_concurrency=2).run(make_specs(4))
    assert {record.status for record in run.records} == {"timed_out"}
    assert calls == ["setup", "teardown"]


def test_a_script_with_abandoned_threads_ends(tmp_path: Path) -> None:
    """Abandoned threads do not keep the interpreter from exiting."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from fanout_sync import *\n"
        "executor = FunctionExecutor({'a': lambda spec: time.sleep(3600)})\n"
        "specs = [AgentStepSpec(f't{n}', 'a', '', '') for n in range(8)]\n"
        "print(Runner(executor, timeout=0.1).run(specs).summary().splitlines()[0].partition(': ')[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=HANG_BOUND_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8 timed_out\n", "")


def test_late_events_of_an_abandoned_step_are_dropped() -> None:
    """Events that a step sends after it was given up are dropped: its end event is the last."""
    sent = threading.Event()

    def late(spec: AgentStepSpec, event_tx: Any) -> str:
        event_tx.send(TextDelta(spec.task_id, "in time"))
        assert current_step().cancelled.wait(FOREVER_S)
        assert gate.wait(HANG_BOUND_S)
        event_tx.send(TextDelta(spec.task_id, "too late"))
        sent.set()
        return ""

    gate = threading.Event()
    events: list[Any] = []
    with EventChannel() as channel:
        channel.listen(events.append)
        Runner(FunctionExecutor({"tester": late}), timeout=0.1, event_tx=channel).run(make_specs(1))
        gate.set()
        assert sent.wait(HANG_BOUND_S)
    assert [event.tag for event in events] == ["run_start", "subagent_start", "text_delta", "subagent_end", "run_end"]


def test_a_long_spec_is_read_before_the_clock_starts() -> None:
    """The time to send a hundred megabytes does not count for the timeout of the step."""
    specs = [AgentStepSpec("t", "tester", "", "x" * 100_000_000)]
    executor = FunctionExecutor({"tester": lambda spec: str(len(spec.prompt))})
    run = Runner(executor, backend="process", timeout=0.3).run(specs)
    assert run[0].output == "100000000"


# Foreign pools --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_release")
@pytest.mark.parametrize("pool_type", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_foreign_pool_has_a_soft_timeout(pool_type: Any) -> None:
    """On a foreign pool an overdue step is reported at its deadline; the runner warns that it cannot be stopped."""
    executor = FunctionExecutor({"tester": lambda spec: misdeeds.RELEASE.wait(1.5) or "late"}, concurrency=1)
    with pool_type(2) as pool:
        with pytest.warns(UserWarning, match=rf"soft one.*{pool_type.__name__} cannot stop a step") as warned:
            runner = Runner(executor, backend=pool, timeout=SHORT_S)
        run = runner.run(make_specs(2))
        misdeeds.RELEASE.set()
    assert len(warned) == 1
    assert [record.status for record in run.records] == ["timed_out"] * 2
    assert "left to itself" in run[0].output


@soft
def test_steps_of_a_foreign_pool_that_end_in_time_succeed() -> None:
    """Neither a slow consumer, nor `setup`, nor waiting for a place in the pool makes a step overdue."""

    class SlowToStart(FunctionExecutor):
        def setup(self) -> None:
            time.sleep(0.4)

    with ThreadPoolExecutor(2) as pool:
        runner = Runner(SlowToStart({"tester": lambda spec: "fine"}), backend=pool, timeout=0.2)
        for outcome in runner.stream(make_specs(4)):
            assert outcome.success
            time.sleep(0.3)  # a slow consumer
    with ProcessPoolExecutor(1) as processes:
        napping = FunctionExecutor({"tester": nap_a_little})
        assert not Runner(napping, backend=processes, timeout=0.6, max_concurrency=8).run(make_specs(12)).failed


def test_no_warning_without_a_timeout() -> None:
    """Without a timeout a foreign pool causes no warning."""
    with ThreadPoolExecutor(1) as pool:
        Runner(FunctionExecutor({}), backend=pool)


# Invalid arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, math.nan, "5", True, [1], 0.0, -(10**400)])
def test_an_invalid_timeout_is_refused(timeout: Any) -> None:
    """A timeout must be a number of seconds greater than 0; the error names the value before any step runs."""
    with pytest.raises(OptionError, match=r"timeout must be a number of seconds greater than 0, got "):
        Runner(FunctionExecutor({}), timeout=timeout)


@pytest.mark.parametrize("timeout", [1, 0.5, 1e300, 10**400, math.inf, None])
def test_a_valid_timeout_is_accepted(timeout: Any) -> None:
    """Ints and floats are accepted, also very large ones, infinity and `None`."""
    for backend in ("thread", ProcessBackend()):
        assert Runner(FunctionExecutor({"tester": lambda spec: ""}), backend=backend, timeout=timeout).run(
            make_specs(2)
        )
