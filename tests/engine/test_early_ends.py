"""A call of a runner that ends early keeps what was done, and stops what was not.

These tests show section 2 of issue 9, "One way to end"; each part says which item it shows:

1. An interrupt that a consumer throws into a stream loses no outcome (the command line is in
   tests/cli/test_cli_interrupts.py).
2. Ctrl-C while the journal opens starts no step.
3. A stream that is left has journalled every step that was done.
4. Ctrl-C while workers are shut down, or while the journal closes, loses no result.
5. What an interrupt says is true, and a step with attempts left is cancelled.

The rest is the same for the other early ends: an input that raises, a journal that fails, an outer step that is
cancelled. Each item is shown on threads, on processes and on a foreign pool, and for each call that it concerns; not
in every combination, because all of them take the same way through the code.
"""

from __future__ import annotations

import gc
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from early_ends import (
    BOUND_S,
    WAYS,
    CallResult,
    HookedJournal,
    Marks,
    ScriptedExecutor,
    call_runner,
    ctrl_c_when,
    in_order,
    scripted_specs,
)
from processes import eventually, is_alive

from fanout_sync import (
    AgentStepSpec,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    Journal,
    JournalError,
    MemoryJournal,
    Retry,
    Runner,
    SqliteJournal,
    StepOutcome,
    current_step,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

MakeRunner = Callable[..., Runner]
Leave = Callable[[Runner, list[AgentStepSpec], Any, Callable[[], None]], None]

EXIT_BOUND_S = 20
"""Seconds: far more than any early end takes, and less than a held step waits."""


def each_call(
    thread: Sequence[str] = WAYS, process: Sequence[str] = (), foreign: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Parametrise a test with `backend` and `way`: the ways to call a runner that are given for each backend."""
    ways = {"thread": thread, "process": process, "foreign": foreign}
    return pytest.mark.parametrize(("backend", "way"), [(backend, way) for backend in ways for way in ways[backend]])


def in_each_way(*cases: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return each case once for each way to call a runner, which comes last."""
    return [(*case, way) for case in cases for way in WAYS]


@pytest.fixture(params=["thread", "process", "foreign"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_runner(backend: str) -> Iterator[MakeRunner]:
    """Makes runners over the backend of the test; the foreign pool has more threads than any test uses."""
    with ThreadPoolExecutor(16) as pool:
        where = pool if backend == "foreign" else backend
        yield lambda executor, **options: Runner(executor, backend=where, **options)  # type: ignore[arg-type]  # a name


@pytest.fixture
def marks(make_runner: MakeRunner, tmp_path: Path) -> Iterator[Marks]:
    """Where steps leave marks. Held steps are released in the end, before a pool waits for its threads."""
    marks = Marks(tmp_path)
    yield marks
    marks.release()


def journalled(journal: Journal) -> list[str]:
    """Return the task ids of the steps that are journalled as succeeded, in the order of the input."""
    return [record.task_id for record in journal.records("default") if record.status == "succeeded"]


def counts_in(interrupted: BaseException) -> tuple[int, int, int]:
    """Return how many steps the message says were done, of how many, and how many are cancelled."""
    numbers = re.search(r"(\d+) of (\d+) steps were done, (\d+) are cancelled", str(interrupted))
    assert numbers is not None, str(interrupted)
    done, total, cancelled = map(int, numbers.groups())
    return done, total, cancelled


# Item 2: while the journal opens --------------------------------------------------------------------------------------


class InterruptAt:
    """A hook that interrupts the main thread the first time that the journal is used in a given way."""

    def __init__(self, moment: str, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.moment, self.number, self.times = moment, number, times

    def __call__(self, moment: str) -> None:
        while moment == self.moment and self.times:
            self.times -= 1
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("backend", "moment", "on_interrupt", "way"),
    in_each_way(
        ("thread", "opening", "raise"),
        ("thread", "opened", "return"),
        ("thread", "asked", "raise"),
        ("process", "opened", "raise"),
        ("foreign", "opened", "return"),
    ),
)
def test_an_interrupt_before_the_first_step(
    moment: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """Ctrl-C while the journal opens, or is read for the first time: no step of a generator runs, in any call."""
    journal = HookedJournal(InterruptAt(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=1, journal=journal, on_interrupt=on_interrupt)
    result = call_runner(way, runner, (spec for spec in make_specs(30)))
    assert ledger.counts() == {}
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert result.succeeded == []
    assert journalled(journal) == []
    again = call_runner(way, make_runner(LedgerExecutor(ledger), journal=journal), make_specs(2))
    assert again.error is None, "the workflow is free again"


@pytest.mark.parametrize(
    ("way", "on_interrupt"),
    [("run", "raise"), ("run", "return"), ("input order", "raise"), ("completion order", "return"), ("loop", "raise")],
)
def test_an_interrupt_before_the_first_step_of_a_list(on_interrupt: Any, way: str, ledger: Ledger) -> None:
    """Each step of a list has a cancelled outcome, though the interrupt came before any step was read."""
    journal = HookedJournal(InterruptAt("opened"))
    result = call_runner(way, Runner(LedgerExecutor(ledger), journal=journal, on_interrupt=on_interrupt), make_specs(5))
    assert result.task_ids == ["t0", "t1", "t2", "t3", "t4"]
    assert result.succeeded == []
    if on_interrupt == "raise":
        assert {record.status for record in result.run.records} == {"cancelled"}
        assert counts_in(result.error or BaseException()) == (0, 5, 5)


@pytest.mark.parametrize(
    ("number", "times", "way"),
    [
        (signal.SIGTERM, 1, "run"),
        (signal.SIGTERM, 1, "completion order"),
        (signal.SIGINT, 2, "input order"),
        (signal.SIGINT, 2, "pipeline"),
        (signal.SIGINT, 2, "loop"),
    ],
)
def test_other_interrupts_before_the_first_step(number: signal.Signals, times: int, way: str, ledger: Ledger) -> None:
    """A SIGTERM that the program handles like Ctrl-C, and Ctrl-C pressed twice, have the same effect as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        journal = HookedJournal(InterruptAt("opened", number, times))
        result = call_runner(way, Runner(LedgerExecutor(ledger), journal=journal), (spec for spec in make_specs(30)))
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert type(result.error) is FanoutInterrupted
    assert ledger.counts() == {}


# Item 5: what an interrupt says ---------------------------------------------------------------------------------------

# With three workers: when all three are held, four steps are done, and their reports have arrived.
HELD = ["held", "quick", "quick", "quick", "quick", "held", "held", "quick", "quick", "quick"]


@each_call(process=["run", "completion order", "loop"], foreign=["input order", "pipeline"])
def test_an_interrupted_call_keeps_what_was_done(backend: str, way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """Each step has one outcome, in order, whether it was done or not; what was done is journalled."""
    journal = MemoryJournal()
    on_interrupt = "return" if backend == "process" else "raise"
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal, on_interrupt=on_interrupt)
    with ctrl_c_when(marks.have_begun("t0", "t5", "t6")):
        result = call_runner(way, runner, scripted_specs(*HELD))
    assert in_order(result.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)
    assert in_order(marks.named("done")) == ["t1", "t2", "t3", "t4"], "none began later"
    if way != "pipeline":  # which makes specs only when there is room for them
        assert in_order(result.task_ids) == [f"t{number}" for number in range(10)]
    if way != "completion order":
        assert result.task_ids == in_order(result.task_ids)
    if on_interrupt == "return":
        assert result.error is None
        return
    assert type(result.error) is FanoutInterrupted
    total = len(result.task_ids)
    assert counts_in(result.error) == (4, total, total - 4)


@pytest.mark.parametrize(
    ("backend", "order", "kind"),
    [
        ("thread", "completion", "generator"),
        ("process", "input", "generator"),
        ("process", "completion", "list"),
        ("foreign", "input", "list"),
    ],
)
def test_what_a_stream_says_when_it_is_interrupted(
    kind: str, order: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """The message counts all steps: those yielded before, those done and not yielded yet, and those not done."""
    agents = [*["quick"] * 3, "held", *["quick"] * 5, *["held"] * 11]
    read: list[str] = []

    def reading() -> Iterator[AgentStepSpec]:
        for spec in scripted_specs(*agents):
            read.append(spec.task_id)
            yield spec

    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=4)
    with ctrl_c_when(marks.have_begun("t3", "t9", "t10", "t11")):
        result = call_runner(f"{order} order", runner, scripted_specs(*agents) if kind == "list" else reading())
    assert type(result.error) is FanoutInterrupted
    assert in_order(outcome.task_id for outcome in result.seen) == [
        f"t{number}" for number in range(9) if number < 3 or (order == "completion" and number > 3)
    ]
    total = 20 if kind == "list" else len(read)
    assert counts_in(result.error) == (8, total, total - 8)
    statuses = [record.status for record in result.run.records]
    assert (statuses.count("succeeded"), statuses.count("cancelled")) == (8 - len(result.seen), total - 8)
    assert len(statuses) == total - len(result.seen)
    assert str(pickle.loads(pickle.dumps(result.error))) == str(result.error)


@each_call(thread=["run", "pipeline", "loop"], process=["loop"], foreign=["run"])
def test_what_other_calls_say_when_they_are_interrupted(way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """The message of a call that is not a stream counts the steps in its run."""
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=4)
    with ctrl_c_when(marks.have_begun(*(f"t{number}" for number in range(16, 20)))):
        result = call_runner(way, runner, scripted_specs(*["quick"] * 16, *["held"] * 24))
    statuses = [record.status for record in result.run.records]
    assert counts_in(result.error or BaseException()) == (16, len(statuses), len(statuses) - 16)
    assert statuses == ["succeeded"] * 16 + ["cancelled"] * (len(statuses) - 16)
    assert way == "pipeline" or len(statuses) == 40


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_pipeline_keeps_what_was_done_of_an_item(make_runner: MakeRunner, marks: Marks) -> None:
    """A stage that was done is in the run, though its item had not gone through all stages."""

    def first(_: StepOutcome | None, item: int) -> AgentStepSpec:
        return AgentStepSpec(f"t{item}", "quick", "a step", "first")

    def second(_: StepOutcome | None, item: int) -> AgentStepSpec:
        return AgentStepSpec(f"t{10 + item}", "held", "a step", "second")

    journal = MemoryJournal()
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=2, journal=journal)
    with ctrl_c_when(marks.have_begun("t10", "t11")), pytest.raises(FanoutInterrupted) as caught:
        runner.pipeline(range(2), [first, second])
    statuses = {
        outcome.task_id: record.status
        for outcome, record in zip(caught.value.run, caught.value.run.records, strict=True)
    }
    assert statuses == {"t0": "succeeded", "t1": "succeeded", "t10": "cancelled", "t11": "cancelled"}
    assert journalled(journal) == ["t0", "t1"]


# Item 5: a step that fails in the second that it is given to stop -----------------------------------------------------


RETRIES: dict[str, tuple[Any, str, str]] = {
    "attempts left": (5, "told", "cancelled"),
    "no retries": (None, "told", "raised"),
    "one attempt": (1, "told", "raised"),
    "last attempt": (Retry(attempts=2, wait=0), "flaky", "raised"),
    "second of three": (Retry(attempts=3, wait=0), "flaky", "cancelled"),
    "not worth it": (Retry(attempts=5, retry_on=KeyError), "told", "raised"),
    "says failure": (Retry(attempts=5, on_failure=True), "refusing", "cancelled"),
    "failure is final": (Retry(attempts=5), "refusing", "failed"),
    "done": (5, "obedient", "succeeded"),
}


@pytest.mark.parametrize(
    ("backend", "case", "way"),
    [
        *[("thread", case, "run") for case in RETRIES],
        *[("thread", "attempts left", way) for way in WAYS if way != "run"],
        ("foreign", "attempts left", "run"),
        ("foreign", "last attempt", "input order"),
    ],
)
def test_a_step_that_fails_when_it_is_told_to_stop(case: str, way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """With attempts left the step is cancelled and not journalled; after its last attempt it has failed."""
    retry, agent, status = RETRIES[case]
    journal = MemoryJournal()
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=2, retry=retry, journal=journal)
    begun = {"flaky": 2}.get(agent, 1)
    with ctrl_c_when(lambda: marks.named("begun").count("t1") == begun and {"t0", "t2"} <= set(marks.named("done"))):
        result = call_runner(way, runner, scripted_specs("quick", agent, "quick"))
    assert type(result.error) is FanoutInterrupted
    statuses = {outcome.task_id: record.status for outcome, record in zip(result.run, result.run.records, strict=True)}
    assert statuses["t1"] == status
    kept = {record.task_id: record.status for record in journal.records("default")}
    assert kept.get("t1", "cancelled") == status
    done, total, cancelled = counts_in(result.error)
    assert (done, cancelled) == (total - (status == "cancelled"), int(status == "cancelled"))


# Item 1: an interrupt that a consumer throws into a stream ------------------------------------------------------------


def _rest_after_throw(stream: Any) -> CallResult:
    """Throw an interrupt into a stream and take all outcomes that are left."""
    result = CallResult()
    try:
        result.seen.append(stream.throw(KeyboardInterrupt()))
        result.seen.extend(stream)
    except StopIteration:
        pass
    except KeyboardInterrupt as error:
        result.error = error
    return result


THROWN: dict[str, tuple[str, list[str]]] = {
    # The first is yielded when five others are done and their reports are read; three are held.
    "unread": ("input", ["after t6 t7 t8", *["quick"] * 5, *["held"] * 8]),
    # The first is yielded, and the others are done while nobody asks for them.
    "done since": ("input", ["quick"] * 14),
    "in the order of completion": ("completion", ["quick"] * 14),
}


@pytest.mark.parametrize(
    ("backend", "case", "on_interrupt", "has_journal"),
    [
        *[("thread", case, on_interrupt, True) for case in THROWN for on_interrupt in ("raise", "return")],
        ("process", "unread", "raise", False),
        ("process", "done since", "return", True),
        ("process", "in the order of completion", "raise", True),
        ("foreign", "unread", "return", True),
        ("foreign", "in the order of completion", "raise", False),
    ],
)
def test_an_interrupt_thrown_into_a_stream(
    case: str, has_journal: bool, on_interrupt: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """No outcome of a step that was done is lost: it is in the error's run or is yielded next, exactly once."""
    order: Any
    order, agents = THROWN[case]
    journal = MemoryJournal()
    options: dict[str, Any] = {"journal": journal} if has_journal else {}
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=4, on_interrupt=on_interrupt, **options)
    stream: Any = runner.stream(scripted_specs(*agents), order=order)
    first = next(stream)
    if "held" in agents:
        assert first.task_id == "t0"
        assert eventually(marks.have_begun("t6", "t7", "t8"))
    else:
        assert eventually(marks.at_rest())
    done = in_order(marks.named("done"))
    result = _rest_after_throw(stream)
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    if on_interrupt == "raise":
        assert result.seen == [], "what throw() returns would be lost"
        assert counts_in(result.error or BaseException()) == (len(done), 14, 14 - len(done))
    assert in_order([first.task_id, *result.succeeded]) == done
    assert in_order([first.task_id, *result.task_ids]) == [f"t{number}" for number in range(14)]
    if order == "input":
        assert result.task_ids == in_order(result.task_ids)
    if has_journal:
        assert journalled(journal) == done
    assert list(stream) == []


@pytest.mark.parametrize(
    ("backend", "order"), [("thread", "input"), ("thread", "completion"), ("process", "completion")]
)
def test_an_interrupt_thrown_in_again_and_again(order: Any, make_runner: MakeRunner, marks: Marks) -> None:
    """Another interrupt, thrown in while the rest is being yielded, loses no outcome."""
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=4, on_interrupt="return")
    stream: Any = runner.stream(scripted_specs(*["quick"] * 8), order=order)
    seen = [next(stream)]
    assert eventually(marks.at_rest())
    done = in_order(marks.named("done"))
    while True:
        try:
            seen.append(stream.throw(KeyboardInterrupt()))
        except StopIteration:
            break
    assert in_order(outcome.task_id for outcome in seen) == [f"t{number}" for number in range(8)]
    assert in_order(outcome.task_id for outcome in seen if outcome.success) == done


# Item 3: a stream that is left ----------------------------------------------------------------------------------------


def _break(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    for _ in runner.stream(specs, order=order):
        be_busy()
        break


def _close(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    stream = runner.stream(specs, order=order)
    next(stream)
    be_busy()
    stream.close()


def _raise(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    def consume() -> None:
        for _ in runner.stream(specs, order=order):
            be_busy()
            raise LookupError("the consumer fails")

    with pytest.raises(LookupError):
        consume()
    gc.collect()


def _throw(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    stream = runner.stream(specs, order=order)
    next(stream)
    be_busy()
    with pytest.raises(LookupError):
        stream.throw(LookupError("the consumer fails"))


def _interrupt(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    def consume() -> None:
        for _ in runner.stream(specs, order=order):
            be_busy()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()


def _del(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    stream = runner.stream(specs, order=order)
    next(stream)
    be_busy()
    del stream


def _collect(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    stream = runner.stream(specs, order=order)
    next(stream)
    be_busy()
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()


def _leave_with(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    with runner:
        stream = runner.stream(specs, order=order)
        next(stream)
        be_busy()


def _interrupt_with(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    def consume() -> None:
        with runner:
            stream = runner.stream(specs, order=order)
            next(stream)
            be_busy()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()


def _close_elsewhere(runner: Runner, specs: list[AgentStepSpec], order: Any, be_busy: Callable[[], None]) -> None:
    stream = runner.stream(specs, order=order)
    next(stream)
    be_busy()
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join(BOUND_S)


LEAVING: dict[str, Leave] = {
    "break": _break,
    "close": _close,
    "exception": _raise,
    "exception thrown in": _throw,
    "interrupt": _interrupt,
    "del": _del,
    "garbage collection": _collect,
    "end of with": _leave_with,
    "interrupt in with": _interrupt_with,
    "close in another thread": _close_elsewhere,
}
ON_OTHER_BACKENDS = {
    "process": ["break", "exception thrown in", "interrupt", "end of with", "close in another thread"],
    "foreign": ["close", "exception", "del", "interrupt in with"],
}


@pytest.mark.parametrize(
    ("order", "store", "backend", "leaving"),
    [
        (*(("completion", "sqlite") if number % 2 else ("input", "memory")), backend, leaving)
        for backend, some in {"thread": list(LEAVING), **ON_OTHER_BACKENDS}.items()
        for number, leaving in enumerate(some)
    ],
)
def test_what_has_finished_is_journalled_when_a_stream_is_left(
    order: str, store: str, leaving: str, backend: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """The journal has each step that ended while the consumer was busy with the first outcome, however it leaves."""
    journal = MemoryJournal() if store == "memory" else SqliteJournal(marks.folder / "run.db")
    bound = 3 if backend == "process" else 16
    specs = scripted_specs(*["quick"] * 16 * bound)
    finished: list[str] = []

    def be_busy() -> None:
        assert eventually(marks.at_rest())
        finished.extend(in_order(marks.named("done")))

    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=bound, journal=journal)
    LEAVING[leaving](runner, specs, order, be_busy)
    assert finished
    assert journalled(journal) == finished
    assert in_order(marks.named("begun")) == finished, "no step begins once the stream is left"
    outcomes = {record.task_id: record.outcome.output for record in journal.records("default")}
    assert outcomes == {task_id: task_id[1:] for task_id in finished}
    again = make_runner(ScriptedExecutor(marks.folder), max_concurrency=bound, journal=journal).run(specs)
    assert len(again.succeeded) == 16 * bound, "the workflow is free again"
    assert sorted(marks.named("begun")) == sorted(f"t{number}" for number in range(16 * bound)), "each ran once"


@pytest.mark.parametrize("leaving", ["close", "break"])
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_an_interrupt_while_a_stream_is_left_is_the_programs(on_interrupt: Any, leaving: str, marks: Marks) -> None:
    """Ctrl-C while what had finished is being written reaches the program when that is done, unless it is to return."""

    def hook(moment: str) -> None:
        if moment == "writing" and is_leaving.is_set():
            is_leaving.clear()
            signal.raise_signal(signal.SIGINT)

    is_leaving, journal = threading.Event(), HookedJournal(hook)
    executor = ScriptedExecutor(marks.folder)

    def leave() -> None:
        runner = Runner(executor, journal=journal, on_interrupt=on_interrupt, max_concurrency=4)
        stream = runner.stream(scripted_specs(*["quick"] * 200))
        for _ in stream:
            assert eventually(marks.at_rest())
            is_leaving.set()
            if leaving == "close":
                stream.close()
            break
        del stream
        assert not is_leaving.is_set(), "nothing was left to be written"
        if on_interrupt == "raise":
            eventually(lambda: False)  # until the interrupt, which comes a moment later

    if on_interrupt == "return":
        leave()
    else:
        with pytest.raises(KeyboardInterrupt):
            leave()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_done_behind_a_slow_step_is_journalled(make_runner: MakeRunner, marks: Marks) -> None:
    """Outcomes that wait for an earlier one, to be yielded in order, are in the journal when the stream is left."""
    journal = MemoryJournal()
    agents = ["after t6 t7 t8", *["quick"] * 5, *["held"] * 8]
    stream = make_runner(ScriptedExecutor(marks.folder), max_concurrency=4, journal=journal).stream(
        scripted_specs(*agents)
    )
    assert next(stream).task_id == "t0"
    stream.close()
    assert journalled(journal) == ["t0", "t1", "t2", "t3", "t4", "t5"]


@pytest.mark.parametrize(
    ("backend", "leaving", "order"),
    [
        ("thread", "break", "input"),
        ("thread", "exception", "completion"),
        ("thread", "interrupt", "input"),
        ("process", "break", "completion"),
        ("process", "end of with", "input"),
        ("foreign", "exception", "input"),
        ("foreign", "end of with", "completion"),
    ],
)
def test_what_still_runs_is_stopped_when_a_stream_is_left(
    leaving: str, order: str, backend: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """Worker processes are killed, steps on threads are told to stop; none of them is journalled, then or later."""
    journal = MemoryJournal()
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, retry=5, journal=journal)
    busy_until = 0.0

    def be_busy() -> None:
        nonlocal busy_until
        assert eventually(marks.have_begun("t0", "t1", "t2"))
        busy_until = time.monotonic()

    LEAVING[leaving](runner, scripted_specs("quick", "told", "held", "held", "held", "held"), order, be_busy)
    assert time.monotonic() - busy_until < EXIT_BOUND_S
    pids = [int(path) for path in marks.named("process")]
    if backend == "process":
        assert eventually(lambda: not any(map(is_alive, pids)))
    else:
        assert eventually(lambda: marks.named("told") == ["t1"])
    assert [record.task_id for record in journal.records("default")] == ["t0"]
    marks.release()
    if backend != "process":
        assert eventually(lambda: set(marks.named("done")) == set(marks.named("begun")) - {"t1"})
    assert [record.task_id for record in journal.records("default")] == ["t0"]


# Item 4: while workers are shut down, and while the journal closes ----------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "on_interrupt", "has_journal", "way"),
    in_each_way(("thread", "raise", True), ("process", "return", True), ("foreign", "return", False)),
)
def test_an_interrupt_during_teardown_loses_nothing(
    has_journal: bool, on_interrupt: str, way: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """All steps are done, so the caller gets all outcomes: returned, yielded, or in the error's run."""
    journal = MemoryJournal()
    options: dict[str, Any] = {"journal": journal} if has_journal else {}
    executor = ScriptedExecutor(marks.folder, is_slow_to_end=True)
    runner = make_runner(executor, max_concurrency=1, on_interrupt=on_interrupt, **options)
    with ctrl_c_when(lambda: bool(marks.named("ending")), marks.release):
        result = call_runner(way, runner, scripted_specs(*["quick"] * 3))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert result.succeeded == result.task_ids == ["t0", "t1", "t2"]
    if has_journal:
        assert journalled(journal) == ["t0", "t1", "t2"]
    if on_interrupt == "raise":
        assert counts_in(result.error or BaseException()) == (3, 3, 0)


@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
@pytest.mark.parametrize("backend", ["process"])  # on threads, nothing is kept warm
def test_an_interrupt_at_the_end_of_with_leaves_no_worker(
    on_interrupt: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """The calls in the block have returned; the warm workers are gone, and the signal handler is the earlier one."""
    runner = make_runner(
        ScriptedExecutor(marks.folder, is_slow_to_end=True), max_concurrency=1, on_interrupt=on_interrupt
    )
    results: list[CallResult] = []
    try:
        with ctrl_c_when(lambda: bool(marks.named("ending"))), runner:
            results.extend(call_runner(way, runner, scripted_specs("quick")) for way in ("run", "input order"))
    except KeyboardInterrupt:
        pass  # there is no result that could be returned instead, so either will do
    assert [result.succeeded for result in results] == [["t0"], ["t0"]]
    assert [result.error for result in results] == [None, None]
    assert not any(is_alive(int(pid)) for pid in marks.named("process"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("backend", "moment", "on_interrupt", "way"),
    [
        *in_each_way(("thread", "closing", "raise"), ("thread", "closed", "return")),
        ("process", "closing", "return", "input order"),
        ("foreign", "closed", "raise", "loop"),
    ],
)
def test_an_interrupt_while_the_journal_closes_loses_nothing(
    moment: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """All steps are done, so the caller gets all outcomes, as during teardown."""
    journal = HookedJournal(InterruptAt(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=2, journal=journal, on_interrupt=on_interrupt)
    result = call_runner(way, runner, make_specs(4))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert in_order(result.succeeded) == in_order(result.task_ids) == journalled(journal) == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("backend", "moment", "on_interrupt", "way"),
    [
        *in_each_way(("thread", "writing", "raise"), ("thread", "syncing", "return")),
        ("thread", "written", "raise", "run"),
        ("thread", "written", "return", "completion order"),
        ("process", "written", "raise", "run"),
        ("foreign", "writing", "return", "pipeline"),
    ],
)
def test_an_interrupt_while_the_journal_is_written(
    moment: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """The steps that are journalled as succeeded are those that the caller gets as succeeded."""
    journal = HookedJournal(InterruptAt(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=2, journal=journal, on_interrupt=on_interrupt)
    result = call_runner(way, runner, make_specs(400))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert in_order(result.succeeded) == journalled(journal)
    assert len(set(result.task_ids)) == len(result.task_ids)
    assert 0 < len(result.succeeded) <= len(ledger.counts()) < 400
    assert set(ledger.counts().values()) == {1}


# Inputs and journals that fail ----------------------------------------------------------------------------------------


@each_call(process=["completion order"], foreign=["loop"])
def test_an_input_that_raises_keeps_what_was_started(way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """Steps that were started are finished, journalled and given to the caller; then the input's error is raised."""
    journal = MemoryJournal()

    def specs() -> Iterator[AgentStepSpec]:
        yield from scripted_specs("quick", "after t3", "quick", "quick", "quick")
        raise LookupError("the input fails")

    result = call_runner(way, make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal), specs())
    assert type(result.error) is InputError
    assert isinstance(result.error.__cause__, LookupError)
    assert in_order(result.task_ids) == in_order(result.succeeded) == ["t0", "t1", "t2", "t3", "t4"]
    assert journalled(journal) == ["t0", "t1", "t2", "t3", "t4"]


@each_call(thread=["run", "pipeline"], process=["loop"], foreign=["completion order"])
def test_an_interrupt_after_the_input_has_raised(way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """Ctrl-C while the started steps are being finished stops them; the caller gets the steps that were done."""
    journal = MemoryJournal()

    def specs() -> Iterator[AgentStepSpec]:
        yield from scripted_specs("quick", "held", "quick")
        assert way in ("run", "loop") or eventually(marks.have_begun("t0", "t1"))
        raise LookupError("the input fails")

    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=2, journal=journal)
    with ctrl_c_when(lambda: marks.have_begun("t1", "t2")() and marks.named("done") != []):
        result = call_runner(way, runner, specs())
    assert type(result.error) in (FanoutInterrupted, InputError)
    assert set(result.succeeded) == set(journalled(journal))
    assert "t0" in result.succeeded
    assert "t1" not in result.succeeded


class FailAt:
    """A hook that raises the `at`th time that the journal is used in a given way, and each time after it."""

    def __init__(self, moment: str, at: int) -> None:
        self.moment, self.at = moment, at
        self.uses = 0

    def __call__(self, moment: str) -> None:
        if moment == self.moment:
            self.uses += 1
            if self.uses >= self.at:
                raise JournalError("the disk is full")


@pytest.mark.parametrize(
    ("backend", "moment", "way"),
    [
        *in_each_way(("thread", "writing")),
        ("thread", "syncing", "run"),
        ("thread", "syncing", "input order"),
        ("process", "writing", "run"),
        ("foreign", "syncing", "completion order"),
    ],
)
def test_a_journal_that_fails_loses_no_outcome(moment: str, way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """Started steps are finished, and the caller gets the outcomes of all of them; no other step begins."""
    journal = HookedJournal(FailAt(moment, at=3 if moment == "writing" else 1))
    result = call_runner(
        way,
        make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal),
        scripted_specs(*["quick"] * 400),
    )
    assert type(result.error) is JournalError
    assert "the disk is full" in str(result.error)
    assert in_order(result.succeeded) == in_order(marks.named("done")) == in_order(marks.named("begun"))
    assert len(set(result.task_ids)) == len(result.task_ids)
    assert len(result.succeeded) < 400
    assert set(journalled(journal)) <= set(result.succeeded)


@each_call(thread=["run", "completion order"], process=["pipeline"], foreign=["loop"])
def test_a_journal_that_fails_when_the_call_is_interrupted(way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """The caller gets the outcomes of all steps that were done, though the journal cannot keep them."""
    journal = HookedJournal(lambda moment: failing(moment))
    is_full = False

    def failing(moment: str) -> None:
        if moment == "writing" and is_full:
            raise JournalError("the disk is full")

    def fill() -> bool:
        nonlocal is_full
        is_full = marks.have_begun("t0", "t5", "t6")()
        return is_full

    agents = ["obedient", *HELD[1:]]
    runner = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal)
    with ctrl_c_when(fill):
        result = call_runner(way, runner, scripted_specs(*agents))
    assert type(result.error) in (FanoutInterrupted, JournalError)
    assert in_order(result.succeeded) == in_order(marks.named("done"))
    assert {"t1", "t2", "t3", "t4"} <= set(result.succeeded)


@pytest.mark.parametrize(("backend", "order"), [("thread", "completion"), ("process", "input"), ("foreign", "input")])
def test_a_journal_that_fails_when_a_stream_is_left(order: Any, make_runner: MakeRunner, marks: Marks) -> None:
    """The stream ends, with or without an error, and the workflow is free again."""
    hook = FailAt("writing", at=10_000)
    journal = HookedJournal(hook)
    stream = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal).stream(
        scripted_specs(*["quick"] * 9), order=order
    )
    next(stream)
    assert eventually(marks.at_rest())
    hook.at = 0
    try:
        stream.close()
    except JournalError as error:
        assert "the disk is full" in str(error)  # noqa: PT017 - it need not raise
    hook.at = 10_000
    again = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal).run(
        scripted_specs(*["quick"] * 9)
    )
    assert len(again.succeeded) == 9


# A call inside a step -------------------------------------------------------------------------------------------------


@each_call(thread=["pipeline"], process=["completion order"], foreign=["loop"])
def test_a_call_in_a_step_that_is_interrupted_keeps_what_was_done(
    way: str, make_runner: MakeRunner, marks: Marks
) -> None:
    """An interrupt of the outer call interrupts the inner one, which keeps and has journalled what was done."""
    journal = MemoryJournal()
    inner_results: list[CallResult] = []
    is_over = threading.Event()

    def call(spec: AgentStepSpec) -> str:
        inner_results.append(
            call_runner(
                way,
                make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal),
                scripted_specs(*HELD),
            )
        )
        is_over.set()
        return spec.prompt

    with ctrl_c_when(marks.have_begun("t0", "t5", "t6")), pytest.raises(FanoutInterrupted):
        Runner(FunctionExecutor({"outer": call}), max_concurrency=1).run(make_specs(1, agent="outer"))
    assert is_over.wait(EXIT_BOUND_S)
    (inner,) = inner_results
    assert type(inner.error) is FanoutInterrupted
    assert in_order(inner.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)


@each_call(thread=["completion order"])
def test_a_call_in_a_step_that_times_out_keeps_what_was_done(way: str, make_runner: MakeRunner, marks: Marks) -> None:
    """When the outer step exceeds its timeout, the inner call ends as if it was interrupted."""
    journal = MemoryJournal()
    inner_results: list[CallResult] = []
    is_over = threading.Event()

    def call(spec: AgentStepSpec) -> str:
        inner_results.append(
            call_runner(
                way,
                make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal),
                scripted_specs(*HELD),
            )
        )
        is_over.set()
        return spec.prompt

    outer = Runner(FunctionExecutor({"outer": call}), max_concurrency=1, timeout=2).run(make_specs(1, agent="outer"))
    assert outer.records[0].status == "timed_out"
    assert is_over.wait(EXIT_BOUND_S)
    (inner,) = inner_results
    assert type(inner.error) is FanoutInterrupted
    assert in_order(inner.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_stream_in_a_step_that_is_interrupted_while_its_consumer_is_busy(
    make_runner: MakeRunner, marks: Marks
) -> None:
    """Steps that were done by then are journalled, though the consumer never asks for their outcomes."""
    journal = MemoryJournal()
    finished: list[str] = []
    is_over = threading.Event()

    def consume(spec: AgentStepSpec) -> str:
        stream = make_runner(ScriptedExecutor(marks.folder), max_concurrency=3, journal=journal).stream(
            scripted_specs(*["quick"] * 99)
        )
        next(stream)
        assert eventually(marks.at_rest())
        finished.extend(in_order(marks.named("done")))
        marks.ledger.note("busy:consumer")
        current_step().cancelled.wait(BOUND_S)
        stream.close()
        is_over.set()
        return spec.prompt

    with ctrl_c_when(lambda: marks.named("busy") != []), pytest.raises(FanoutInterrupted):
        Runner(FunctionExecutor({"outer": consume}), max_concurrency=1).run(make_specs(1, agent="outer"))
    assert is_over.wait(EXIT_BOUND_S)
    assert journalled(journal) == finished
    assert len(finished) >= 3
