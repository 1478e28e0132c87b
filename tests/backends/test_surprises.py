"""Unusual things that callers and steps do: none hangs a run, and none affects another step."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentStepSpec,
    Event,
    EventChannel,
    FunctionExecutor,
    InputError,
    Runner,
    StepOutcome,
    TextDelta,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs


def run_script(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=HANG_BOUND_S, check=False, cwd=tmp_path
    )


PREAMBLE = """
import os, signal, sys, threading, time
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs
"""


def await_condition(condition: Any) -> None:
    deadline = time.monotonic() + HANG_BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the condition depends on another process, so it has to be polled


# Callers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 4])
def test_no_descriptors_for_any_worker(bound: int, tmp_path: Path) -> None:
    """If no worker can be started, each step fails with the reason, and the run returns."""
    done = run_script(
        tmp_path,
        f"""
        import resource
        runner = Runner(FunctionExecutor({{"tester": lambda spec: "ran"}}), backend="process", max_concurrency={bound})
        runner.run(make_specs(1))
        taken = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 3, taken + 3))
        run = runner.run(make_specs(5))
        print([record.status for record in run.records])
        """,
    )
    assert (done.returncode, done.stdout) == (0, f"{['crashed'] * 5}\n")


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize(
    "leaving",
    [
        "stream = runner.stream(make_specs(5)); next(stream)",
        "runner.__enter__(); runner.run(make_specs(5))",
        "threading.Thread(target=runner.run, args=(make_specs(5),), daemon=True).start(); begun.wait()",
    ],
    ids=["stream", "warm runner", "daemon thread"],
)
def test_a_script_can_always_end(leaving: str, backend: str, tmp_path: Path) -> None:
    """A script can exit while a stream, a warm runner or a step on a daemon thread is still open."""
    done = run_script(
        tmp_path,
        f"""
        begun = threading.Event()
        class Listener:
            def send(self, event):
                begun.set()
        def agent(spec):
            if spec.prompt == "4" and {"daemon" in leaving}:
                time.sleep(3600)
            return spec.prompt
        runner = Runner(FunctionExecutor({{"tester": agent}}), backend="{backend}", event_tx=Listener())
        {leaving}
        print("the end")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def test_workers_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    """When the caller is killed, its workers exit in the middle of their steps."""
    script = tmp_path / "script.py"
    script.write_text(
        PREAMBLE
        + textwrap.dedent(
            f"""
            def agent(spec):
                with open({str(tmp_path)!r} + "/pid-" + spec.prompt, "w") as file:
                    print(os.getpid(), file=file)
                time.sleep(3600)
            Runner(FunctionExecutor({{"tester": agent}}), backend="process", max_concurrency=2).run(make_specs(2))
            """
        )
    )
    caller = subprocess.Popen([sys.executable, str(script)])
    marks = [tmp_path / "pid-0", tmp_path / "pid-1"]
    await_condition(lambda: all(mark.exists() and mark.read_text().endswith("\n") for mark in marks))
    workers = [int(mark.read_text()) for mark in marks]
    caller.kill()
    caller.wait(HANG_BOUND_S)
    await_condition(lambda: not any(is_running(worker) for worker in workers))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_default_timeout_for_sockets(tmp_path: Path) -> None:
    """`socket.setdefaulttimeout` in the caller has no effect on its workers."""
    done = run_script(
        tmp_path,
        """
        import socket
        socket.setdefaulttimeout(0.05)
        def agent(spec):
            time.sleep(0.2)
            return spec.prompt * 20_000_000
        run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=2).run(make_specs(3))
        print([len(outcome.output) for outcome in run])
        """,
    )
    assert (done.stdout, done.stderr) == (f"{[20_000_000] * 3}\n", "")


def test_a_warm_runner_in_a_forked_child(tmp_path: Path) -> None:
    """A forked child of the caller gets workers of its own, and the caller keeps its workers."""
    done = run_script(
        tmp_path,
        """
        executor = FunctionExecutor({"tester": lambda spec: str(os.getpid())})
        with Runner(executor, backend="process", max_concurrency=1) as runner:
            first = runner.run(make_specs(1))[0].output
            child = os.fork()
            if child == 0:
                own = runner.run(make_specs(3))
                ok = len(own.succeeded) == 3 and own[0].output != first
                os._exit(0 if ok else 1)
            _, status = os.waitpid(child, 0)
            print(status, [outcome.output == first for outcome in runner.run(make_specs(3))])
        """,
    )
    assert (done.stdout, done.stderr) == ("0 [True, True, True]\n", "")


class Flushing:
    """A sender that has a `flush` method, as a file has."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def flush(self) -> None:
        raise AssertionError("flush() must not be called")


def test_a_sender_may_have_other_methods() -> None:
    """Only `send` of a sender is called."""
    sender = Flushing()
    run = Runner(FunctionExecutor({"tester": lambda spec: "ran"}), event_tx=sender).run(make_specs(2))
    assert len(run.succeeded) == 2
    assert len(sender.events) == 6


class Exiting:
    def send(self, event: Event) -> None:
        raise SystemExit("from the sender")


def _send_one(spec: AgentStepSpec, event_tx: Any) -> str:
    event_tx.send(TextDelta(spec.task_id, "half"))
    return "ran"


def test_a_sender_that_exits() -> None:
    """A `SystemExit` from the caller's sender does not end a stream of worker processes."""
    runner = Runner(FunctionExecutor({"tester": _send_one}), backend="process", event_tx=Exiting())
    assert [outcome.output for outcome in runner.stream(make_specs(3))] == ["ran"] * 3


# Inputs ---------------------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


@pytest.mark.parametrize("error", [Unprintable(), SystemExit(3)])
def test_an_input_that_raises_an_unusual_exception(error: BaseException) -> None:
    """Whatever the input raises, the steps that were started are finished, and in the run of the error."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(2)
        raise error

    with pytest.raises(InputError, match=type(error).__name__) as caught:
        Runner(FunctionExecutor({"tester": lambda spec: "ran"})).run(specs())
    assert caught.value.__cause__ is error
    assert len(caught.value.run.succeeded) == 2


class Unready:
    def __iter__(self) -> Iterator[AgentStepSpec]:
        raise OSError("not connected")


def test_an_input_whose_iter_raises() -> None:
    """If the `__iter__` of the input raises, the error says that the specs must be an iterable."""
    with pytest.raises(InputError, match="specs must be an iterable") as caught:
        Runner(FunctionExecutor()).run(Unready())
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_an_input_that_waits_for_the_first_step(backend: Any, tmp_path: Path) -> None:
    """While the input creates its next spec, the steps before it run."""
    mark = tmp_path / "mark"

    def agent(spec: AgentStepSpec) -> str:
        Path(spec.description).touch()
        return spec.prompt

    def specs() -> Iterator[AgentStepSpec]:
        yield AgentStepSpec("t0", "tester", str(mark), "0")
        await_condition(mark.exists)
        yield AgentStepSpec("t1", "tester", str(mark), "1")

    run = Runner(FunctionExecutor({"tester": agent}), backend=backend).run(specs())
    assert [outcome.output for outcome in run] == ["0", "1"]


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_stream_yields_an_outcome_before_the_window_is_full(backend: Any) -> None:
    """A stream yields a finished outcome before a slow input has filled the window."""
    read = 0

    def specs() -> Iterator[AgentStepSpec]:
        nonlocal read
        for spec in make_specs(100):
            if read:
                done.wait(1)  # a slow input, as from a network
            read += 1
            yield spec

    done = threading.Event()
    runner = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend=backend, max_concurrency=30)
    with closing(runner.stream(specs())) as stream:
        assert next(stream).output == "0"
        done.set()
        assert read < 30


@pytest.mark.parametrize("order", ["input", "completion"])
def test_a_stream_of_a_list_waits_for_its_consumer(order: Any, ledger: Ledger) -> None:
    """While the consumer does not ask for the next outcome, only the steps that were started run."""
    executor = LedgerExecutor(ledger, concurrency=2)
    stream: Any = Runner(executor).stream(make_specs(500), order)
    next(stream)
    await_condition(lambda: len(ledger.counts()) >= 2)
    stream.close()
    assert len(ledger.counts()) <= 5


# Steps ----------------------------------------------------------------------------------------------------------------


class Trap(str):
    """Text that ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (13,)

    def __str__(self) -> str:
        return self


class Trapping(Exception):
    def __str__(self) -> str:
        return Trap("boom")


class TrappingEvent(TextDelta):
    def to_json(self) -> str:
        return Trap(super().to_json())


def _raise_trap(spec: AgentStepSpec) -> str:
    raise Trapping


def _send_trap(spec: AgentStepSpec, event_tx: Any) -> str:
    event_tx.send(TrappingEvent(spec.task_id, "half"))
    return "ran"


def _return_many_digits(spec: AgentStepSpec) -> Any:
    getattr(sys, "set_int_max_str_digits", lambda digits: None)(0)
    return StepOutcome.completed(spec, "many", {"number": 10**5000})


@pytest.mark.parametrize("agent", [_raise_trap, _send_trap, _return_many_digits])
@pytest.mark.parametrize("streaming", [False, True])
def test_messages_of_a_worker_run_no_code_in_the_caller(agent: Any, streaming: bool) -> None:
    """Instances of subclasses of `str` arrive as plain text; a result that cannot be read fails its step only."""
    executor = FunctionExecutor({"tester": agent, "good": lambda spec: "ran"})
    runner = Runner(executor, backend="process", event_tx=EventChannel(), max_concurrency=1)
    specs = [*make_specs(1), *make_specs(1, agent="good")]
    outcomes = list(runner.stream(specs) if streaming else runner.run(specs))
    assert outcomes[1].output == "ran"
    assert outcomes[0].task_id == "t0"
    if agent is _raise_trap:
        assert outcomes[0].output.endswith("Trapping: boom")


def test_a_step_on_threads_that_forks_and_returns_twice(tmp_path: Path) -> None:
    """A forked child that returns from the step runs none of the other steps."""
    done = run_script(
        tmp_path,
        """
        def agent(spec):
            if spec.prompt == "1" and (child := os.fork()):
                os.waitpid(child, 0)
            with open("ran", "a") as file:
                file.write(spec.prompt + "\\n")
            return spec.prompt
        run = Runner(FunctionExecutor({"tester": agent}), max_concurrency=2).run(make_specs(10))
        ran = sorted(open("ran").read().split())
        print(len(run.succeeded), ran == sorted([*map(str, range(10)), "1"]))
        """,
    )
    assert done.stdout == "10 True\n"


def test_an_exception_raised_in_a_thread_from_outside() -> None:
    """An asynchronous exception that arrives after its step ends neither the thread nor the run."""

    def agent(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            late = ctypes.c_ulong(threading.get_ident())
            ctypes.pythonapi.PyThreadState_SetAsyncExc(late, ctypes.py_object(TimeoutError))
        return spec.prompt

    run = Runner(FunctionExecutor({"tester": agent}), max_concurrency=1).run(make_specs(5))
    assert len(run) == 5
    assert len(run.succeeded) >= 4


def _set_an_alarm(spec: AgentStepSpec) -> str:
    def raise_error(*_: Any) -> None:
        raise TimeoutError("of another step")

    signal.signal(signal.SIGALRM, raise_error)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return "set"


def _close_stdout(spec: AgentStepSpec) -> str:
    sys.stdout.close()
    return "closed"


def _replace_stdout(spec: AgentStepSpec) -> str:
    sys.stdout = None
    sys.setrecursionlimit(100)
    return "replaced"


def _work(spec: AgentStepSpec) -> str:
    sys.stdout.write("to the screen")
    time.sleep(0.5)  # longer than the timer of the other step
    return f"{signal.getsignal(signal.SIGALRM)!r} {sys.getrecursionlimit()}"


@pytest.mark.parametrize("change", [_set_an_alarm, _close_stdout, _replace_stdout])
def test_what_a_step_changed_in_its_worker_is_put_back(change: Any) -> None:
    """The next step finds timers, handlers, streams and limits as they were before a step changed them."""
    executor = FunctionExecutor({"change": change, "work": _work}, concurrency=1)
    specs = [AgentStepSpec(agent, agent, "", "") for agent in ("work", "change", "work")]
    before, changing, after = Runner(executor, backend="process").run(specs)
    assert changing.success
    assert before.success
    assert after.output == before.output


def _signal_the_group(spec: AgentStepSpec) -> str:
    os.kill(0, signal.SIGKILL)
    return "unreachable"


def test_a_step_that_kills_its_process_group() -> None:
    """A step that kills its process group kills only its own worker."""
    executor = FunctionExecutor({"tester": _signal_the_group, "good": lambda spec: "ran"})
    run = Runner(executor, backend="process").run([*make_specs(1), *make_specs(2, agent="good")])
    assert [outcome.output for outcome in run[1:]] == ["ran", "ran"]
    assert run.records[0].status == "crashed"


def _leave_a_process(spec: AgentStepSpec) -> str:
    from loky.backend import get_context

    process = get_context("loky").Process(target=time.sleep, args=(30,))
    process.start()
    return str(process.pid)


def test_a_step_that_leaves_a_process_behind(caplog: pytest.LogCaptureFixture) -> None:
    """A process that a step has left running does not delay the end of the run."""
    run = Runner(FunctionExecutor({"tester": _leave_a_process}), backend="process").run(make_specs(1))
    os.kill(int(run[0].output), signal.SIGKILL)
    assert "still running" not in caplog.text


def _send_from_a_child(spec: AgentStepSpec, event_tx: Any) -> str:
    child = os.fork()
    if child == 0:
        for _ in range(50):
            event_tx.send(TextDelta(spec.task_id, "c" * 100_000))
        os._exit(0)
    for _ in range(50):
        event_tx.send(TextDelta(spec.task_id, "p" * 100_000))
    os.waitpid(child, 0)
    return "ran"


def test_events_from_a_forked_child_of_a_step() -> None:
    """Events that a forked child of a step sends are dropped, and do not damage those of the worker."""
    channel = EventChannel()
    run = Runner(FunctionExecutor({"tester": _send_from_a_child}), backend="process", event_tx=channel).run(
        make_specs(2)
    )
    assert [outcome.output for outcome in run] == ["ran", "ran"]
