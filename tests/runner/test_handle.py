"""`Runner.start`: a run that goes on in the background, and its handle."""

from __future__ import annotations

import contextvars
import copy
import gc
import itertools
import logging
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from early_ends import ScriptedExecutor, ctrl_c_when, scripted_specs
from processes import eventually
from test_fork import exit_code, forked

from fanout_sync import (
    AgentStepSpec,
    ExecutorNotPicklable,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    JournalConflict,
    JournalError,
    OptionError,
    Progress,
    Run,
    RunHandle,
    Runner,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def answer(spec: AgentStepSpec) -> str:
    return spec.prompt


def refuse_odd(spec: AgentStepSpec) -> str:
    if int(spec.prompt) % 2:
        raise ValueError("odd")
    return spec.prompt


def ended(handle: RunHandle) -> Run:
    return handle.result(HANG_BOUND_S)


def task_ids(run: Run) -> list[str]:
    return [outcome.task_id for outcome in run]


def statuses(run: Run) -> list[str]:
    return [record.status for record in run.records]


# A run and what has ended of it ---------------------------------------------------------------------------------------


def test_result_is_what_run_returns(make_runner: MakeRunner) -> None:
    """All outcomes are there, in the order of the specs, and the handle is done."""
    runner, specs = make_runner(FunctionExecutor({"tester": refuse_odd}), max_concurrency=3), make_specs(20)
    handle = runner.start(specs)
    assert ended(handle) == runner.run(specs)
    assert handle.done()
    assert ended(handle) is ended(handle) is handle.snapshot()
    assert repr(handle) == "<RunHandle done: 20 of 20 steps done, failed=10>"


def test_what_has_ended_is_seen_while_the_rest_goes_on(make_runner: MakeRunner, tmp_path: Path) -> None:
    """`start` returns before the first step ends; a snapshot has ended steps in input order; progress counts them."""
    executor = ScriptedExecutor(tmp_path)
    handle = make_runner(executor, max_concurrency=2).start(scripted_specs("held", *["quick"] * 5, "held", "quick"))
    assert eventually(lambda: len(handle.snapshot()) == 5 and handle.progress().running == 2)
    assert task_ids(handle.snapshot()) == ["t1", "t2", "t3", "t4", "t5"]
    progress = handle.progress()
    assert (progress.total, progress.done, progress.succeeded, progress.failed) == (8, 5, 5, 0)
    assert repr(handle) == "<RunHandle running: 5 of 8 steps done, running=2>"
    assert not handle.done()
    executor.marks.release()
    assert len(ended(handle).succeeded) == 8
    assert task_ids(handle.snapshot()) == [f"t{n}" for n in range(8)]
    last = handle.progress()
    assert (last.done, last.running, last.eta_s) == (8, 0, 0.0)
    assert handle.progress() == last, "it stands still after the end"


def test_the_total_is_known_at_once(tmp_path: Path) -> None:
    """Progress has the number of specs before any step has begun, also of an input that is read later."""
    executor = ScriptedExecutor(tmp_path)
    executor.marks.release()
    by_name = {spec.task_id: spec for spec in make_specs(4, "quick")}
    for specs, total in ((make_specs(4, "quick"), 4), (by_name.values(), 4), (iter(make_specs(4, "quick")), None)):
        handle = Runner(executor).start(specs)
        assert handle.progress().total == total
        assert len(ended(handle)) == 4


def test_the_progress_of_the_runner_is_shown_as_well() -> None:
    """A function that the runner was given is called, and one that raises costs the handle nothing."""
    shown = list[Progress]()

    def show(progress: Progress) -> None:
        shown.append(progress)
        if len(shown) > 1:
            raise ValueError("no more")

    logging.getLogger("fanout_sync").addHandler(handler := logging.NullHandler())
    handle = Runner(FunctionExecutor({"tester": answer}), progress=show).start(make_specs(4))
    ended(handle)
    logging.getLogger("fanout_sync").removeHandler(handler)
    assert shown[0].total == shown[-1].total == handle.progress().done == 4


def test_result_that_takes_longer_than_its_timeout(tmp_path: Path) -> None:
    """It raises `TimeoutError`, and the run goes on."""
    executor = ScriptedExecutor(tmp_path)
    handle = Runner(executor).start(scripted_specs("held"))
    for timeout in (0, 0.01, -1):
        with pytest.raises(TimeoutError, match="goes on; running: 0 of 1 steps done"):
            handle.result(timeout)
    executor.marks.release()
    assert len(ended(handle).succeeded) == 1
    assert len(handle.result(0)) == 1
    wrong: Any
    for wrong in ("3", float("nan"), True):
        with pytest.raises(OptionError, match="timeout must be a number of seconds or None, got"):
            handle.result(wrong)


def test_each_handle_has_a_bound_of_its_own(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Handles of one runner do not wait for each other, nor does a run beside them."""
    executor = ScriptedExecutor(tmp_path)
    runner = make_runner(executor, max_concurrency=1)
    first, second = (runner.start(scripted_specs("held", "quick")) for _ in range(2))
    assert eventually(lambda: executor.marks.named("begun") == ["t0", "t0"])
    assert len(runner.run(scripted_specs("quick"))) == 1
    executor.marks.release()
    assert len(ended(first).succeeded) == len(ended(second).succeeded) == 2


def test_a_handle_that_was_read_keeps_nothing_alive() -> None:
    """Its run is gone with the last reference to it, without the garbage collector; so are the specs at its end."""
    specs = make_specs(3)
    handle = Runner(FunctionExecutor({"tester": answer})).start(specs)
    spec, run = weakref.ref(specs[0]), weakref.ref(ended(handle))
    del specs
    gc.collect()
    assert spec() is None
    gc.disable()
    try:
        del handle
        assert run() is None
    finally:
        gc.enable()


def test_a_handle_is_not_pickled(tmp_path: Path) -> None:
    """The error says what can be pickled instead."""
    handle = Runner(FunctionExecutor({"tester": answer})).start(make_specs(3))
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="its run goes on in this process"):
            copied(handle)
    assert pickle.loads(pickle.dumps(ended(handle))) == ended(handle)


def test_the_thread_is_a_daemon_with_a_name(tmp_path: Path) -> None:
    """It keeps no program from ending, and can be told from others."""
    executor = ScriptedExecutor(tmp_path)
    handle = Runner(executor).start(scripted_specs("held"))
    (thread,) = [each for each in threading.enumerate() if each.name.startswith("fanout-run-")]
    assert thread.daemon
    executor.marks.release()
    ended(handle)


# Its input and its errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "specs", [None, 5, make_specs(1)[0], "text", ["text"], ({"task_id": "t"},)], ids=lambda specs: type(specs).__name__
)
def test_what_can_never_run_is_refused_at_once(specs: Any) -> None:
    """`start` raises what `run` raises, and nothing is left to be read."""
    runner = Runner(FunctionExecutor({"tester": answer}))
    with pytest.raises(InputError) as of_run:
        runner.run(specs)
    with pytest.raises(InputError) as of_start:
        runner.start(specs)
    assert str(of_start.value) == str(of_run.value)


def test_input_is_read_in_the_thread_of_the_run() -> None:
    """A generator runs there; what it raises is raised by `result`, with the steps before it."""
    threads = []

    def specs() -> Iterator[AgentStepSpec]:
        threads.append(threading.current_thread())
        yield from make_specs(3)
        raise KeyError("no more")

    handle = Runner(FunctionExecutor({"tester": answer})).start(specs())
    for _ in range(2):
        with pytest.raises(InputError, match="the input raised after 3 specs: KeyError") as raised:
            ended(handle)
        assert len(raised.value.run.succeeded) == 3
    assert handle.snapshot() is raised.value.run
    assert repr(handle) == "<RunHandle raised InputError: 3 steps done>"
    assert threads[0].name.startswith("fanout-run-")


def test_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    """What is done to it afterwards is not seen."""
    executor, specs = ScriptedExecutor(tmp_path), scripted_specs("held", "quick", "quick")
    handle = Runner(executor, max_concurrency=1).start(specs)
    specs.clear()
    executor.marks.release()
    assert len(ended(handle).succeeded) == 3


def test_an_executor_that_cannot_be_sent() -> None:
    """The error comes from `result`, every time."""
    handle = Runner(FunctionExecutor({"tester": threading.Lock().locked}), backend="process").start(make_specs(2))
    for _ in range(2):
        with pytest.raises(ExecutorNotPicklable):
            ended(handle)
    assert len(handle.snapshot()) == 0


def test_an_error_of_the_executor_itself() -> None:
    """It is raised by `result`; the snapshot is a run, whatever attributes the error has."""

    class Hintless(FunctionExecutor):
        def concurrency_hint(self) -> int:
            error = ConnectionError("no hint")
            error.run = "no run"  # type: ignore[attr-defined]
            raise error

    handle = Runner(Hintless({"tester": answer})).start(make_specs(2))
    with pytest.raises(ConnectionError, match="no hint"):
        ended(handle)
    assert list(handle.snapshot()) == []
    assert repr(handle) == "<RunHandle raised ConnectionError: 0 of 2 steps done>"


def test_context_variables_of_the_caller_are_seen() -> None:
    """Steps have the values of when `start` was called."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    handle = Runner(FunctionExecutor({"tester": lambda spec: variable.get()})).start(make_specs(2))
    variable.set("changed")
    assert ended(handle).values() == ["set", "set"]


def test_a_run_cannot_wait_for_itself() -> None:
    """`result` in its own thread is refused instead of hanging."""
    handles, is_known, errors = list[RunHandle](), threading.Event(), list[RuntimeError]()

    def specs() -> Iterator[AgentStepSpec]:
        is_known.wait(HANG_BOUND_S)
        try:
            handles[0].result()
        except RuntimeError as error:
            errors.append(error)
        yield from make_specs(1)

    handles.append(Runner(FunctionExecutor({"tester": answer})).start(specs()))
    is_known.set()
    assert len(ended(handles[0])) == 1
    assert "cannot wait for its own result" in str(errors[0])


def test_a_workflow_is_held_until_the_end(tmp_path: Path) -> None:
    """A second run of the same workflow is refused by its `result`; when the first has ended, it resumes it."""
    executor, journal = ScriptedExecutor(tmp_path), tmp_path / "run.db"
    runner, specs = Runner(executor, journal=journal, max_concurrency=2), scripted_specs("held", "quick")
    first = runner.start(specs)
    assert eventually(lambda: len(first.snapshot()) == 1)
    second = runner.start(specs)
    with pytest.raises(JournalError, match="is held by this process"):
        ended(second)
    assert len(second.snapshot()) == 0
    first.cancel()
    with pytest.raises(FanoutInterrupted):
        ended(first)
    executor.marks.release()
    third = runner.start(specs)
    assert len(ended(third).succeeded) == 2
    assert third.progress().reused == 1
    with pytest.raises(JournalConflict):
        ended(runner.start([spec.with_max_steps(3) for spec in specs]))


# Cancelled ------------------------------------------------------------------------------------------------------------


def test_cancel_ends_a_run_as_ctrl_c_does(make_runner: MakeRunner, tmp_path: Path) -> None:
    """What has finished stays, all else is cancelled, and `result` raises."""
    executor = ScriptedExecutor(tmp_path)
    handle = make_runner(executor, max_concurrency=2).start(scripted_specs("quick", "quick", "held", "held", "quick"))
    assert eventually(lambda: len(handle.snapshot()) == 2 and handle.progress().running == 2)
    handle.cancel()
    handle.cancel()
    with pytest.raises(FanoutInterrupted, match="2 of 5 steps were done, 3 are cancelled") as raised:
        ended(handle)
    executor.marks.release()
    run = raised.value.run
    assert [record.status for record in run.records] == ["succeeded", "succeeded", *["cancelled"] * 3]
    assert handle.done()
    assert handle.snapshot() is run
    assert repr(handle) == "<RunHandle cancelled: 5 of 5 steps done, cancelled=3>"
    handle.cancel()


def test_cancel_before_anything_has_begun(make_runner: MakeRunner) -> None:
    """Every step is reported, and what the run returns is as `on_interrupt` says."""
    handle = make_runner(FunctionExecutor({"tester": answer}), on_interrupt="return").start(make_specs(1000))
    handle.cancel()
    run = ended(handle)
    assert task_ids(run) == [spec.task_id for spec in make_specs(1000)]
    assert "cancelled" in statuses(run)
    assert repr(handle).startswith("<RunHandle cancelled: 1000 of 1000 steps done, cancelled=")


def test_cancel_after_the_end_changes_nothing() -> None:
    """The result stays."""
    handle = Runner(FunctionExecutor({"tester": answer})).start(make_specs(3))
    ended(handle)
    handle.cancel()
    assert len(ended(handle).succeeded) == 3


def test_cancel_while_the_input_makes_a_spec(make_runner: MakeRunner, tmp_path: Path) -> None:
    """It returns at once; the run ends when the input has made its spec, which does not begin."""
    is_reading, may_go_on = threading.Event(), threading.Event()
    executor = ScriptedExecutor(tmp_path)

    def specs() -> Iterator[AgentStepSpec]:
        first, second = scripted_specs("held", "quick")
        yield first
        is_reading.set()
        may_go_on.wait(HANG_BOUND_S)
        yield second

    handle = make_runner(executor, max_concurrency=2, on_interrupt="return").start(specs())
    assert is_reading.wait(HANG_BOUND_S)
    handle.cancel()
    assert not handle.done()
    may_go_on.set()
    run = ended(handle)
    executor.marks.release()
    assert statuses(run) == ["cancelled", "cancelled"]
    assert "t1" not in executor.marks.named("begun")


def test_cancel_while_a_journal_has_all_specs_read(tmp_path: Path) -> None:
    """An input without an end is not read on."""
    is_reading = threading.Event()

    def specs() -> Iterator[AgentStepSpec]:
        for number in itertools.count():
            yield AgentStepSpec(f"t{number}", "tester", "", "")
            is_reading.set()

    runner = Runner(FunctionExecutor({"tester": answer}), journal=tmp_path / "run.db", on_interrupt="return")
    handle = runner.start(specs())
    assert is_reading.wait(HANG_BOUND_S)
    handle.cancel()
    assert set(statuses(ended(handle))) == {"cancelled"}


def test_cancel_while_all_wait_for_their_next_attempt(tmp_path: Path) -> None:
    """Steps that wait for a retry or a limit are cancelled, too."""
    from tenacity import Retrying, stop_after_attempt, wait_fixed

    retry = Retrying(stop=stop_after_attempt(3), wait=wait_fixed(3600))
    handle = Runner(FunctionExecutor({"tester": refuse_odd}), retry=retry).start(make_specs(4))
    assert eventually(lambda: handle.progress().waiting == 2)
    handle.cancel()
    with pytest.raises(FanoutInterrupted) as raised:
        ended(handle)
    assert len(raised.value.run.succeeded) == 2


def test_the_end_of_a_with_block_cancels(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Its runs have ended when the block has."""
    executor = ScriptedExecutor(tmp_path)
    with make_runner(executor, max_concurrency=2, on_interrupt="return") as runner:
        handles = [runner.start(scripted_specs("quick", "held")) for _ in range(2)]
        assert eventually(lambda: all(len(handle.snapshot()) == 1 for handle in handles))
    executor.marks.release()
    assert all(handle.done() for handle in handles)
    assert [statuses(ended(handle)) for handle in handles] == [["succeeded", "cancelled"]] * 2


def test_the_end_of_a_with_block_in_the_thread_of_the_run() -> None:
    """It cancels the run, for which it cannot wait."""

    def specs() -> Iterator[AgentStepSpec]:
        with runner:
            yield from make_specs(1)
        yield from make_specs(1)

    runner = Runner(FunctionExecutor({"tester": answer}), on_interrupt="return")
    assert len(ended(runner.start(specs()))) <= 2


def test_ctrl_c_leaves_the_run_alone(make_runner: MakeRunner, tmp_path: Path) -> None:
    """It is raised where the main thread is, also where that waits for the result; the run goes on."""
    executor = ScriptedExecutor(tmp_path)
    handle = make_runner(executor, max_concurrency=2).start(scripted_specs("held", "quick"))
    begun = executor.marks.have_begun("t0", "t1")
    for wait in (handle.result, threading.Event().wait):
        with pytest.raises(KeyboardInterrupt) as raised, ctrl_c_when(begun):
            wait(HANG_BOUND_S)
        assert type(raised.value) is KeyboardInterrupt
    assert not handle.done()
    executor.marks.release()
    assert len(ended(handle).succeeded) == 2


def test_ctrl_c_during_another_run_leaves_the_run_alone(make_runner: MakeRunner, tmp_path: Path) -> None:
    """It ends the run in the main thread only."""
    executor = ScriptedExecutor(tmp_path)
    runner = make_runner(executor, max_concurrency=2)
    handle = runner.start(scripted_specs("held"))
    with pytest.raises(FanoutInterrupted), ctrl_c_when(executor.marks.have_begun("t0", "t1")):
        runner.run(scripted_specs("quick", "told"))
    executor.marks.release()
    assert len(ended(handle).succeeded) == 1


# Inside of steps, and in forked children ------------------------------------------------------------------------------


def test_started_in_a_step(tmp_path: Path) -> None:
    """A step can start runs and wait for them; they are cancelled with its own run."""
    inner = ScriptedExecutor(tmp_path)
    handles = list[RunHandle]()

    def start(spec: AgentStepSpec) -> str:
        handles.append(Runner(inner, on_interrupt="return").start(scripted_specs("quick", spec.prompt)))
        return " ".join(statuses(handles[-1].result(HANG_BOUND_S)))

    runner = Runner(FunctionExecutor({"outer": start}), on_interrupt="return")
    assert runner.run([AgentStepSpec("t", "outer", "", "quick")]).values() == ["succeeded succeeded"]
    outer = runner.start([AgentStepSpec("t", "outer", "", "told")])
    assert eventually(lambda: len(handles) == 2 and len(handles[-1].snapshot()) == 1)
    outer.cancel()
    ended(outer)
    assert statuses(ended(handles[-1])) == ["succeeded", "raised"], "the step on a thread was told to stop, and did"


def test_a_step_may_end_before_the_run_that_it_has_started(tmp_path: Path) -> None:
    """That run goes on."""
    inner, handles = ScriptedExecutor(tmp_path), list[RunHandle]()

    def start(spec: AgentStepSpec) -> str:
        handles.append(Runner(inner).start(scripted_specs("held", "quick")))
        return "started"

    assert Runner(FunctionExecutor({"tester": start})).run(make_specs(1)).values() == ["started"]
    inner.marks.release()
    assert len(ended(handles[0]).succeeded) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_does_not_have_the_run(make_runner: MakeRunner, tmp_path: Path) -> None:
    """There the handle is refused with a clear error, unless its run had ended; the parent goes on."""
    executor = ScriptedExecutor(tmp_path)
    runner = make_runner(executor, max_concurrency=2)
    done, going_on = runner.start(scripted_specs("quick")), runner.start(scripted_specs("held"))
    ended(done)
    assert eventually(executor.marks.have_begun("t0"))

    def in_child() -> None:
        for ask in (going_on.result, going_on.done, going_on.snapshot, going_on.progress):
            with pytest.raises(RuntimeError, match="belongs to the parent of process"):
                ask()
        going_on.cancel()
        assert repr(going_on) == "<RunHandle of the parent process>"
        assert len(done.result()) == 1
        assert ended(Runner(FunctionExecutor({"tester": answer})).start(make_specs(2))).values() == ["0", "1"]

    assert exit_code(forked(in_child)) == 0
    executor.marks.release()
    assert len(ended(going_on).succeeded) == 1


# Unread handles -------------------------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


FAILURES = """\
the result of a run of 5 steps was never read; 2 steps failed:
  2 raised: ValueError: odd (t1, t3)"""


def test_a_handle_that_is_dropped_after_the_end(caplog: pytest.LogCaptureFixture, make_runner: MakeRunner) -> None:
    """Its failures are logged in one record."""
    handle = make_runner(FunctionExecutor({"tester": refuse_odd})).start(make_specs(5))
    assert eventually(handle.done)
    del handle
    gc.collect()
    assert logged(caplog) == [FAILURES]


def test_a_handle_that_is_dropped_before_the_end(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Its run goes on, and its failures are logged when it has ended."""
    is_dropped = threading.Event()

    def act(spec: AgentStepSpec) -> str:
        is_dropped.wait(HANG_BOUND_S)
        return refuse_odd(spec)

    Runner(FunctionExecutor({"tester": act})).start(make_specs(5))
    gc.collect()
    assert logged(caplog) == []
    is_dropped.set()
    assert eventually(lambda: logged(caplog) == [FAILURES])


def test_an_error_of_a_run_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback, and with the steps that had failed by then."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(2)
        raise KeyError("no more")

    Runner(FunctionExecutor({"tester": refuse_odd})).start(specs())
    assert eventually(lambda: bool(logged(caplog)))
    (record,) = caplog.records
    text = logging.Formatter().format(record)
    assert "a run whose result was never read has raised fanout_sync.InputError: the input raised after 2 specs" in text
    assert "1 step failed:\n  t1 (tester) raised: ValueError: odd" in text
    assert "in specs" in text


@pytest.mark.parametrize("read", [RunHandle.result, RunHandle.snapshot], ids=["result", "snapshot"])
def test_a_handle_that_was_read(read: Callable[[RunHandle], Run], caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged of it."""
    handle = Runner(FunctionExecutor({"tester": refuse_odd})).start(make_specs(5))
    assert eventually(handle.done)
    assert len(read(handle).failed) == 2
    del handle
    gc.collect()
    assert logged(caplog) == []


def test_an_unread_run_without_failures(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Nothing is logged of one that succeeded, nor of steps that were cancelled."""
    executor = ScriptedExecutor(tmp_path)
    handles = [Runner(executor).start(scripted_specs(*agents)) for agents in (["quick"], ["quick", "held"])]
    handles[1].cancel()
    assert eventually(lambda: all(handle.done() for handle in handles))
    executor.marks.release()
    handles.clear()
    gc.collect()
    assert logged(caplog) == []


# An output of a notebook ----------------------------------------------------------------------------------------------


class Publisher:
    """Notes what is published, and fails when it is told to."""

    def __init__(self) -> None:
        self.published: list[tuple[bool, dict[str, str], str]] = []
        self.fails = False

    def publish(self, data: dict[str, str], metadata: Any, *, transient: dict[str, str], update: bool = False) -> None:
        if self.fails:
            raise OSError("the socket is closed")
        self.published.append((update, data, transient["display_id"]))


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """What publishes outputs in a kernel that this process seems to be."""
    publisher = Publisher()
    shell = SimpleNamespace(kernel=object(), display_pub=publisher, execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return publisher


def test_the_output_follows_the_run(publisher: Publisher, tmp_path: Path) -> None:
    """It is replaced while the run goes on, for the last time at the end, and everything in it is escaped."""
    executor = ScriptedExecutor(tmp_path)
    handle = Runner(executor, max_concurrency=1).start(scripted_specs("quick", "held", "quick"))
    handle._ipython_display_()
    assert eventually(lambda: "1 of 3 steps done" in publisher.published[-1][1]["text/html"])
    executor.marks.release()
    ended(handle)
    (_, *updates), texts = (publisher.published, [data["text/plain"] for _, data, _ in publisher.published])
    assert [is_update for is_update, _, _ in publisher.published] == [False, *[True] * len(updates)]
    assert len({display for _, _, display in publisher.published}) == 1
    assert texts[-1] == "<RunHandle done: 3 of 3 steps done>"
    assert publisher.published[-1][1]["text/html"].startswith("<div><b>done</b>: 3 of 3 steps done · ")
    handle._ipython_display_()
    assert publisher.published[-1][0] is False
    assert publisher.published[-1][1]["text/plain"] == texts[-1]


def test_an_output_that_fails_costs_the_run_nothing(publisher: Publisher, tmp_path: Path) -> None:
    """The run goes on to its end, and IPython shows the `repr` where there is no output."""
    executor = ScriptedExecutor(tmp_path)
    handle = Runner(executor, max_concurrency=1).start(scripted_specs("quick", "held", "quick"))
    handle._ipython_display_()
    publisher.fails = True
    with pytest.raises(NotImplementedError):
        handle._ipython_display_()
    executor.marks.release()
    assert len(ended(handle).succeeded) == 3


def test_there_is_no_output_outside_of_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither without IPython nor in IPython on a terminal, which then show the `repr`."""
    handle = Runner(FunctionExecutor({"tester": answer})).start(make_specs(3))
    terminal = SimpleNamespace(get_ipython=lambda: SimpleNamespace(display_pub=Publisher(), execution_count=1))
    for module in (None, SimpleNamespace(get_ipython=lambda: None), terminal):
        monkeypatch.setitem(sys.modules, "IPython", module)
        with pytest.raises(NotImplementedError):
            handle._ipython_display_()
    ended(handle)
