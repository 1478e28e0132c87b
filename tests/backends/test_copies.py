"""Executors that are not thread-safe: on threads, too, each worker has a copy of its own."""

from __future__ import annotations

import contextvars
import copy
import logging
import pickle
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import Launcher

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    Continue,
    EventChannel,
    EventSender,
    ExecutorNotPicklable,
    FunctionExecutor,
    MemoryJournal,
    OptionError,
    RateLimit,
    Retry,
    Runner,
    StepOutcome,
    ThreadBackend,
    current_step,
)
from fanout_sync.backends.copies import MAX_FAILED_SETUPS
from fanout_sync.testing import Ledger, make_specs

WORKERS = 4


class Shared:
    """What a test and all copies of an executor refer to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str]] = []
        self.meeting = threading.Barrier(WORKERS)

    def __deepcopy__(self, memo: object) -> Shared:
        return self

    def note(self, what: str, executor: object) -> None:
        self.calls.append((what, id(executor), threading.current_thread().name))

    def noted(self, what: str) -> list[tuple[int, str]]:
        """Return object and thread of each call."""
        return [(number, thread) for kind, number, thread in self.calls if kind == what]


class Stateful(AgentExecutor):
    """Notes its calls; the first steps wait for each other, so that there is one in each of the workers."""

    thread_safe = False

    def __init__(self) -> None:
        self.shared = Shared()
        self.mine: list[str] = []

    def setup(self) -> None:
        self.shared.note("setup", self)

    def teardown(self) -> None:
        self.shared.note("teardown", self)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.shared.note("step", self)
        self.mine = [spec.prompt]
        if int(spec.prompt) < WORKERS:
            self.shared.meeting.wait(HANG_BOUND_S)
        return StepOutcome.completed(spec, " ".join(self.mine))


class Apart(Executor):
    """A pool that starts a thread for each call, and whose threads end with it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        threading.Thread(target=lambda: future.set_result(fn(*args, **kwargs))).start()
        return future


@pytest.fixture(params=["thread", "pool"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "thread":
        yield "thread"
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        yield pool


def outputs(run: Any) -> list[str]:
    return [outcome.output for outcome in run]


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


# Who has a copy -------------------------------------------------------------------------------------------------------


def test_each_thread_has_a_copy_of_its_own(backend: Any) -> None:
    """Each thread sets up one copy, all its steps run on that, and the executor itself is left alone."""
    executor = Stateful()
    run = Runner(executor, backend=backend, max_concurrency=WORKERS).run(make_specs(40))
    assert outputs(run) == numbers(40)
    setups = executor.shared.noted("setup")
    assert len(set(setups)) == len(setups) == WORKERS
    assert len({number for number, _ in setups}) == len({thread for _, thread in setups}) == WORKERS
    assert set(executor.shared.noted("step")) == set(setups)
    assert id(executor) not in {number for number, _ in setups}
    assert executor.mine == []


def test_teardown_runs_in_the_thread_of_its_copy() -> None:
    """Before the run returns, each copy is torn down once, in the thread that set it up."""
    executor = Stateful()
    Runner(executor, max_concurrency=WORKERS).run(make_specs(40))
    assert sorted(executor.shared.noted("teardown")) == sorted(executor.shared.noted("setup"))


def test_on_a_foreign_pool_each_copy_is_torn_down_once() -> None:
    """The copies of a pool's threads are torn down before the run returns, whichever thread does that."""
    executor = Stateful()
    with ThreadPoolExecutor(WORKERS) as pool:
        Runner(executor, backend=pool, max_concurrency=WORKERS).run(make_specs(40))
        torn_down = [number for number, _ in executor.shared.noted("teardown")]
    assert sorted(torn_down) == sorted(number for number, _ in executor.shared.noted("setup"))


def test_connections_that_belong_to_their_thread() -> None:
    """An SQLite connection that `setup` makes works in every step, and in `teardown`."""
    errors: list[BaseException] = []

    class Sql(AgentExecutor):
        thread_safe = False

        def setup(self) -> None:
            self.db = sqlite3.connect(":memory:")

        def teardown(self) -> None:
            try:
                self.db.close()
            except sqlite3.Error as error:
                errors.append(error)

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            return StepOutcome.completed(spec, str(*self.db.execute("select ?", (spec.prompt,)).fetchone()))

    assert outputs(Runner(Sql(), max_concurrency=WORKERS).run(make_specs(40))) == numbers(40)
    assert errors == []


@pytest.mark.parametrize("copies", [True, False])
def test_the_backend_can_ask_for_copies(copies: bool) -> None:
    """With `ThreadBackend(copies=True)` an executor is copied that says nothing; without, its threads share it."""
    executor = Stateful()
    executor.thread_safe = True
    runner = Runner(executor, backend=ThreadBackend(copies=copies), max_concurrency=WORKERS)
    runner.run(make_specs(WORKERS))
    assert len(executor.shared.noted("setup")) == (WORKERS if copies else 1)
    assert (id(executor) in {number for number, _ in executor.shared.noted("step")}) is not copies


def test_the_backend_does_not_share_what_must_not_be_shared() -> None:
    """`copies=False` leaves it to the executor."""
    executor = Stateful()
    Runner(executor, backend=ThreadBackend(copies=False), max_concurrency=WORKERS).run(make_specs(WORKERS))
    assert len(executor.shared.noted("setup")) == WORKERS


def test_an_object_may_say_it_for_itself(backend: Any) -> None:
    """`thread_safe` may be set on an object, or be a property."""

    class AsProperty(Stateful):
        @property
        def thread_safe(self) -> bool:  # type: ignore[override]
            return self.mine != []

    on_object = Stateful()
    on_object.thread_safe = False
    for executor in (AsProperty(), on_object):
        Runner(executor, backend=backend, max_concurrency=WORKERS).run(make_specs(WORKERS))
        assert len(executor.shared.noted("setup")) == WORKERS


@pytest.mark.parametrize("value", [None, 0, 1, "no", [], lambda: False])
def test_thread_safe_must_be_a_bool(value: Any, backend: Any) -> None:
    """Any other value is refused when the runner is made; the error names it and its class."""
    executor = Stateful()
    executor.thread_safe = value
    with pytest.raises(OptionError, match="thread_safe of Stateful must be a bool, got "):
        Runner(executor, backend=backend)


def test_a_method_is_no_value_of_thread_safe() -> None:
    """A class that defines `thread_safe` as a method is refused: the method itself would count as true."""

    class AsMethod(Stateful):
        def thread_safe(self) -> bool:  # type: ignore[override]
            return False

    with pytest.raises(OptionError, match="thread_safe of AsMethod must be a bool, got method"):
        Runner(AsMethod())


@pytest.mark.parametrize("value", [None, 0, "yes"])
def test_copies_must_be_a_bool(value: Any) -> None:
    """Any other value of `copies` is refused."""
    with pytest.raises(OptionError, match="copies must be a bool, got "):
        ThreadBackend(copies=value)


def test_processes_do_without(ledger: Ledger) -> None:
    """A worker process has one copy anyway: it makes no other, and what `deepcopy` cannot copy is no matter."""

    class Counting(AgentExecutor):
        thread_safe = False

        def __deepcopy__(self, memo: object) -> Counting:
            raise TypeError("there is one of me")

        def setup(self) -> None:
            ledger.note("setup")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            return StepOutcome.completed(spec, spec.prompt)

    run = Runner(Counting(), backend="process", max_concurrency=1).run(make_specs(5))
    assert outputs(run) == numbers(5)
    assert ledger.counts() == {"setup": 1}


# What is copied -------------------------------------------------------------------------------------------------------


class Agent:
    """Has a memory, which a step uses as if it were alone."""

    def __init__(self) -> None:
        self.meeting = Shared()
        self.memory: list[str] = []

    def answer(self, spec: AgentStepSpec) -> str:
        self.memory = [spec.prompt]
        self.meeting.meeting.wait(HANG_BOUND_S)
        return " ".join(self.memory)

    def __call__(self, spec: AgentStepSpec) -> str:
        return self.answer(spec)


def in_partial(agent: Agent) -> Callable[[AgentStepSpec], str]:
    return partial(Agent.answer, agent)


def in_closure(agent: Agent) -> Callable[[AgentStepSpec], str]:
    return lambda spec: agent.answer(spec)


@pytest.mark.parametrize(
    ("wrap", "is_copied"),
    [(lambda agent: agent.answer, True), (lambda agent: agent, True), (in_partial, True), (in_closure, False)],
    ids=["bound method", "callable object", "partial", "closure"],
)
def test_what_a_function_executor_copies(wrap: Callable[[Agent], Any], is_copied: bool) -> None:
    """The object of a bound method is copied, and a callable object; what a plain function refers to is shared."""
    agent = Agent()
    executor = FunctionExecutor({"tester": wrap(agent)})
    run = Runner(executor, backend=ThreadBackend(copies=True), max_concurrency=WORKERS).run(make_specs(WORKERS))
    assert (outputs(run) == numbers(WORKERS)) is is_copied
    assert (agent.memory == []) is is_copied


def test_two_methods_of_one_object_stay_together() -> None:
    """In a copy, two agents that were methods of one object are methods of one copy of it."""

    class Pair:
        seen: str = ""

        def write(self, spec: AgentStepSpec) -> str:
            self.seen = spec.prompt
            return ""

        def read(self, spec: AgentStepSpec) -> str:
            return self.seen

    pair = Pair()
    executor = FunctionExecutor({"write": pair.write, "read": pair.read})
    specs = [AgentStepSpec("w", "write", "", "a word"), AgentStepSpec("r", "read", "", "")]
    assert Runner(executor, backend=ThreadBackend(copies=True), max_concurrency=1).run(specs)[1].output == "a word"
    assert pair.seen == ""


class Holder(AgentExecutor):
    thread_safe = False

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, "")


class Slotted:
    __slots__ = ("client",)

    def __init__(self, client: Any) -> None:
        self.client = client


class Unable:
    def __deepcopy__(self, memo: object) -> Unable:
        raise RuntimeError("no twins")

    def method(self, spec: AgentStepSpec) -> str:
        return ""


class Elsewhere(Holder):
    def __deepcopy__(self, memo: object) -> None:
        return None


class Recursive(Holder):
    def __deepcopy__(self, memo: object) -> Recursive:
        raise RecursionError("too deep")


REFUSED: dict[str, tuple[AgentExecutor, str]] = {
    "lock": (Holder(lock=threading.Lock()), r"executor\.lock cannot be copied for each worker thread: it is lock"),
    "nested": (Holder(clients={"a": [threading.Lock()]}), r"executor\.clients\['a'\]\[0\] cannot be copied"),
    "slots": (Holder(slotted=Slotted(threading.Lock())), r"executor\.slotted\.client cannot"),
    "generator": (Holder(words=(word for word in "ab")), r"executor\.words cannot"),
    "connection": (Holder(db=sqlite3.connect(":memory:")), r"executor\.db cannot .* is Connection"),
    "module": (Holder(json=logging), r"executor\.json cannot .* is module"),
    "own method": (Holder(agent=Unable()), r"executor\.agent cannot .*RuntimeError: no twins"),
    "nothing": (Elsewhere(), r"executor cannot .*its __deepcopy__\(\) returned None, expected an AgentExecutor"),
    "itself": (Recursive(), r"executor cannot be copied .*: RecursionError: too deep"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_is_refused(name: str, backend: Any) -> None:
    """The error names the path to the attribute at fault and what to do; no input has been read by then."""
    executor, message = REFUSED[name]
    untouched = iter(make_specs(3))
    with pytest.raises(ExecutorNotPicklable, match=message) as caught:
        Runner(executor, backend=backend).run(untouched)
    assert len(list(untouched)) == 3
    assert caught.value.is_copy
    assert caught.value.advice in str(caught.value)


def test_an_agent_that_cannot_be_copied_is_refused() -> None:
    """The path leads through the agents of a `FunctionExecutor` to the object of a bound method."""
    executor = FunctionExecutor({"tester": Unable().method})
    with pytest.raises(ExecutorNotPicklable, match=r"executor\._functions\['tester'\]\.__self__ cannot be copied"):
        Runner(executor, backend=ThreadBackend(copies=True)).run(make_specs(1))


@pytest.mark.parametrize(
    "make", [lambda: Budget(max_steps=9), lambda: RateLimit(requests_per_minute=9), EventChannel, MemoryJournal]
)
def test_copies_share_what_threads_may_share(make: Callable[[], Any]) -> None:
    """Limits, budgets, channels and journals in memory count for all copies together."""
    shared = make()
    assert copy.deepcopy(shared) is shared
    assert len(Runner(Holder(shared=shared)).run(make_specs(2)).succeeded) == 2


def test_an_executor_that_returns_itself_is_shared(backend: Any) -> None:
    """If its `__deepcopy__` returns the executor itself, there is one setup and one teardown, as if it were safe."""

    class Single(Stateful):
        def __deepcopy__(self, memo: object) -> Single:
            return self

    executor = Single()
    Runner(executor, backend=backend, max_concurrency=WORKERS).run(make_specs(8))
    assert [number for number, _ in executor.shared.noted("setup")] == [id(executor)]
    assert [number for number, _ in executor.shared.noted("teardown")] == [id(executor)]


class Copied(Stateful):
    """Notes each copy that is made of it; the ones for which `fails` is true cannot be made."""

    def __init__(self, fails: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__()
        self.fails = fails
        self.copying = threading.Lock()

    def __deepcopy__(self, memo: object) -> Copied:
        assert self.copying.acquire(blocking=False), "copied by two threads at once"
        try:
            self.shared.note("copy", self)
            if self.fails(len(self.shared.noted("copy"))):
                raise MemoryError("no room for another one")
            made = type(self)(self.fails)
            made.shared = self.shared
            return made
        finally:
            self.copying.release()


def test_a_copy_is_made_once_for_each_thread(backend: Any) -> None:
    """The executor's own code for copying runs as often as there are threads, and in one at a time."""
    executor = Copied()
    Runner(executor, backend=backend, max_concurrency=WORKERS).run(make_specs(40))
    assert len(executor.shared.noted("copy")) == len(executor.shared.noted("setup")) == WORKERS


def test_each_run_has_copies_of_its_own() -> None:
    """A runner keeps no threads and no copies from one run to the next, not even as a context manager."""
    executor = Copied()
    with Runner(executor, max_concurrency=WORKERS) as runner:
        for rounds in (1, 2):
            runner.run(make_specs(8))
            assert len(executor.shared.noted("copy")) == rounds * WORKERS
            assert len(executor.shared.noted("teardown")) == rounds * WORKERS


def test_each_round_of_a_loop_has_copies_of_its_own() -> None:
    """A loop copies the executor for every round, as it sets a shared one up for every round."""
    executor = Copied()
    outcomes = Runner(executor, max_concurrency=WORKERS).loop(make_specs(8), 3, lambda _: Continue(make_specs(8)))
    assert [outcome.output for outcome in outcomes] == numbers(8)
    assert len(executor.shared.noted("copy")) == len(executor.shared.noted("teardown")) == 3 * WORKERS


def test_copies_do_not_outlive_their_run(backend: Any) -> None:
    """When a run is over, nothing refers to its copies."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Mortal(Stateful):
        def setup(self) -> None:
            alive.add(self)

    Runner(Mortal(), backend=backend, max_concurrency=WORKERS).run(make_specs(8))
    assert eventually(lambda: len(alive) == 0)


def test_a_copy_sees_the_context_of_the_caller(backend: Any) -> None:
    """`setup` in each thread sees the caller's context variables, and none that another thread's `setup` has set."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    class InContext(Stateful):
        def setup(self) -> None:
            variable.set(variable.get() + "+setup")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            super().execute_step(spec)
            return StepOutcome.completed(spec, variable.get())

    token = variable.set("caller")
    try:
        run = Runner(InContext(), backend=backend, max_concurrency=WORKERS).run(make_specs(8))
        assert set(outputs(run)) == {"caller+setup"}
        assert variable.get() == "caller"
    finally:
        variable.reset(token)


# When a copy fails ----------------------------------------------------------------------------------------------------


class Flaky(Stateful):
    """The setups for whose number, from 1, `fails` is true raise."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        super().__init__()
        self.fails = fails

    def setup(self) -> None:
        super().setup()
        if self.fails(len(self.shared.noted("setup"))):
            raise ConnectionError("no seat")


def test_a_thread_whose_setup_fails_costs_no_step() -> None:
    """A thread takes no step before its copy is set up; another copy is tried, and every step succeeds."""
    executor = Flaky(lambda number: number == 1)
    run = Runner(executor, max_concurrency=WORKERS).run(make_specs(20))
    assert outputs(run) == numbers(20)
    assert len(executor.shared.noted("setup")) == WORKERS + 1
    assert len(executor.shared.noted("teardown")) == WORKERS


def test_the_threads_that_could_be_set_up_run_all_steps() -> None:
    """If no more than one copy can be set up, its thread runs all the steps, and there is no storm of setups."""
    executor = Flaky(lambda number: number != 1)
    executor.shared.meeting = threading.Barrier(1)
    run = Runner(executor, max_concurrency=WORKERS).run(make_specs(20))
    assert outputs(run) == numbers(20)
    assert len({record.worker for record in run.records}) == 1
    assert len(executor.shared.noted("setup")) <= MAX_FAILED_SETUPS + WORKERS
    assert len(executor.shared.noted("teardown")) == 1


@pytest.mark.parametrize("retry", [None, Retry(3, wait=0)])
def test_if_no_copy_can_be_set_up_each_step_fails_with_the_cause(retry: Retry | None, backend: Any) -> None:
    """After three failed setups in a row no more begin, and every step says why; no step and no teardown runs."""
    executor = Flaky(lambda number: True)
    run = Runner(executor, backend=backend, max_concurrency=WORKERS, retry=retry).run(make_specs(50))
    assert set(outputs(run)) == {"ConnectionError: no seat"}
    assert {record.status for record in run.records} == {"raised"}
    error = run.records[0].error
    assert error is not None
    assert "in setup" in (error.traceback or "")
    assert MAX_FAILED_SETUPS <= len(executor.shared.noted("setup")) < MAX_FAILED_SETUPS + WORKERS
    assert executor.shared.noted("step") == executor.shared.noted("teardown") == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_setup_may_raise_anything(error: BaseException, backend: Any) -> None:
    """What is no `Exception` fails the steps as well, and ends no thread before they have been reported."""

    class Raising(Holder):
        def setup(self) -> None:
            raise error

    run = Runner(Raising(), backend=backend, max_concurrency=2).run(make_specs(5))
    assert {record.status for record in run.records} == {"raised"}
    assert type(error).__name__ in run[0].output


def test_on_a_foreign_pool_a_failed_setup_fails_the_step_that_needs_it() -> None:
    """The pool has given the step to that thread; with the next step the thread tries again."""
    executor = Flaky(lambda number: number == 1)
    executor.shared.meeting = threading.Barrier(1)
    with ThreadPoolExecutor(1) as pool:
        run = Runner(executor, backend=pool, max_concurrency=1).run(make_specs(3))
    assert outputs(run) == ["ConnectionError: no seat", "1", "2"]


def test_a_later_copy_that_fails_counts_as_a_setup() -> None:
    """If only the first copy can be made, its thread runs all the steps."""
    executor = Copied(lambda number: number > 1)
    executor.shared.meeting = threading.Barrier(1)
    run = Runner(executor, max_concurrency=WORKERS).run(make_specs(20))
    assert outputs(run) == numbers(20)
    assert len(executor.shared.noted("setup")) == 1


def test_a_teardown_that_raises_costs_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """What `teardown` of a copy raises is logged, and the other copies are torn down."""

    class Stuck(Stateful):
        def teardown(self) -> None:
            super().teardown()
            raise ValueError("stuck")

    executor = Stuck()
    assert len(Runner(executor, max_concurrency=WORKERS).run(make_specs(8)).succeeded) == 8
    assert len(executor.shared.noted("teardown")) == WORKERS
    assert caplog.text.count("teardown() of Stuck raised") == WORKERS


def test_a_setup_that_is_not_done_does_not_hold_the_run() -> None:
    """The run ends when its steps have ended, also if a thread that has had no step is still in `setup`."""
    may_end = threading.Event()

    class Slow(Flaky):
        def setup(self) -> None:
            try:
                super().setup()
            except ConnectionError:
                may_end.wait(HANG_BOUND_S)

    executor = Slow(lambda number: number == 2)
    executor.shared.meeting = threading.Barrier(1)
    try:
        assert len(Runner(executor, max_concurrency=2).run(make_specs(20)).succeeded) == 20
        assert len(executor.shared.noted("teardown")) < 2
    finally:
        may_end.set()
    assert eventually(lambda: len(executor.shared.noted("teardown")) == len(executor.shared.noted("setup")))


# Timeouts and early ends ----------------------------------------------------------------------------------------------


class Hanging(Stateful):
    """The step `t0` goes on until the test lets it end; it does not stop by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shared.meeting = threading.Barrier(1)
        self.shared.may_end = threading.Event()  # type: ignore[attr-defined]

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if spec.task_id == "t0":
            self.shared.note("hanging", self)
            self.shared.may_end.wait(HANG_BOUND_S)  # type: ignore[attr-defined]
        return super().execute_step(spec)


def test_an_abandoned_thread_keeps_its_copy() -> None:
    """Its replacement has another one; the abandoned copy is torn down in its thread when its step ends."""
    executor = Hanging()
    shared: Any = executor.shared
    try:
        run = Runner(executor, max_concurrency=1, timeout=0.2).run(make_specs(3))
        assert [record.status for record in run.records] == ["timed_out", "succeeded", "succeeded"]
        abandoned, replacement = shared.noted("setup")
        assert shared.noted("hanging") == [abandoned]
        assert shared.noted("step") == [replacement] * 2
        assert shared.noted("teardown") == [replacement]
    finally:
        shared.may_end.set()
    assert eventually(lambda: shared.noted("teardown") == [replacement, abandoned])


def test_a_replacement_may_fail_to_set_up() -> None:
    """If every thread is abandoned and no replacement can be set up, the steps left fail with the cause."""

    class Once(Hanging):
        def setup(self) -> None:
            super().setup()
            if len(self.shared.noted("setup")) > 1:
                raise ConnectionError("no seat")

    executor = Once()
    shared: Any = executor.shared
    try:
        run = Runner(executor, max_concurrency=1, timeout=0.2).run(make_specs(4))
    finally:
        shared.may_end.set()
    assert [record.status for record in run.records] == ["timed_out", "raised", "raised", "raised"]
    assert run[3].output == "ConnectionError: no seat"
    assert len(shared.noted("setup")) == 1 + MAX_FAILED_SETUPS


def test_setup_does_not_count_as_time_of_a_step() -> None:
    """The timeout begins after the copy is set up."""

    class Slow(Holder):
        def setup(self) -> None:
            threading.Event().wait(0.6)

    assert len(Runner(Slow(), max_concurrency=2, timeout=0.3).run(make_specs(4)).succeeded) == 4


def test_a_stream_that_is_left_tears_its_copies_down() -> None:
    """After `break` each copy that was set up is torn down, in its thread, when its step has ended."""
    executor = Stateful()
    for _ in Runner(executor, max_concurrency=WORKERS).stream(make_specs(40)):
        break
    setups = executor.shared.noted("setup")
    assert eventually(lambda: sorted(executor.shared.noted("teardown")) == sorted(setups))


def test_a_run_within_a_step_copies_the_copy() -> None:
    """A step may start a run on the executor that it belongs to: that one has copies of the copy."""

    class Nested(Stateful):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            self.mine.append(spec.prompt)
            if current_step().spec.agent == "outer":
                return Runner(self, max_concurrency=1).run(make_specs(1))[0]
            return StepOutcome.completed(spec, " ".join(self.mine))

    executor = Nested()
    run = Runner(executor, max_concurrency=2).run([AgentStepSpec("o", "outer", "", "outer")])
    assert run[0].output == "outer 0"
    assert len(executor.shared.noted("teardown")) == 2


@pytest.mark.parametrize("call", ["run(make_specs(3))", "stream(make_specs(3))", "run(iter(make_specs(3)))"])
def test_ctrl_c_ends_a_copy_that_hangs(call: str, launch: Launcher) -> None:
    """One Ctrl-C ends a `__deepcopy__` that does not return; no step has run, and the run says so."""
    script = launch.script(
        f"""
        class Hangs(FunctionExecutor):
            thread_safe = False
            def __deepcopy__(self, memo):
                say("copying")
                time.sleep(3600)

        try:
            list(Runner(Hangs({{"tester": hang}})).{call})
        except FanoutInterrupted as interrupted:
            say("interrupted:", sum(record.status == "cancelled" for record in interrupted.run.records))
        """
    )
    script.expect("copying")
    script.press_ctrl_c()
    assert script.end() == ("interrupted: 0\n" if "iter" in call else "interrupted: 3\n")


def test_ctrl_c_ends_a_run_whose_setups_hang(launch: Launcher) -> None:
    """Threads that are still in `setup` do not keep an interrupted run from ending."""
    script = launch.script(
        """
        class Hangs(FunctionExecutor):
            thread_safe = False
            def setup(self):
                say("setting up")
                time.sleep(3600)

        try:
            Runner(Hangs({"tester": hang}), max_concurrency=2).run(make_specs(3))
        except FanoutInterrupted as interrupted:
            say(statuses(interrupted.run))
        """
    )
    script.expect("setting up", "setting up")
    script.press_ctrl_c()
    assert script.end() == "cancelled cancelled cancelled\n"


def test_ctrl_c_ends_a_run_in_which_a_later_copy_hangs(launch: Launcher) -> None:
    """A worker thread that waits for its copy does not keep an interrupted run from ending."""
    script = launch.script(
        """
        class Hangs(FunctionExecutor):
            thread_safe = False
            copies = 0
            def __deepcopy__(self, memo):
                Hangs.copies += 1
                if Hangs.copies > 1:
                    say("copying")
                    time.sleep(3600)
                return Hangs({"tester": is_stopped})

        try:
            Runner(Hangs(), max_concurrency=2).run(make_specs(3))
        except FanoutInterrupted as interrupted:
            say(statuses(interrupted.run))
        """
    )
    script.expect("begun t0", "copying")
    script.press_ctrl_c()
    assert script.end() == "told t0\nsucceeded cancelled cancelled\n"


# Pools of others ------------------------------------------------------------------------------------------------------


def test_copies_of_threads_that_have_ended_are_torn_down() -> None:
    """On a pool with a thread for each call, no more copies are kept than there are threads."""
    kept: list[int] = []

    class Counting(Stateful):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            kept.append(len(self.shared.noted("setup")) - len(self.shared.noted("teardown")))
            return StepOutcome.completed(spec, spec.prompt)

    executor = Counting()
    run = Runner(executor, backend=Apart(), max_concurrency=1).run(make_specs(50))
    assert outputs(run) == numbers(50)
    assert len(executor.shared.noted("setup")) == len(executor.shared.noted("teardown")) == 50
    assert max(kept) <= 3


SET_UP: list[int] = []
MEETING = threading.Barrier(WORKERS)


class Sent(AgentExecutor):
    """Answers with the thread that its `setup` ran in; notes that thread for the test."""

    thread_safe = False

    def setup(self) -> None:
        self.thread = threading.get_ident()
        SET_UP.append(self.thread)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if int(spec.prompt) < WORKERS:
            MEETING.wait(HANG_BOUND_S)
        return StepOutcome.completed(spec, str(self.thread == threading.get_ident()))


class Sending(ThreadPoolExecutor):
    """Pickles its calls, as if its threads were those of another process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(pickle.loads(pickle.dumps(fn)), *args, **kwargs)


def test_threads_of_a_process_of_a_pool_have_copies_of_their_own() -> None:
    """If a process of a pool runs steps on several threads, each of these sets up a copy."""
    SET_UP.clear()
    with Sending(WORKERS) as pool:
        run = Runner(Sent(), backend=pool, max_concurrency=WORKERS).run(make_specs(20))
    assert outputs(run) == ["True"] * 20
    assert len(SET_UP) == len(set(SET_UP)) == WORKERS


def test_a_process_of_a_pool_needs_no_copy(ledger: Ledger) -> None:
    """In a process of a pool the executor is the only one, and is not copied."""
    executor = InProcess(ledger)
    with ProcessPoolExecutor(1) as pool:
        run = Runner(executor, backend=pool, max_concurrency=1).run(make_specs(3))
    assert outputs(run) == numbers(3)
    assert ledger.counts()["setup"] == 1


class InProcess(AgentExecutor):
    thread_safe = False

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __deepcopy__(self, memo: object) -> InProcess:
        raise TypeError("there is one of me")

    def setup(self) -> None:
        self.ledger.note("setup")

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, spec.prompt)
