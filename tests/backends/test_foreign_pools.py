"""Foreign pools that do not say when steps begin, that hang, or that call steps too late."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, FunctionExecutor, Retry, Runner, StepOutcome
from fanout_sync.backends import foreign, places
from fanout_sync.backends.foreign_worker import MAX_REMOTE_EXECUTORS, RemoteCaller, RemoteRun, _RemoteExecutors
from fanout_sync.backends.state_file import StateFile
from fanout_sync.testing import Ledger, make_specs
from fanout_sync.workers.messages import read_report, unpack
from fanout_sync.workers.pickling.executor import pickle_executor

pytestmark = pytest.mark.xdist_group("timing")

SHORT_S = 0.3

pytestmark = pytest.mark.filterwarnings("ignore:the timeout is a soft one:UserWarning")


class Wrapped(Executor):
    """Passes calls to another pool, and does not say how many places that has."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.inner.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.inner.shutdown(wait)  # which is all that loky's takes


class Silent(Wrapped):
    """Like the pool of Dask: its futures are pending until they are done."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        outer: Future[Any] = Future()

        def pass_on(inner: Future[Any]) -> None:
            if outer.cancelled() or inner.cancelled():
                outer.cancel()
            elif (error := inner.exception()) is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

        self.inner.submit(fn, *args, **kwargs).add_done_callback(pass_on)
        return outer


class Elsewhere(Executor):
    """Runs calls in this process as if it were a process of a pool: pickled, and on several threads at once."""

    def __init__(self, size: int = 4) -> None:
        self.threads = ThreadPoolExecutor(size)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.threads.submit(pickle.loads(pickle.dumps(fn)), *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.threads.shutdown(wait, cancel_futures=cancel_futures)


class Holding(Executor):
    """Runs its first call at once; marks all others as running and leaves it to the test to call them."""

    def __init__(self, *, pickles: bool) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.pickles = pickles

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.calls.append(pickle.loads(pickle.dumps(fn)) if self.pickles else fn)
        if len(self.calls) == 1:
            future.set_result(self.calls[0]())
        return future


class Inline(Executor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _loky(size: int) -> Executor:
    from loky import ProcessPoolExecutor as LokyPool

    pool: Executor = LokyPool(size)
    return pool


POOLS: dict[str, Callable[[int], Executor]] = {
    "stdlib": ProcessPoolExecutor,
    "loky": _loky,
    "wrapped": lambda size: Wrapped(ProcessPoolExecutor(size)),
    "silent": lambda size: Silent(ProcessPoolExecutor(size)),
    "threads": ThreadPoolExecutor,
    "wrapped threads": lambda size: Wrapped(ThreadPoolExecutor(size)),
    "threads elsewhere": Elsewhere,
}
MakePool = Callable[[int], Executor]


class Endless(AgentExecutor):
    """Notes each step that begins; steps with the description `"hang"` wait for a file named `release`."""

    def __init__(self, ledger: Ledger, setup_s: float = 0.0) -> None:
        self.ledger = ledger
        self.setup_s = setup_s

    def setup(self) -> None:
        time.sleep(self.setup_s)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.ledger.note(spec.task_id)
        if spec.description == "hang":
            assert eventually((self.ledger.path.parent / "release").exists)
        elif spec.description:
            time.sleep(float(spec.description))
        return StepOutcome.completed(spec, str(os.getpid()))


def endless_specs(hanging: int, others: int = 0, nap: str = "") -> list[AgentStepSpec]:
    descriptions = ["hang"] * hanging + [nap] * others
    return [AgentStepSpec(f"t{number}", "a", text, "") for number, text in enumerate(descriptions)]


@pytest.fixture
def make_pool(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[MakePool]:
    """Make pools of the kind in the parameter; at the end release the hanging steps and shut the pools down."""
    made: list[Executor] = []

    def make(size: int) -> Executor:
        made.append(POOLS[request.param](size))
        return made[-1]

    yield make
    (ledger.path.parent / "release").touch()
    for pool in made:
        pool.shutdown()


every_pool = pytest.mark.parametrize("make_pool", POOLS, indirect=True)
one_of_each_sort = pytest.mark.parametrize("make_pool", ["loky", "silent", "wrapped threads"], indirect=True)


# When a step has begun ------------------------------------------------------------------------------------------------


@one_of_each_sort
def test_endless_steps_in_every_place_time_out_together(make_pool: MakePool, ledger: Ledger) -> None:
    """Endless steps that run at once time out at once, whether the pool says how many places it has or not."""
    run = Runner(Endless(ledger), backend=make_pool(3), timeout=0.5).run(endless_specs(3))
    assert [record.status for record in run.records] == ["timed_out"] * 3
    durations_s = [record.duration_s for record in run.records]
    assert all(duration_s is not None and 0.5 <= duration_s < 5 for duration_s in durations_s)
    assert all("left to itself" in outcome.output for outcome in run)
    assert run.elapsed < HANG_BOUND_S / 2


@one_of_each_sort
def test_waiting_in_the_pool_does_not_count_as_running(make_pool: MakePool, ledger: Ledger) -> None:
    """No step is overdue because it waited for a place, even if the pool says that it was running."""
    specs = endless_specs(0, 10, "0.1")
    run = Runner(Endless(ledger), backend=make_pool(1), timeout=0.5, max_concurrency=8).run(specs)
    assert [record.status for record in run.records] == ["succeeded"] * 10


@one_of_each_sort
def test_setup_does_not_count_as_time_of_a_step(make_pool: MakePool, ledger: Ledger) -> None:
    """The time of a step begins after `setup`, in other processes as well."""
    run = Runner(Endless(ledger, setup_s=0.8), backend=make_pool(2), timeout=0.4).run(endless_specs(0, 4))
    assert [record.status for record in run.records] == ["succeeded"] * 4


def test_the_start_of_a_process_does_not_count_as_time_of_a_step(ledger: Ledger) -> None:
    """No step is overdue because the pool had to start a process for it."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=partial(time.sleep, 0.8)) as pool:
        run = Runner(Endless(ledger), backend=pool, timeout=0.4).run(endless_specs(0, 3))
    assert [record.status for record in run.records] == ["succeeded"] * 3


class PicklesLater(Elsewhere):
    """Pickles in its own threads, like a queue between processes."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.threads.submit(lambda: pickle.loads(pickle.dumps(fn))())


class SlowToPickle(Endless):
    def __getstate__(self) -> dict[str, Any]:
        time.sleep(0.8)
        return self.__dict__


@pytest.mark.parametrize("wrap", [lambda pool: pool, Silent])
def test_pickling_the_executor_does_not_count_as_time_of_a_step(wrap: Any, ledger: Ledger) -> None:
    """No step is overdue because pickling the executor took long."""
    with wrap(PicklesLater(1)) as pool:
        run = Runner(SlowToPickle(ledger), backend=pool, timeout=0.4).run(endless_specs(0, 3))
    assert [record.status for record in run.records] == ["succeeded"] * 3


def test_a_pool_that_runs_steps_inline(ledger: Ledger) -> None:
    """A step that runs inside `submit` succeeds, or is `timed_out` if it takes too long."""
    run = Runner(Endless(ledger), backend=Inline(), timeout=SHORT_S).run(
        [*endless_specs(0, 1), AgentStepSpec("slow", "a", "0.4", "")]
    )
    assert [record.status for record in run.records] == ["succeeded", "timed_out"]


@pytest.mark.parametrize("make_pool", ["stdlib", "silent"], indirect=True)
def test_each_attempt_has_a_timeout_of_its_own(make_pool: MakePool, ledger: Ledger) -> None:
    """The timeout of a second attempt counts from its own begin, not from that of the first."""
    runner = Runner(Endless(ledger), backend=make_pool(2), timeout=SHORT_S, retry=Retry(2, wait=0, on_timeout=True))
    run = runner.run(endless_specs(1))
    assert [attempt.status for attempt in run.records[0].attempts] == ["timed_out"] * 2
    assert ledger.counts() == {"t0": 2}


_create_state_file = StateFile.create


def _out_of_reach() -> StateFile:
    states = _create_state_file()
    assert states is not None
    Path(states.path).unlink()
    states.path += "-on-another-machine"
    return states


@pytest.mark.parametrize("create", [lambda: None, _out_of_reach])
@pytest.mark.parametrize("make_pool", ["stdlib", "wrapped", "silent"], indirect=True)
def test_steps_without_a_state_file_time_out_by_presumption(
    make_pool: MakePool, create: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a shared file endless steps still time out; the message says that their begin is not known."""
    monkeypatch.setattr(StateFile, "create", create)
    monkeypatch.setattr(foreign, "UNSEEN_S", 0.5)
    run = Runner(Endless(ledger), backend=make_pool(2), timeout=SHORT_S).run(endless_specs(2))
    assert [record.status for record in run.records] == ["timed_out"] * 2
    assert all("does not tell when a step begins" in outcome.output for outcome in run)


def test_a_waiting_step_is_not_presumed_to_have_begun(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shared file, no more steps than the pool has places are presumed to have begun."""
    monkeypatch.setattr(StateFile, "create", lambda: None)
    with ProcessPoolExecutor(1) as pool:
        runner = Runner(Endless(ledger), backend=pool, timeout=0.6, max_concurrency=8)
        assert not runner.run(endless_specs(0, 12, "0.1")).failed


@pytest.mark.parametrize("make_pool", ["stdlib", "loky", "wrapped", "threads elsewhere"], indirect=True)
def test_no_state_file_is_left(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The state file is removed after a run, also if its stream was left early."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    runner = Runner(Endless(ledger), backend=make_pool(1), timeout=SHORT_S, max_concurrency=2)
    runner.run(endless_specs(0, 2))
    stream: Any = runner.stream(endless_specs(0, 5))
    next(stream)
    assert any(path.suffix == ".steps" for path in folder.iterdir())
    stream.close()
    assert eventually(lambda: not any(path.suffix == ".steps" for path in folder.iterdir()))


# When every place is occupied for ever --------------------------------------------------------------------------------


@every_pool
def test_a_run_ends_though_every_place_of_the_pool_is_occupied(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that cannot get a place are cancelled, say why, and never run; so are those of later runs."""
    monkeypatch.setattr(places, "PLACE_PATIENCE_S", 0.5)
    pool = make_pool(2)
    run = Runner(Endless(ledger), backend=pool, timeout=SHORT_S, max_concurrency=6).run(endless_specs(2, 20))
    assert [record.status for record in run.records] == ["timed_out"] * 2 + ["cancelled"] * 20
    assert all(outcome.output.startswith("never began: ") for outcome in run[2:])
    assert run.records[5].started is None
    later = Runner(Endless(ledger), backend=pool).run([AgentStepSpec("later", "a", "", "")])
    assert later.records[0].status == "cancelled"
    assert "have not ended" in later[0].output
    (ledger.path.parent / "release").touch()
    pool.shutdown()
    assert ledger.counts() == {"t0": 1, "t1": 1}


@one_of_each_sort
def test_a_place_that_becomes_free_is_used(make_pool: MakePool, ledger: Ledger) -> None:
    """Waiting steps run when steps that were given up end."""
    runner = Runner(Endless(ledger), backend=make_pool(2), timeout=SHORT_S, max_concurrency=6)
    statuses = []
    for outcome in runner.stream(endless_specs(2, 10), order="completion"):
        statuses.append(outcome.success)
        if len(statuses) == 2:
            (ledger.path.parent / "release").touch()
    assert statuses == [False] * 2 + [True] * 10


@one_of_each_sort
def test_one_free_place_is_enough(make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one free place every other step runs, also one that waits longer than `PLACE_PATIENCE_S`."""
    monkeypatch.setattr(places, "PLACE_PATIENCE_S", 0.2)
    runner = Runner(Endless(ledger), backend=make_pool(2), timeout=0.5, max_concurrency=6)
    run = runner.run(endless_specs(1, 4, "0.25"))
    assert [record.status for record in run.records] == ["timed_out"] + ["succeeded"] * 4


# Steps that are called when their run is over -------------------------------------------------------------------------


class Noting(AgentExecutor):
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def setup(self) -> None:
        self.ledger.note("setup")

    def teardown(self) -> None:
        self.ledger.note("teardown")

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.ledger.note(spec.task_id)
        return StepOutcome.completed(spec, spec.prompt)


@pytest.mark.parametrize("pickles", [False, True])
def test_a_step_that_its_pool_calls_too_late_does_not_touch_the_executor(pickles: bool, ledger: Ledger) -> None:
    """A step that the pool calls after its stream was left is cancelled: no setup, no step, no teardown."""
    pool = Holding(pickles=pickles)
    specs = make_specs(4)
    stream: Any = Runner(Noting(ledger), backend=pool, max_concurrency=4).stream(specs)
    assert next(stream).task_id == "t0"
    stream.close()
    before = ledger.counts()
    results = [call() for call in pool.calls[1:]]
    assert len(results) == 3
    for spec, result in zip(specs[1:], results, strict=True):
        report = read_report(1, spec, unpack(result.packed)) if pickles else result
        assert report.status == "cancelled"
        assert "before the step began" in report.outcome.output
    assert ledger.counts() == before == ({"setup": 1, "t0": 1} | ({} if pickles else {"teardown": 1}))


def test_teardown_waits_for_the_step_that_is_still_running() -> None:
    """When a stream is left while a step runs, `teardown` runs after that step."""
    gate, is_running = threading.Event(), threading.Event()
    calls: list[str] = []

    class Slow(AgentExecutor):
        def teardown(self) -> None:
            calls.append("teardown")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            if spec.task_id == "t1":
                is_running.set()
                assert gate.wait(HANG_BOUND_S)
            calls.append(spec.task_id)
            return StepOutcome.completed(spec, "")

    with ThreadPoolExecutor(1) as pool:
        stream: Any = Runner(Slow(), backend=pool, max_concurrency=3).stream(make_specs(3))
        next(stream)
        assert is_running.wait(HANG_BOUND_S)
        stream.close()
        assert calls == ["t0"]
        gate.set()
    assert calls == ["t0", "t1", "teardown"]


# Executors in the processes of the pool -------------------------------------------------------------------------------

SEND_ONE_STEP = """
import os, pickle, sys
os.getpid = lambda: 1
from concurrent.futures import Executor, Future
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

class Remote(Executor):
    def submit(self, step):
        sys.stdout.buffer.write(pickle.dumps(step))
        future = Future()
        future.set_exception(OSError("sent to the test"))
        return future

name = sys.argv[1]
Runner(FunctionExecutor({"tester": lambda spec: name}), backend=Remote()).run(make_specs(1))
"""


def test_callers_with_the_same_process_id_do_not_run_each_others_executors() -> None:
    """Two callers with process id 1, in different containers, do not share an executor in a remote pool."""
    outputs = []
    for name in ("one", "other"):
        sent = subprocess.run(
            [sys.executable, "-c", SEND_ONE_STEP, name], capture_output=True, timeout=HANG_BOUND_S, check=True
        )
        packed, *_ = pickle.loads(sent.stdout)()
        outputs.append(read_report(0, make_specs(1)[0], unpack(packed)).outcome.output)
    assert outputs == ["one", "other"]


@pytest.mark.parametrize("create", [StateFile.create, lambda: None])
def test_short_runs_do_not_evict_the_executor_of_a_long_one(
    create: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run sets up once, even if more short runs than executors are kept come between its steps."""
    monkeypatch.setattr(StateFile, "create", create)
    ledger, other = Ledger(tmp_path / "long"), Ledger(tmp_path / "short")
    with ProcessPoolExecutor(1) as pool:
        short = Runner(Noting(other), backend=pool)
        for _ in Runner(Noting(ledger), backend=pool, max_concurrency=1).stream(make_specs(3)):
            for _ in range(MAX_REMOTE_EXECUTORS + 1):
                short.run(make_specs(1))
        assert ledger.counts()["setup"] == 1
        counts = other.counts()
        assert counts["setup"] - counts["teardown"] <= MAX_REMOTE_EXECUTORS
    assert ledger.counts()["teardown"] == 1
    assert other.counts()["teardown"] == other.counts()["setup"]


def test_many_runs_at_once_each_keep_their_executor(tmp_path: Path) -> None:
    """If more runs than executors are kept take turns on one process, each sets up once."""
    ledgers = [Ledger(tmp_path / str(number)) for number in range(MAX_REMOTE_EXECUTORS + 2)]
    with ProcessPoolExecutor(1) as pool:
        streams = [Runner(Noting(ledger), backend=pool, max_concurrency=1).stream(make_specs(3)) for ledger in ledgers]
        for outcomes in zip(*streams, strict=True):
            assert all(outcome.success for outcome in outcomes)
    assert [ledger.counts()["setup"] for ledger in ledgers] == [1] * len(ledgers)
    assert [ledger.counts()["teardown"] for ledger in ledgers] == [1] * len(ledgers)


def _remote_run(token: str, ledger: Ledger) -> RemoteRun:
    return RemoteRun(token, pickle_executor(Noting(ledger), None)[0], False, None)


def test_the_executors_that_were_used_last_are_kept(ledger: Ledger) -> None:
    """The executor that was used longest ago is evicted, not the one that was created first."""
    executors = _RemoteExecutors()
    runs = [_remote_run(str(number), ledger) for number in range(MAX_REMOTE_EXECUTORS + 1)]
    seen = []
    for run in [*runs[:-1], runs[0], runs[-1], *runs]:
        with executors.using(run, RemoteCaller(f"caller of {run.token}", (run.token,))) as executor:
            seen.append(executor)
    first, second = seen[0], seen[1]
    again = seen[-len(runs) :]
    assert again[0] is first
    assert again[1] is not second


def test_an_executor_in_use_is_never_evicted(ledger: Ledger) -> None:
    """An executor is kept while a step runs on it; at the end of the process it is torn down after that step."""
    executors = _RemoteExecutors()
    long = _remote_run("long", ledger)
    one, other = RemoteCaller("one", ()), RemoteCaller("other", ())
    with executors.using(long, one) as executor:
        assert executor is not None
        assert executor.loaded().run((make_specs(1)[0], 0, 1, None), None, 0, Any, lambda: None).outcome.success  # type: ignore[arg-type]  # nothing is metered
        for number in range(2 * MAX_REMOTE_EXECUTORS):
            with executors.using(_remote_run(str(number), ledger), other):
                pass
        with executors.using(long, one) as same:
            assert same is executor
        executors.close()
        with executors.using(long, one) as late:
            assert late is None
        assert ledger.counts() == {"setup": 1, "t0": 1}
    assert ledger.counts() == {"setup": 1, "t0": 1, "teardown": 1}


class SlowToLoad(Noting):
    """Notes that it is being unpickled, and waits for a file named `release` then."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.ledger.note("load")
        assert eventually((self.ledger.path.parent / "release").exists)


def test_steps_that_begin_together_load_one_executor(tmp_path: Path) -> None:
    """Of several steps in one process only the first loads the executor; meanwhile other runs go on."""
    ledger, other = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "other")
    with Elsewhere(8) as pool, Runner(SlowToLoad(ledger), backend=pool, max_concurrency=4) as runner:
        handed_over = threading.Thread(target=lambda: outcomes.extend(runner.run(make_specs(4))))
        outcomes: list[StepOutcome] = []
        handed_over.start()
        assert eventually(lambda: ledger.counts()["load"] == 1)
        assert len(Runner(Noting(other), backend=pool).run(make_specs(3)).succeeded) == 3
        (tmp_path / "release").touch()
        handed_over.join(HANG_BOUND_S)
    assert [outcome.output for outcome in outcomes] == ["0", "1", "2", "3"]
    assert ledger.counts()["load"] == 1
    assert ledger.counts()["setup"] == 1


class Unloadable(Noting):
    def __setstate__(self, state: dict[str, Any]) -> None:
        raise SystemExit("not here")


@pytest.mark.parametrize("make_pool", ["stdlib", "loky", "threads elsewhere"], indirect=True)
def test_an_executor_that_does_not_load_fails_its_own_steps(make_pool: MakePool, ledger: Ledger) -> None:
    """Each step fails with the error of loading; other runs on the pool succeed."""
    pool = make_pool(1)
    run = Runner(Unloadable(ledger), backend=pool).run(make_specs(3))
    assert [record.status for record in run.records] == ["raised"] * 3
    assert all("the executor was pickled, but cannot be unpickled here: not here" in outcome.output for outcome in run)
    assert not Runner(Noting(ledger), backend=pool).run(make_specs(2)).failed


def fan_out_inside(spec: AgentStepSpec) -> str:
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        run = Runner(Noting(Ledger(Path(spec.description))), backend=pool).run(make_specs(2))
    return str(len(run.succeeded))


def test_a_process_forked_in_a_step_tears_down_its_own_executors(ledger: Ledger) -> None:
    """When a step runs a fan-out on a pool of forked processes, these tear down their executor, too."""
    specs = [AgentStepSpec("outer", "a", str(ledger.path), "")]
    with ProcessPoolExecutor(1) as pool:
        run = Runner(FunctionExecutor({"a": fan_out_inside}), backend=pool).run(specs)
    assert run[0].output == "2"
    assert ledger.counts() == {"setup": 1, "t0": 1, "t1": 1, "teardown": 1}
