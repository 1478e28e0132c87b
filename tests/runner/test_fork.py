"""Forks of the caller: a child touches nothing of its parent's runs, and can use runners of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import each_backend

from fanout_sync import (
    AgentStepSpec,
    Budget,
    EventChannel,
    FunctionExecutor,
    Journal,
    JournalError,
    MemoryJournal,
    ProcessBackend,
    RateLimit,
    RetryAfter,
    Runner,
    SqliteJournal,
    StepOutcome,
    SubagentEnd,
    ThreadBackend,
    current_step,
)
from fanout_sync.forks import ForkDelay
from fanout_sync.testing import make_specs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def _answer(spec: AgentStepSpec) -> str:
    time.sleep(0.01)  # a step that waits for a server
    return spec.prompt


EXECUTOR = FunctionExecutor({"tester": _answer})
SPECS = make_specs(8)
"""More than are read ahead, so that after a few outcomes some steps are running."""


def forked(act: Callable[[], object]) -> int:
    """Fork; the child acts and ends, with exit code 1 if that raises. Return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12: the process has threads
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HANG_BOUND_S // 2)
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outputs(outcomes: Any) -> list[str]:
    return [outcome.output for outcome in outcomes]


def begun(runner: Runner) -> tuple[Iterator[StepOutcome], list[str]]:
    """Return a stream with steps under way, and the first of its outcomes."""
    stream = runner.stream(SPECS)
    return stream, [next(stream).output for _ in range(2)]


EXPECTED = [spec.prompt for spec in SPECS]


# A stream of the parent -----------------------------------------------------------------------------------------------


def _close(stream: Any) -> None:
    stream.close()


def _throw(stream: Any) -> None:
    with pytest.raises(KeyError, match="child"):
        stream.throw(KeyError("child"))


def _go_on(stream: Any) -> None:
    with pytest.raises(RuntimeError, match="belongs to the parent of process"):
        next(stream)
    assert list(stream) == []


@each_backend
def test_a_child_that_has_its_parents_stream(backend: Any) -> None:
    """It can leave the stream, but not go on with it; the parent gets every outcome."""
    stream, got = begun(Runner(EXECUTOR, backend=backend, max_concurrency=2))
    for act in (_close, _throw, _go_on):
        assert exit_code(forked(lambda act=act: act(stream))) == 0  # type: ignore[misc]  # mypy cannot infer it
        got.append(next(stream).output)
    assert got + outputs(stream) == EXPECTED


_LOOP = """
import os, sys
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs
with Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend=sys.argv[1], max_concurrency=2) as runner:
    count = 0
    for outcome in runner.stream(make_specs(8)):
        count += 1
        if count == 2:
            for how in ("exit", "raise", "break"):
                child = os.fork()
                if not child:
                    break
                print(how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            else:
                continue
            if how == "exit":
                sys.exit(3)
            if how == "raise":
                sys.excepthook = lambda *error: None
                raise KeyError
            break
    else:
        print(count, len(runner.run(make_specs(2)).succeeded), flush=True)
"""


@each_backend
def test_a_child_that_ends_within_the_loop(backend: str) -> None:
    """It ends at once and without a word, by `sys.exit`, an error, or at the end of the script."""
    command = [sys.executable, "-W", "ignore", "-c", _LOOP, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["exit 3", "raise 1", "break 0", "8 2"], "")


class _SpecsThatFork:
    """Specs of which the third one is made after a fork."""

    def __init__(self, in_child: Callable[[], object]) -> None:
        self._in_child = in_child
        self._parent = os.getpid()
        self.child = 0

    def __iter__(self) -> Iterator[AgentStepSpec]:
        yield from SPECS[:2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.child = os.fork()
        if not self.child:
            self._in_child()
        yield from SPECS[2:]

    def taken_by(self, read: Callable[[_SpecsThatFork], object]) -> object:
        """Return what `read` returns here; the child exits by what it raises there."""
        try:
            return read(self)
        except BaseException as error:
            if os.getpid() != self._parent:
                os._exit({"SystemExit": 3, "RuntimeError": 4}.get(type(error).__name__, 5))
            raise
        finally:
            if os.getpid() != self._parent:
                os._exit(6)


@pytest.mark.parametrize(("backend", "method"), [("thread", "run"), ("thread", "stream"), ("process", "run")])
@pytest.mark.parametrize(("act", "code"), [(sys.exit, 3), (lambda: None, 4)])
def test_an_input_that_forks(act: Callable[[], object], code: int, method: str, backend: Any) -> None:
    """In the child its `sys.exit` is not taken for an error of the input, and no more steps are run."""
    specs = _SpecsThatFork(act)
    read = getattr(Runner(EXECUTOR, backend=backend, max_concurrency=2), method)
    assert specs.taken_by(lambda given: outputs(read(given))) == EXPECTED
    assert exit_code(specs.child) == code


# Runners in the child -------------------------------------------------------------------------------------------------


@each_backend
def test_a_child_that_uses_its_parents_runner(backend: Any) -> None:
    """Also within the parent's `with` block, and while the parent reads a stream: both get their own outcomes."""
    with Runner(EXECUTOR, backend=backend, max_concurrency=2) as runner:
        stream, got = begun(runner)

        def use() -> None:
            assert outputs(runner.run(SPECS[:3])) == EXPECTED[:3]
            assert outputs(runner.stream(SPECS[:3])) == EXPECTED[:3]
            with runner:
                assert outputs(runner.run(SPECS[:3])) == EXPECTED[:3]
            grandchild = forked(lambda: runner.run(SPECS[:3]).succeeded[2])
            assert exit_code(grandchild) == 0
            runner.__exit__(None, None, None)
            assert multiprocessing.active_children() == []

        assert exit_code(forked(use)) == 0
        assert got + outputs(stream) == EXPECTED
        assert outputs(runner.run(SPECS)) == EXPECTED


def test_a_process_of_multiprocessing_that_uses_its_parents_warm_runner() -> None:
    """Such a process waits for its children when it ends; the workers that it keeps warm are killed before."""
    with Runner(EXECUTOR, backend="process", max_concurrency=1) as runner:
        runner.run(SPECS[:1])
        process = multiprocessing.get_context("fork").Process(target=lambda: runner.run(SPECS[:1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        process.join(HANG_BOUND_S)
        assert process.exitcode == 0
        process.close()
        assert outputs(runner.run(SPECS)) == EXPECTED


@each_backend
def test_a_fork_in_another_thread(backend: Any) -> None:
    """While the main thread runs steps, another one forks a child that does the same."""
    codes: list[int] = []
    runner = Runner(EXECUTOR, backend=backend, max_concurrency=2)

    def fork() -> None:
        codes.append(exit_code(forked(lambda: runner.run(SPECS[:2]).succeeded[1])))

    thread = threading.Thread(target=fork)
    thread.start()
    while thread.is_alive():
        assert outputs(runner.run(SPECS)) == EXPECTED
    assert codes == [0]


@pytest.mark.parametrize("make", [ThreadBackend, ProcessBackend])
def test_a_backend_that_is_used_as_a_pool(make: Callable[[int], Any]) -> None:
    """A child has threads or processes of its own for its calls."""
    with make(1) as pool:
        assert pool.submit(int, "1").result(HANG_BOUND_S) == 1

        def use() -> None:
            assert pool.submit(int, "2").result(HANG_BOUND_S / 3) == 2
            pool.shutdown()

        assert exit_code(forked(use)) == 0
        assert pool.submit(int, "3").result(HANG_BOUND_S) == 3


_FIRST_RUN = """
import os, threading
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs
run = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend="process", max_concurrency=1).run
thread = threading.Thread(target=run, args=(make_specs(1),))
thread.start()
child = os.fork()
if not child:
    os._exit(0 if run(make_specs(1)).succeeded else 1)
thread.join()
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_during_the_first_run_of_another_thread() -> None:
    """Modules are imported in that run; no lock of an import is left locked in the child."""
    command = [sys.executable, "-W", "ignore", "-c", _FIRST_RUN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


# What goes with a run -------------------------------------------------------------------------------------------------


def test_signals_in_a_child() -> None:
    """A stream of the parent does not note them: the handlers are those of the program again."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stream, got = begun(Runner(EXECUTOR, max_concurrency=2))

    def check() -> None:
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is not before[0]
    assert exit_code(forked(check)) == 0
    assert got + outputs(stream) == EXPECTED


def test_the_events_of_a_child() -> None:
    """Its channel works, and has only listeners of its own; the parent's get all events of the parent."""
    heard: list[object] = []
    with EventChannel() as channel:
        channel.listen(heard.append)
        runner = Runner(EXECUTOR, max_concurrency=2, event_tx=channel)
        stream, got = begun(runner)

        def use() -> None:
            receiver = channel.subscribe()
            before = len(heard)
            runner.run(SPECS[:1])
            assert channel.flush(0.0)
            channel.close()
            assert sum(isinstance(event, SubagentEnd) for event in receiver) == 1
            assert len(heard) == before

        assert exit_code(forked(use)) == 0
        assert got + outputs(stream) == EXPECTED
        assert channel.flush(HANG_BOUND_S)
    assert sum(isinstance(event, SubagentEnd) for event in heard) == len(SPECS)


def test_the_limits_of_a_child() -> None:
    """It does not wait for the steps of its parent, of which the first one runs alone here."""
    is_over = threading.Event()

    def wait(spec: AgentStepSpec) -> str:
        assert spec.prompt == "child" or is_over.wait(HANG_BOUND_S)
        current_step().add_usage(prompt_tokens=1)
        return spec.prompt

    executor = FunctionExecutor({"tester": wait})
    budget, limit = Budget(max_tokens=1000), RateLimit(tokens_per_minute=1000)
    runner = Runner(executor, max_concurrency=2, budget=budget, rate_limit=limit)
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.extend(outputs(runner.run(SPECS))))
    thread.start()
    assert eventually(lambda: budget.used.steps == 1)
    child = forked(lambda: runner.run([AgentStepSpec("c", "tester", "", "child")]).succeeded[0])
    code = exit_code(child)
    is_over.set()
    thread.join(HANG_BOUND_S)
    assert (code, outcomes, budget.used.steps) == (0, EXPECTED, len(SPECS))


def test_a_limit_that_pauses_in_a_child() -> None:
    """A child waits for the pause that began before it, and for none of the steps of its parent."""
    is_over = threading.Event()

    def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "refused":
            raise RetryAfter(0.2)
        assert spec.prompt == "child" or is_over.wait(HANG_BOUND_S)
        return spec.prompt

    limit = RateLimit(requests_per_minute=10**6, on_refusal="wait_all")
    runner = Runner(FunctionExecutor({"tester": ask}), max_concurrency=2, rate_limit=limit)
    runner.run([AgentStepSpec("r", "tester", "", "refused")])
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.extend(outputs(runner.run(SPECS))))
    thread.start()
    assert eventually(lambda: limit.keys.get("").cooldown.in_flight > 0)
    child = forked(lambda: runner.run([AgentStepSpec("c", "tester", "", "child")]).succeeded[0])
    code = exit_code(child)
    is_over.set()
    thread.join(HANG_BOUND_S)
    assert (code, outcomes) == (0, EXPECTED)


def test_a_journal_in_memory_in_a_child() -> None:
    """It has a copy that no run holds."""
    runner = Runner(EXECUTOR, max_concurrency=2, journal=MemoryJournal())
    stream, got = begun(runner)
    assert exit_code(forked(lambda: runner.run(SPECS).succeeded[7])) == 0
    assert got + outputs(stream) == EXPECTED


@pytest.mark.parametrize("specs", [list, iter])
def test_a_journal_file_in_a_child(specs: Callable[[list[AgentStepSpec]], Any], tmp_path: Path) -> None:
    """The journal that is open is refused, as its rows would be lost; other ones can be used."""
    journal = SqliteJournal(tmp_path / "run.db")
    runner = Runner(EXECUTOR, max_concurrency=2, journal=journal)
    stream = runner.stream(specs(SPECS))
    got = [next(stream).output]

    def use() -> None:
        with pytest.raises(JournalError, match="was open when this process was forked"):
            runner.run(SPECS)
        with pytest.raises(JournalError, match="was open when this process was forked"):
            journal.workflows()
        own: Journal = SqliteJournal(tmp_path / "own.db")
        assert outputs(Runner(EXECUTOR, journal=own).run(SPECS)) == EXPECTED
        stream.close()

    assert exit_code(forked(use)) == 0
    assert got + outputs(stream) == EXPECTED
    assert len(journal.records("default")) == len(SPECS)


def test_records_that_are_being_read(tmp_path: Path) -> None:
    """A child cannot go on reading them."""
    journal = SqliteJournal(tmp_path / "run.db")
    Runner(EXECUTOR, journal=journal).run(make_specs(60))
    records = iter(journal.records("default"))
    next(records)

    def read() -> None:
        with pytest.raises(JournalError, match="was opened before this process was forked"):
            list(records)

    assert exit_code(forked(read)) == 0
    assert len(list(records)) == 59


def _is_taken(lock: Any) -> bool:
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


def test_a_fork_waits_for_calls_of_c_code() -> None:
    """While another thread is in the block the fork waits; its own thread does not keep it."""
    delay, is_inside, steps = ForkDelay(), threading.Event(), list[str]()

    def call() -> None:
        with delay:
            is_inside.set()
            eventually(lambda: _is_taken(delay._entry))
            steps.append("called")

    thread = threading.Thread(target=call)
    thread.start()
    assert is_inside.wait(HANG_BOUND_S)
    with delay:
        child = forked(lambda: delay.__exit__())
        steps.append("forked")
    thread.join(HANG_BOUND_S)
    assert (exit_code(child), steps) == (0, ["called", "forked"])
