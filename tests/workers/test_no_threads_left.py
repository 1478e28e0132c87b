"""When the system has no more threads, the caller gets the error, nothing is left behind, and a later call works."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from bounds import HANG_BOUND_S
from scripts import run_python

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    EventSender,
    FunctionExecutor,
    ProcessBackend,
    Runner,
    StepOutcome,
    TextDelta,
    ThreadBackend,
)
from fanout_sync.testing import make_specs
from fanout_sync.workers import starter
from fanout_sync.workers.lanes import Lanes
from fanout_sync.workers.watcher_thread import WatcherThread

REASON = "can't start new thread"


@contextmanager
def no_threads(spared: int = 0, refused: float = float("inf")) -> Iterator[list[str]]:
    """Let the first `spared` threads start and refuse the next `refused` ones; yields the names of those."""
    start = threading.Thread.start
    names: list[str] = []
    count = 0

    def start_or_refuse(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if spared < count <= spared + refused:
            names.append(thread.name)
            raise RuntimeError(REASON)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_or_refuse)
        yield names


def answer(spec: AgentStepSpec) -> str:
    return spec.prompt


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def a_stage(outcome: StepOutcome | None, item: Any) -> AgentStepSpec:
    spec: AgentStepSpec = item
    return spec


CALLS: dict[str, Callable[[Runner], Any]] = {
    "run": lambda runner: runner.run(make_specs(3)),
    "stream": lambda runner: list(runner.stream(make_specs(3))),
    "completion": lambda runner: list(runner.stream(make_specs(3), order="completion")),
    "generator": lambda runner: runner.run(spec for spec in make_specs(3)),
    "pipeline": lambda runner: runner.pipeline(make_specs(3), [a_stage]),
}


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_warm", "call"),  # all but "run", which needs no thread
    [(True, "stream"), (False, "completion"), (False, "generator"), (True, "pipeline")],
)
def test_a_call_on_processes_raises_the_error_and_ends_the_workers(call: str, is_warm: bool) -> None:
    """If the watcher thread cannot start, its error is raised, no worker is left, and the runner works again."""
    executor = FunctionExecutor({"tester": answer})
    Runner(executor, backend="process", max_concurrency=2).run(make_specs(1))
    before = open_descriptors()
    with Runner(executor, backend="process", max_concurrency=2) as runner:
        if is_warm:
            runner.run(make_specs(3))
            assert multiprocessing.active_children() != []
        with no_threads() as refused, pytest.raises(RuntimeError, match=REASON):
            CALLS[call](runner)
        assert refused == ["fanout-watcher"]
        assert multiprocessing.active_children() == []
        assert open_descriptors() == before
        outcomes = CALLS[call](runner)
        assert [outcome.output for outcome in sorted(outcomes, key=lambda each: str(each.task_id))] == ["0", "1", "2"]
    assert open_descriptors() == before


def test_an_action_that_was_refused_is_not_called_later() -> None:
    """If the watcher thread cannot start, `do` raises the error; the next `do` starts the thread."""
    done: list[str] = []
    lanes = Lanes(1, b"")
    watcher = WatcherThread(lanes, lambda: None, lambda error: done.append(str(error)))
    with no_threads(), pytest.raises(RuntimeError, match=REASON):
        watcher.do(lambda: done.append("refused"))
    watcher.join()
    assert watcher.do(lambda: done.append("accepted"))
    watcher.stop()
    assert done == ["accepted"]
    lanes.abort()


def test_a_call_that_cannot_be_submitted_to_processes_is_not_run_later() -> None:
    """`submit` raises the error and schedules nothing; the next call is run, and nothing stays open in the end."""
    Runner(FunctionExecutor({"tester": answer}), backend="process").run(make_specs(1))
    before = open_descriptors()
    with ProcessBackend(max_workers=1) as backend:
        with no_threads(), pytest.raises(RuntimeError, match=REASON):
            backend.submit(os.getpid)
        assert multiprocessing.active_children() == []
        assert backend.submit(abs, -3).result(HANG_BOUND_S) == 3
    assert open_descriptors() == before


def test_a_backend_that_never_ran_a_call_is_shut_down_without_a_thread() -> None:
    """After a refused call `shutdown` needs no thread, can be called again, and leaves nothing open."""
    Runner(FunctionExecutor({"tester": answer}), backend="process").run(make_specs(1))
    before = open_descriptors()
    with no_threads():
        backend = ProcessBackend(max_workers=1)
        with pytest.raises(RuntimeError, match=REASON):
            backend.submit(os.getpid)
        backend.shutdown()
        backend.shutdown()
    assert open_descriptors() == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        backend.submit(os.getpid)


WITHOUT_WATCH = """
import threading

start = threading.Thread.start

def start_or_refuse(thread):
    if thread.name == "fanout-parent-watch":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = start_or_refuse
"""

SCRIPT = """
import multiprocessing, os
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

runner = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend="process", max_concurrency=2)
run = runner.run(make_specs(3))
print({(record.status, record.error.type, record.error.message) for record in run.records})
print(multiprocessing.active_children())
os.remove(os.path.join(os.environ["PYTHONPATH"].split(os.pathsep)[0], "sitecustomize.py"))
print([outcome.output for outcome in runner.run(make_specs(3))])
"""


def test_a_worker_that_cannot_watch_its_caller_says_so(tmp_path: Path) -> None:
    """A worker exits if it cannot watch its caller, and each step fails with the reason; later workers start."""
    early = tmp_path / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(WITHOUT_WATCH)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = [str(early), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_python(script, environment=environment)
    failure = ("raised", "RuntimeError", REASON)
    assert (done.stdout, done.stderr) == (f"{ {failure} }\n[]\n['0', '1', '2']\n", "")


# Threads --------------------------------------------------------------------------------------------------------------


class Logging(AgentExecutor):
    """Keeps a list of what is called; with `hangs` the step `t0` waits for `may_go`."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.log: list[str] = []
        self.may_go = threading.Event()
        self.hangs = hangs

    def setup(self) -> None:
        self.log.append("setup")

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.log.append(spec.task_id)
        if self.hangs and spec.task_id == "t0":
            self.may_go.wait(HANG_BOUND_S)
        return StepOutcome.completed(spec, spec.prompt)

    def teardown(self) -> None:
        self.log.append("teardown")


@pytest.mark.parametrize("call", CALLS)
def test_a_call_on_threads_raises_the_error_if_there_is_none(call: str) -> None:
    """Without any thread the error is raised, no method of the executor is called, and the runner works again."""
    executor = Logging()
    make_call = CALLS[call]
    runner = Runner(executor, max_concurrency=2)
    with no_threads(), pytest.raises(RuntimeError, match=REASON):
        make_call(runner)
    assert executor.log == []
    assert len(make_call(runner)) == 3
    assert sorted(executor.log) == ["setup", "t0", "t1", "t2", "teardown"]


@pytest.mark.parametrize("call", CALLS)
def test_all_steps_run_on_the_threads_that_could_start(call: str) -> None:
    """If only one thread can start, all steps run on it, between one `setup` and one `teardown`."""
    executor = Logging()
    make_call = CALLS[call]
    with no_threads(spared=1):
        assert len(make_call(Runner(executor, max_concurrency=3))) == 3
    assert (executor.log[0], executor.log[-1]) == ("setup", "teardown")
    assert sorted(executor.log[1:-1]) == ["t0", "t1", "t2"]


def test_an_executor_stays_set_up_though_an_overdue_step_cannot_be_replaced() -> None:
    """If the last thread is abandoned and no other one can start for a while, later steps use the same setup."""
    executor = Logging(hangs=True)
    try:
        with no_threads(spared=1, refused=2) as refused:
            run = Runner(executor, max_concurrency=1, timeout=0.1).run(make_specs(3))
    finally:
        executor.may_go.set()
    assert len(refused) == 2
    assert [record.status for record in run.records] == ["timed_out", "succeeded", "succeeded"]
    assert executor.log == ["setup", "t0", "t1", "t2", "teardown"]


class Copied(Logging):
    """Has a copy for each thread, which logs in the same list; only the first and the fifth setup succeed."""

    thread_safe = False

    def __deepcopy__(self, memo: object) -> Copied:
        copied = Copied(hangs=self.hangs)
        copied.log, copied.may_go = self.log, self.may_go
        return copied

    def setup(self) -> None:
        super().setup()
        if 1 < self.log.count("setup") < 5:
            raise ConnectionError("no seat")


def test_steps_of_a_thread_without_replacement_go_to_a_later_copy() -> None:
    """A run goes on though one thread could set up no copy, and the other one is abandoned and not replaced at once."""
    executor = Copied(hangs=True)
    try:
        with no_threads(spared=2, refused=2) as refused:
            run = Runner(executor, max_concurrency=2, timeout=0.3).run(make_specs(5))
    finally:
        executor.may_go.set()
    assert len(refused) == 2
    assert [record.status for record in run.records] == ["timed_out", *["succeeded"] * 4]
    assert executor.log.count("setup") == 5


def test_a_call_that_cannot_be_submitted_to_threads_is_not_run_later() -> None:
    """`submit` without any thread raises the error, and the call is not made when there are threads again."""
    made: list[str] = []
    with ThreadBackend(max_workers=2) as backend:
        with no_threads(), pytest.raises(RuntimeError, match=REASON):
            backend.submit(made.append, "refused")
        backend.submit(made.append, "accepted").result(HANG_BOUND_S)
    assert made == ["accepted"]


def test_a_call_waits_for_a_running_thread() -> None:
    """If no more threads can start, a submitted call is run by one that is busy now."""
    may_go = threading.Event()
    with ThreadBackend(max_workers=2) as backend:
        first = backend.submit(may_go.wait, HANG_BOUND_S)
        with no_threads():
            second = backend.submit(abs, -3)
        assert not second.done()
        may_go.set()
        assert (first.result(HANG_BOUND_S), second.result(HANG_BOUND_S)) == (True, 3)


def test_a_listener_whose_thread_cannot_start_is_not_added() -> None:
    """`listen` raises the error, the channel does not wait for it, and the next listener gets every event."""
    heard: list[Any] = []
    with EventChannel() as channel:
        with no_threads(), pytest.raises(RuntimeError, match=REASON):
            channel.listen(heard.append)
        channel.send(TextDelta("t", "before"))
        assert channel.flush(0)
        channel.listen(heard.append)
        channel.send(TextDelta("t", "after"))
        assert channel.flush(HANG_BOUND_S)
    assert heard == [TextDelta("t", "after")]


def test_every_call_ends_when_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """More calls than places: each future gets the error, also those that were waiting for a place."""

    def refuse(*arguments: Any) -> NoReturn:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(starter, "start_worker", refuse)
    with ProcessBackend(max_workers=2) as pool:
        futures = [pool.submit(int, "1") for _ in range(6)]
        for future in futures:
            assert isinstance(future.exception(HANG_BOUND_S), BrokenExecutor)
