"""Executors that are pickled, but that no worker can unpickle: the run is refused before any step runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import misdeeds
import pytest
from bounds import HANG_BOUND_S
from scripts import Launcher

from fanout_sync import (
    AgentStepSpec,
    Continue,
    EventChannel,
    ExecutorNotPicklable,
    MemoryJournal,
    ProcessBackend,
    Retry,
    Runner,
    StepOutcome,
    SubagentEnd,
    SubagentStart,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs
from fanout_sync.workers.starter import MAX_FAILED_STARTS


class AtLoad:
    """Notes in a ledger that it is unpickled, and calls a function then; up to `spared` times it does not call it."""

    def __init__(self, ledger: Ledger, do: Callable[[], Any], spared: int = 0) -> None:
        self.arguments = (ledger, do, spared)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, self.arguments

    def __call__(self, state: Any) -> bool:
        return True


def _load(ledger: Ledger, do: Callable[[], Any], spared: int) -> Callable[[Any], bool]:
    ledger.note("load")
    if ledger.counts()["load"] > spared:
        do()
    return callable


class Loaded(LedgerExecutor):
    """Has a part that does something when it is unpickled."""

    def __init__(self, ledger: Ledger, do: Callable[[], Any], spared: int = 0, concurrency: int = 1) -> None:
        super().__init__(ledger, concurrency=concurrency)
        self.part = AtLoad(ledger, do, spared)

    def setup(self) -> None:
        self.ledger.note("setup")


def fail() -> None:
    raise ValueError("cannot be loaded")


def leave() -> None:
    sys.exit("no licence")


def exit_at_once() -> None:
    os._exit(7)


def exit_in_c() -> None:
    ctypes.CDLL(None).exit(8)


def segfault() -> None:
    misdeeds.segfault(AgentStepSpec("t", "a", "", ""))


class Proxy:
    """Passes everything on to its target, which is not there yet when it is unpickled."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__reduce_ex__(self, protocol)


def recur() -> None:
    Proxy.__new__(Proxy).__setstate__  # noqa: B018 - as pickle does when it loads one


def import_nothing() -> None:
    __import__("a_module_that_workers_do_not_have")


def not_in_main() -> None:
    raise AttributeError("Can't get attribute 'ask' on <module '__main__'>")


@contextlib.contextmanager
def refused(ledger: Ledger) -> Iterator[pytest.ExceptionInfo[ExecutorNotPicklable]]:
    """Expect that a call is refused, and that no step ran."""
    with pytest.raises(ExecutorNotPicklable) as caught:
        yield caught
    assert ledger.counts().keys() <= {"load"}


RAISED = {
    "error": (fail, "ValueError: cannot be loaded", "setup()"),
    "exit": (leave, "SystemExit: no licence", "setup()"),
    "recursion": (recur, "RecursionError: maximum recursion depth exceeded", "setup()"),
    "module": (import_nothing, "ModuleNotFoundError: No module named", "where workers can import it"),
    "attribute": (not_in_main, "AttributeError: Can't get attribute", "top level of a module"),
}


@pytest.mark.parametrize(("do", "text", "advice"), RAISED.values(), ids=RAISED)
def test_unpickling_that_raises(do: Callable[[], None], text: str, advice: str, ledger: Ledger) -> None:
    """The error says what was raised in the worker, with the traceback there, and only one worker has tried."""
    with refused(ledger) as caught:
        Runner(Loaded(ledger, do), backend="process").run(make_specs(9))
    error = caught.value
    assert (error.path, error.run) == ("executor", None)
    assert "it was pickled, but unpickling it in a worker raised" in str(error)
    assert text in error.reason
    assert advice in error.advice
    assert f"in {do.__name__}" in (error.traceback or "")
    assert f"in {do.__name__}" in "".join(traceback.format_exception(error))
    assert ledger.counts()["load"] == 1


DEATHS = {
    "exit": (exit_at_once, "exited with code 7"),
    "exit in C": (exit_in_c, "exited with code 8"),
    "segfault": (segfault, "was killed by SIGSEGV"),
}


@pytest.mark.parametrize(("do", "text"), DEATHS.values(), ids=DEATHS)
def test_unpickling_that_kills_the_worker(do: Callable[[], None], text: str, ledger: Ledger) -> None:
    """The error says how the worker ended, and while doing what; a few workers have tried."""
    with refused(ledger) as caught:
        Runner(Loaded(ledger, do), backend="process").run(make_specs(9))
    assert f"{text} while it unpickled the executor" in str(caught.value)
    assert (caught.value.path, caught.value.traceback, caught.value.run) == ("executor", None, None)
    assert ledger.counts()["load"] == MAX_FAILED_STARTS


def test_several_workers_at_once(ledger: Ledger) -> None:
    """Also when several workers start at once, the call is refused, and no step runs."""
    with refused(ledger):
        Runner(Loaded(ledger, fail, concurrency=4), backend="process").run(make_specs(20))


@pytest.mark.parametrize(("do", "text"), [(fail, "ValueError: cannot be loaded"), (exit_at_once, "code 7")])
def test_retry_that_does_not_unpickle(do: Callable[[], None], text: str, ledger: Ledger) -> None:
    """The error names the option `retry`, not the executor."""
    retry = Retry(3, retry_on=AtLoad(ledger, do))
    with refused(ledger) as caught:
        Runner(LedgerExecutor(ledger, concurrency=1), backend="process", retry=retry).run(make_specs(3))
    assert caught.value.path == "retry"
    assert text in caught.value.reason
    assert "Use a strategy that does without it" in str(caught.value)


def test_executor_and_retry_share_objects(ledger: Ledger) -> None:
    """What executor and retry strategy both refer to is one object in the worker, too."""
    seen: list[str] = []

    class Agent(LedgerExecutor):
        def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
            seen.append(spec.task_id)
            raise ValueError

    retry = Retry(3, wait=0, retry_on=lambda error: len(seen) < 2)
    run = Runner(Agent(ledger, concurrency=1), backend="process", retry=retry).run(make_specs(1))
    assert len(run.records[0].attempts) == 2


# Every way to call a runner -------------------------------------------------------------------------------------------


def _first_of_stream(runner: Runner, order: Any) -> Any:
    stream = runner.stream(iter(make_specs(9)), order)  # this alone raises nothing
    return next(stream)


WAYS: dict[str, Callable[[Runner], Any]] = {
    "run of an iterator": lambda runner: runner.run(iter(make_specs(9))),
    "stream in input order": lambda runner: _first_of_stream(runner, "input"),
    "stream in completion order": lambda runner: _first_of_stream(runner, "completion"),
    "pipeline": lambda runner: runner.pipeline(range(9), [lambda outcome, item: make_specs(9)[item]]),
    "loop": lambda runner: runner.loop(make_specs(9), 3, lambda outcomes: Continue(make_specs(9))),
}


@pytest.mark.parametrize(("way", "do"), [*((way, fail) for way in WAYS), ("stream in input order", exit_at_once)])
def test_every_way_to_call_a_runner(way: str, do: Callable[[], None], ledger: Ledger) -> None:
    """The error comes out of the call itself, of a stream at its first outcome."""
    with refused(ledger):
        WAYS[way](Runner(Loaded(ledger, do), backend="process"))


def test_every_start_has_an_end(ledger: Ledger) -> None:
    """Steps that were announced as started are announced as ended, and the listener hears of the end of the run."""
    with EventChannel() as channel:
        events: list[Any] = []
        channel.listen(events.append)
        with refused(ledger):
            Runner(Loaded(ledger, fail, concurrency=2), backend="process", event_tx=channel).run(make_specs(5))
        assert channel.flush(HANG_BOUND_S)
    started = [event.task_id for event in events if isinstance(event, SubagentStart)]
    ended = [event for event in events if isinstance(event, SubagentEnd)]
    assert started
    assert sorted(started) == sorted(event.task_id for event in ended)
    assert all("no worker could unpickle the executor" in event.output for event in ended)


# What was done before ------------------------------------------------------------------------------------------------


class Changing(LedgerExecutor):
    """Can be pickled, and loaded, as long as it has no `part`."""

    part: Any = None


@pytest.mark.parametrize("part", ["unloadable", "unpicklable"])
def test_a_later_round_of_a_loop(part: str, ledger: Ledger, tmp_path: Path) -> None:
    """If the executor cannot be sent any more in a later round, the error has the outcomes of the round before."""
    executor = Changing(ledger, concurrency=1)

    def next_round(outcomes: Any) -> Continue:
        executor.part = AtLoad(Ledger(tmp_path / "loads"), fail) if part == "unloadable" else (n for n in range(3))
        return Continue([AgentStepSpec("later", "tester", "", "")])

    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(executor, backend="process").loop(make_specs(3), 3, next_round)
    assert caught.value.run is not None
    assert [outcome.output for outcome in caught.value.run] == ["0", "1", "2"]
    assert set(ledger.counts()) == {"t0", "t1", "t2"}


def test_a_runner_that_keeps_its_workers(ledger: Ledger, tmp_path: Path) -> None:
    """Warm workers unpickle a changed executor; a call that is refused does not keep the next one from running."""
    executor = Changing(ledger, concurrency=1)
    with Runner(executor, backend="process") as runner:
        assert runner.run(make_specs(1)).succeeded
        executor.part = AtLoad(Ledger(tmp_path / "loads"), fail)
        with pytest.raises(ExecutorNotPicklable, match="unpickling it in a worker raised ValueError"):
            runner.run(make_specs(1))
        executor.part = None
        assert runner.run(make_specs(1)).succeeded
    assert ledger.counts()["t0"] == 2


@pytest.mark.parametrize("is_all", [True, False], ids=["all done", "some done"])
def test_what_the_journal_has(is_all: bool, ledger: Ledger) -> None:
    """Outcomes in the journal need no worker: they are in the error, and if all are there, there is none."""
    workflow = MemoryJournal().workflow("w")
    Runner(LedgerExecutor(ledger), journal=workflow).run(make_specs(2))
    runner = Runner(Loaded(ledger, fail), backend="process", journal=workflow)
    if is_all:
        assert [outcome.output for outcome in runner.run(make_specs(2))] == ["0", "1"]
        return
    with pytest.raises(ExecutorNotPicklable) as caught:
        runner.run(make_specs(4))
    assert caught.value.run is not None
    assert [record.status for record in caught.value.run.records][:2] == ["succeeded", "succeeded"]
    assert all(record.status == "cancelled" for record in caught.value.run.records[2:])


def test_a_journal_has_nothing_of_a_refused_run(ledger: Ledger) -> None:
    """Steps of a refused run are not journalled: they run when the executor is mended."""
    workflow = MemoryJournal().workflow("w")
    with refused(ledger):
        Runner(Loaded(ledger, fail), backend="process", journal=workflow).run(make_specs(2))
    run = Runner(LedgerExecutor(ledger), journal=workflow).run(make_specs(2))
    assert [record.status for record in run.records] == ["succeeded", "succeeded"]


# What is no such fault -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", [fail, exit_at_once])
def test_a_later_worker_that_cannot_load(do: Callable[[], None], ledger: Ledger) -> None:
    """If the first worker can load the executor, others that cannot are failed starts: the steps left over say so."""
    backend = ProcessBackend(max_tasks_per_child=1)
    run = Runner(Loaded(ledger, do, spared=1), backend=backend).run(make_specs(3))
    assert run[0].success
    assert not run[1].success
    assert not run[2].success
    unpickled = "cannot be unpickled here: cannot be loaded" if do is fail else "while it unpickled the executor"
    assert unpickled in run[2].output
    assert ledger.counts()["load"] <= 1 + MAX_FAILED_STARTS


def test_one_worker_that_is_killed_while_it_loads(ledger: Ledger) -> None:
    """A worker that somebody kills while it loads is replaced, and every step runs."""

    class Killed(LedgerExecutor):
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)
            self.ledger.note("load")
            if self.ledger.counts()["load"] == 1:
                os.kill(os.getpid(), 9)

    run = Runner(Killed(ledger, concurrency=1), backend="process").run(make_specs(3))
    assert [outcome.output for outcome in run] == ["0", "1", "2"]


def test_loading_that_never_ends(launch: Launcher) -> None:
    """Ctrl-C ends a run whose executor hangs while it is unpickled, and no process is left."""
    script = launch.script(
        """
        class Hangs(FunctionExecutor):
            def __setstate__(self, state):
                say("loading")
                hang(None)

        try:
            Runner(Hangs({"tester": str}, concurrency=1), backend="process").run(make_specs(3))
        except FanoutInterrupted as error:
            say(statuses(error.run), left())
        """
    )
    script.expect("loading")
    script.press_ctrl_c()
    script.expect("cancelled cancelled cancelled []")


def test_a_call_whose_arguments_do_not_unpickle(ledger: Ledger) -> None:
    """Only the future of that call fails; its cause says that it was the arguments."""
    with ProcessBackend(1) as backend:
        futures = [backend.submit(str, part) for part in (1, AtLoad(ledger, fail), 2)]
        assert [futures[0].result(HANG_BOUND_S), futures[2].result(HANG_BOUND_S)] == ["1", "2"]
        with pytest.raises(ValueError, match=r"^cannot be loaded$") as caught:
            futures[1].result(HANG_BOUND_S)
    assert "While the function and its arguments were unpickled in the worker" in str(caught.value.__cause__)
