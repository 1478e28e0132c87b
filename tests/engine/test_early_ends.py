"""Every way in which a call of a runner ends early: what had finished is kept, what had not is cut off."""

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
    ORDERS,
    WAYS,
    Acting,
    Ended,
    HookedJournal,
    Stage,
    acting,
    ended,
    in_order,
    pressed_when,
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
"""Far more than any early end takes; less than a step that is held waits."""

each_way = pytest.mark.parametrize("way", WAYS)
each_order = pytest.mark.parametrize("order", ORDERS)


def each_way_on_threads(**elsewhere: Sequence[str]) -> pytest.MarkDecorator:
    """Every way to call a runner on threads; on other backends, which cost more, those that are given for each."""
    pairs = [("thread", way) for way in WAYS]
    return pytest.mark.parametrize(
        ("backend", "way"), pairs + [(backend, way) for backend, ways in elsewhere.items() for way in ways]
    )


each_reaction = pytest.mark.parametrize("on_interrupt", ["raise", "return"])


@pytest.fixture(params=["thread", "process", "foreign"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_runner(backend: str) -> Iterator[MakeRunner]:
    """Makes runners over the backend of the test; a foreign pool is as large as any bound here."""
    with ThreadPoolExecutor(16) as pool:
        where = pool if backend == "foreign" else backend
        yield lambda executor, **options: Runner(executor, backend=where, **options)  # type: ignore[arg-type]  # a name


@pytest.fixture
def stage(make_runner: MakeRunner, tmp_path: Path) -> Iterator[Stage]:
    """Where steps leave marks; those that are held are released in the end, before a pool waits for its threads."""
    stage = Stage(tmp_path)
    yield stage
    stage.release()


def journalled(journal: Journal) -> list[str]:
    """Return which steps are journalled as done, in the order of the input."""
    return [record.task_id for record in journal.records("default") if record.status == "succeeded"]


def counts_in(interrupted: BaseException) -> tuple[int, int, int]:
    """Return how many steps the message says were done, of how many, and how many are cancelled."""
    numbers = re.search(r"(\d+) of (\d+) steps were done, (\d+) are cancelled", str(interrupted))
    assert numbers is not None, str(interrupted)
    done, total, cancelled = map(int, numbers.groups())
    return done, total, cancelled


# While the journal opens ----------------------------------------------------------------------------------------------


class Interrupting:
    """A hook that interrupts the main thread at the first of such uses of a journal."""

    def __init__(self, moment: str, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.moment, self.number, self.times = moment, number, times

    def __call__(self, moment: str) -> None:
        while moment == self.moment and self.times:
            self.times -= 1
            signal.raise_signal(self.number)


@each_way_on_threads(process=WAYS, foreign=WAYS)
@each_reaction
@pytest.mark.parametrize(
    ("moment", "kind"), [("opening", "generator"), ("opened", "list"), ("opened", "generator"), ("asked", "generator")]
)
def test_an_interrupt_before_the_first_step(
    moment: str, kind: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """Ctrl-C while the journal opens, or is asked for the first time: no step runs, whatever the call."""
    journal = HookedJournal(Interrupting(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=1, journal=journal, on_interrupt=on_interrupt)
    specs = make_specs(30)
    result = ended(way, runner, specs if kind == "list" else (spec for spec in specs))
    assert ledger.counts() == {}
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert result.succeeded == []
    assert journalled(journal) == []
    again = ended(way, make_runner(LedgerExecutor(ledger), journal=journal), make_specs(2))
    assert again.error is None, "the workflow is free again"


@pytest.mark.parametrize("way", ["run", "input order", "completion order", "loop"])
@each_reaction
def test_no_step_of_a_list_is_missing(on_interrupt: Any, way: str, ledger: Ledger) -> None:
    """Of a list, each step has its outcome, though the interrupt came before any was looked at."""
    journal = HookedJournal(Interrupting("opened"))
    result = ended(way, Runner(LedgerExecutor(ledger), journal=journal, on_interrupt=on_interrupt), make_specs(5))
    assert result.task_ids == ["t0", "t1", "t2", "t3", "t4"]
    assert result.succeeded == []
    if on_interrupt == "raise":
        assert {record.status for record in result.run.records} == {"cancelled"}
        assert counts_in(result.error or BaseException()) == (0, 5, 5)


@each_way
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)], ids=["SIGTERM", "twice"])
def test_other_interrupts_before_the_first_step(
    number: signal.Signals, times: int, way: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM that the program takes for Ctrl-C, and Ctrl-C that is pressed twice, are no different."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        journal = HookedJournal(Interrupting("opened", number, times))
        result = ended(way, Runner(LedgerExecutor(ledger), journal=journal), (spec for spec in make_specs(30)))
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert type(result.error) is FanoutInterrupted
    assert ledger.counts() == {}


# While steps run ------------------------------------------------------------------------------------------------------

# Of the first ten, four are done when all three workers are held; what they sent has arrived, as others were begun.
HELD = ["held", "quick", "quick", "quick", "quick", "held", "held", "quick", "quick", "quick"]


@each_way_on_threads(process=["run", "completion order", "loop"], foreign=["input order", "pipeline"])
@each_reaction
def test_an_interrupted_call_keeps_what_was_done(
    on_interrupt: str, way: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """Each step has one outcome, in order, whether it was done or not; what was done is journalled."""
    journal = MemoryJournal()
    runner = make_runner(Acting(stage.folder), max_concurrency=3, journal=journal, on_interrupt=on_interrupt)
    with pressed_when(stage.have_begun("t0", "t5", "t6")):
        result = ended(way, runner, acting(*HELD))
    assert in_order(result.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)
    assert in_order(stage.marked("done")) == ["t1", "t2", "t3", "t4"], "none began later"
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


@each_order
@pytest.mark.parametrize("kind", ["list", "generator"])
def test_what_a_stream_says_when_it_is_interrupted(
    kind: str, order: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """The message counts all steps: those that were yielded, those that were done, and those that were not."""
    agents = [*["quick"] * 3, "held", *["quick"] * 5, *["held"] * 11]
    read: list[str] = []

    def reading() -> Iterator[AgentStepSpec]:
        for spec in acting(*agents):
            read.append(spec.task_id)
            yield spec

    runner = make_runner(Acting(stage.folder), max_concurrency=4)
    with pressed_when(stage.have_begun("t3", "t9", "t10", "t11")):
        result = ended(f"{order} order", runner, acting(*agents) if kind == "list" else reading())
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


@pytest.mark.parametrize("way", ["run", "pipeline", "loop"])
def test_what_other_calls_say_when_they_are_interrupted(way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """The message of what yields nothing counts what is in its run."""
    runner = make_runner(Acting(stage.folder), max_concurrency=4)
    with pressed_when(stage.have_begun(*(f"t{number}" for number in range(16, 20)))):
        result = ended(way, runner, acting(*["quick"] * 16, *["held"] * 24))
    statuses = [record.status for record in result.run.records]
    assert counts_in(result.error or BaseException()) == (16, len(statuses), len(statuses) - 16)
    assert statuses == ["succeeded"] * 16 + ["cancelled"] * (len(statuses) - 16)
    assert way == "pipeline" or len(statuses) == 40


def test_a_pipeline_keeps_what_was_done_of_an_item(make_runner: MakeRunner, stage: Stage) -> None:
    """A stage that was done is in the run, though its item was not through all stages."""

    def first(_: StepOutcome | None, item: int) -> AgentStepSpec:
        return AgentStepSpec(f"t{item}", "quick", "a step", "first")

    def second(_: StepOutcome | None, item: int) -> AgentStepSpec:
        return AgentStepSpec(f"t{10 + item}", "held", "a step", "second")

    journal = MemoryJournal()
    runner = make_runner(Acting(stage.folder), max_concurrency=2, journal=journal)
    with pressed_when(stage.have_begun("t10", "t11")), pytest.raises(FanoutInterrupted) as caught:
        runner.pipeline(range(2), [first, second])
    statuses = {
        outcome.task_id: record.status
        for outcome, record in zip(caught.value.run, caught.value.run.records, strict=True)
    }
    assert statuses == {"t0": "succeeded", "t1": "succeeded", "t10": "cancelled", "t11": "cancelled"}
    assert journalled(journal) == ["t0", "t1"]


# A step that fails in the second that it is given to stop -------------------------------------------------------------


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


@each_way_on_threads(foreign=["run"])
@pytest.mark.parametrize("case", RETRIES)
def test_a_step_that_fails_when_it_is_told_to_stop(case: str, way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """With attempts left it is cancelled, and not journalled: it has not had its chance; without, it has failed."""
    retry, agent, status = RETRIES[case]
    journal = MemoryJournal()
    runner = make_runner(Acting(stage.folder), max_concurrency=2, retry=retry, journal=journal)
    begun = {"flaky": 2}.get(agent, 1)
    with pressed_when(lambda: stage.marked("begun").count("t1") == begun and {"t0", "t2"} <= set(stage.marked("done"))):
        result = ended(way, runner, acting("quick", agent, "quick"))
    assert type(result.error) is FanoutInterrupted
    statuses = {outcome.task_id: record.status for outcome, record in zip(result.run, result.run.records, strict=True)}
    assert statuses["t1"] == status
    kept = {record.task_id: record.status for record in journal.records("default")}
    assert kept.get("t1", "cancelled") == status
    done, total, cancelled = counts_in(result.error)
    assert (done, cancelled) == (total - (status == "cancelled"), int(status == "cancelled"))


# An interrupt that a consumer throws into a stream --------------------------------------------------------------------


def _rest_after_throw(stream: Any) -> Ended:
    """Throw an interrupt into a stream and take all that is left."""
    result = Ended()
    try:
        result.seen.append(stream.throw(KeyboardInterrupt()))
        result.seen.extend(stream)
    except StopIteration:
        pass
    except KeyboardInterrupt as error:
        result.error = error
    return result


THROWN: dict[str, tuple[str, list[str]]] = {
    # The first is yielded when five others are done, and known to the stream; three are held.
    "unread": ("input", ["after t6 t7 t8", *["quick"] * 5, *["held"] * 8]),
    # The first is yielded, and then the others are done, which nobody has asked for yet.
    "ended since": ("input", ["quick"] * 14),
    "in the order of completion": ("completion", ["quick"] * 14),
}


@each_reaction
@pytest.mark.parametrize("has_journal", [False, True], ids=["", "journal"])
@pytest.mark.parametrize("case", THROWN)
def test_an_interrupt_thrown_into_a_stream(
    case: str, has_journal: bool, on_interrupt: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """Nothing that was done is lost: it is in the error's run, or is yielded next, just once."""
    order: Any
    order, agents = THROWN[case]
    journal = MemoryJournal()
    options: dict[str, Any] = {"journal": journal} if has_journal else {}
    runner = make_runner(Acting(stage.folder), max_concurrency=4, on_interrupt=on_interrupt, **options)
    stream: Any = runner.stream(acting(*agents), order=order)
    first = next(stream)
    if "held" in agents:
        assert first.task_id == "t0"
        assert eventually(stage.have_begun("t6", "t7", "t8"))
    else:
        assert eventually(stage.at_rest())
    done = in_order(stage.marked("done"))
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


@each_order
def test_an_interrupt_thrown_in_again_and_again(order: Any, make_runner: MakeRunner, stage: Stage) -> None:
    """While what is left is being yielded, one more interrupt loses none of it."""
    runner = make_runner(Acting(stage.folder), max_concurrency=4, on_interrupt="return")
    stream: Any = runner.stream(acting(*["quick"] * 8), order=order)
    seen = [next(stream)]
    assert eventually(stage.at_rest())
    done = in_order(stage.marked("done"))
    while True:
        try:
            seen.append(stream.throw(KeyboardInterrupt()))
        except StopIteration:
            break
    assert in_order(outcome.task_id for outcome in seen) == [f"t{number}" for number in range(8)]
    assert in_order(outcome.task_id for outcome in seen if outcome.success) == done


# A stream that is left ------------------------------------------------------------------------------------------------


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
each_leaving = pytest.mark.parametrize(
    ("backend", "leaving"),
    [("thread", leaving) for leaving in LEAVING]
    + [(backend, leaving) for backend, some in ON_OTHER_BACKENDS.items() for leaving in some],
)


@each_leaving
@pytest.mark.parametrize(("order", "store"), [("input", "memory"), ("completion", "sqlite")])
def test_what_has_finished_is_journalled_when_a_stream_is_left(
    order: str, store: str, leaving: str, backend: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """Steps that ended while the consumer was busy with the first outcome are in the journal, however it leaves."""
    journal = MemoryJournal() if store == "memory" else SqliteJournal(stage.folder / "run.db")
    bound = 3 if backend == "process" else 16
    finished: list[str] = []

    def be_busy() -> None:
        assert eventually(stage.at_rest())
        finished.extend(in_order(stage.marked("done")))

    runner = make_runner(Acting(stage.folder), max_concurrency=bound, journal=journal)
    LEAVING[leaving](runner, acting(*["quick"] * 16 * bound), order, be_busy)
    assert finished
    assert journalled(journal) == finished
    assert in_order(stage.marked("begun")) == finished, "no step begins once the stream is left"
    outcomes = {record.task_id: record.outcome.output for record in journal.records("default")}
    assert outcomes == {task_id: task_id[1:] for task_id in finished}
    again = make_runner(Acting(stage.folder), max_concurrency=bound, journal=journal).run(
        acting(*["quick"] * 16 * bound)
    )
    assert len(again.succeeded) == 16 * bound, "the workflow is free again"
    assert sorted(stage.marked("begun")) == sorted(f"t{number}" for number in range(16 * bound)), "each ran once"


@pytest.mark.parametrize("leaving", ["close", "break"])
@each_reaction
def test_an_interrupt_while_a_stream_is_left_is_the_programs(on_interrupt: Any, leaving: str) -> None:
    """Ctrl-C while what had finished is being written reaches the program when that is done, unless it is to return."""

    def hook(moment: str) -> None:
        if moment == "writing" and is_leaving.is_set():
            is_leaving.clear()
            signal.raise_signal(signal.SIGINT)

    is_leaving, journal = threading.Event(), HookedJournal(hook)
    executor = FunctionExecutor({"tester": lambda spec: spec.prompt})

    def leave() -> None:
        stream = Runner(executor, journal=journal, on_interrupt=on_interrupt).stream(make_specs(2000))
        for _ in stream:
            is_leaving.set()
            if leaving == "close":
                stream.close()
            break
        del stream
        assert not is_leaving.is_set(), "nothing was left to be written"
        if on_interrupt == "raise":
            threading.Event().wait(BOUND_S)  # for the interrupt, which comes a moment later

    if on_interrupt == "return":
        leave()
    else:
        with pytest.raises(KeyboardInterrupt):
            leave()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_done_behind_a_slow_step_is_journalled(make_runner: MakeRunner, stage: Stage) -> None:
    """Outcomes that wait for the one that is due are in the journal when the stream is left."""
    journal = MemoryJournal()
    agents = ["after t6 t7 t8", *["quick"] * 5, *["held"] * 8]
    stream = make_runner(Acting(stage.folder), max_concurrency=4, journal=journal).stream(acting(*agents))
    assert next(stream).task_id == "t0"
    stream.close()
    assert journalled(journal) == ["t0", "t1", "t2", "t3", "t4", "t5"]


@pytest.mark.parametrize(
    ("leaving", "order"),
    [("break", "input"), ("exception", "completion"), ("interrupt", "input"), ("end of with", "completion")],
)
def test_what_still_runs_is_cut_off_when_a_stream_is_left(
    leaving: str, order: str, backend: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """Worker processes are killed, steps on threads are told to stop; neither is journalled as done, also later."""
    journal = MemoryJournal()
    runner = make_runner(Acting(stage.folder), max_concurrency=3, retry=5, journal=journal)
    busy_until = 0.0

    def be_busy() -> None:
        nonlocal busy_until
        assert eventually(stage.have_begun("t0", "t1", "t2"))
        busy_until = time.monotonic()

    LEAVING[leaving](runner, acting("quick", "told", "held", "held", "held", "held"), order, be_busy)
    assert time.monotonic() - busy_until < EXIT_BOUND_S
    pids = [int(path) for path in stage.marked("process")]
    if backend == "process":
        assert eventually(lambda: not any(map(is_alive, pids)))
    else:
        assert eventually(lambda: stage.marked("told") == ["t1"])
    assert [record.task_id for record in journal.records("default")] == ["t0"]
    stage.release()
    if backend != "process":
        assert eventually(lambda: set(stage.marked("done")) == set(stage.marked("begun")) - {"t1"})
    assert [record.task_id for record in journal.records("default")] == ["t0"]


# While workers are ended ----------------------------------------------------------------------------------------------


@each_way_on_threads(process=WAYS, foreign=WAYS)
@each_reaction
@pytest.mark.parametrize("has_journal", [False, True], ids=["", "journal"])
def test_an_interrupt_during_teardown_loses_nothing(
    has_journal: bool, on_interrupt: str, way: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """All steps are done: their outcomes are returned, or are in the error's run, but for those that were yielded."""
    journal = MemoryJournal()
    options: dict[str, Any] = {"journal": journal} if has_journal else {}
    executor = Acting(stage.folder, is_slow_to_end=True)
    runner = make_runner(executor, max_concurrency=1, on_interrupt=on_interrupt, **options)
    with pressed_when(lambda: bool(stage.marked("ending")), stage.release):
        result = ended(way, runner, acting(*["quick"] * 3))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert result.succeeded == result.task_ids == ["t0", "t1", "t2"]
    if has_journal:
        assert journalled(journal) == ["t0", "t1", "t2"]
    if on_interrupt == "raise":
        assert counts_in(result.error or BaseException()) == (3, 3, 0)


@each_reaction
@pytest.mark.parametrize("backend", ["process"])  # on threads, nothing is kept warm
def test_an_interrupt_at_the_end_of_with_leaves_no_worker(
    on_interrupt: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """What the calls in it have returned is there; warm workers are gone, and the handler is the one of before."""
    runner = make_runner(Acting(stage.folder, is_slow_to_end=True), max_concurrency=1, on_interrupt=on_interrupt)
    results: list[Ended] = []
    try:
        with pressed_when(lambda: bool(stage.marked("ending"))), runner:
            results.extend(ended(way, runner, acting("quick")) for way in ("run", "input order"))
    except KeyboardInterrupt:
        pass  # there is no result that could be returned instead, so either will do
    assert [result.succeeded for result in results] == [["t0"], ["t0"]]
    assert [result.error for result in results] == [None, None]
    assert not any(is_alive(int(pid)) for pid in stage.marked("process"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@each_way_on_threads(process=["run", "input order"], foreign=["loop", "completion order"])
@each_reaction
@pytest.mark.parametrize("moment", ["closing", "closed"])
def test_an_interrupt_while_the_journal_closes_loses_nothing(
    moment: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """As during teardown: all is done, and all of it is there."""
    journal = HookedJournal(Interrupting(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=2, journal=journal, on_interrupt=on_interrupt)
    result = ended(way, runner, make_specs(4))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert in_order(result.succeeded) == in_order(result.task_ids) == journalled(journal) == ["t0", "t1", "t2", "t3"]


@each_way_on_threads(process=["run", "input order"], foreign=["pipeline", "completion order"])
@each_reaction
@pytest.mark.parametrize("moment", ["writing", "written", "syncing"])
def test_an_interrupt_while_the_journal_is_written(
    moment: str, on_interrupt: str, way: str, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """What is journalled as done and what the caller is given as done are the same."""
    journal = HookedJournal(Interrupting(moment))
    runner = make_runner(LedgerExecutor(ledger), max_concurrency=2, journal=journal, on_interrupt=on_interrupt)
    result = ended(way, runner, make_specs(400))
    assert type(result.error) is (FanoutInterrupted if on_interrupt == "raise" else type(None))
    assert in_order(result.succeeded) == journalled(journal)
    assert len(set(result.task_ids)) == len(result.task_ids)
    assert 0 < len(result.succeeded) <= len(ledger.counts()) < 400
    assert set(ledger.counts().values()) == {1}


# Inputs and journals that fail ----------------------------------------------------------------------------------------


@each_way_on_threads(process=["run", "completion order"], foreign=["input order", "loop"])
def test_an_input_that_raises_keeps_what_was_started(way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """Steps that were started are finished, given to the caller and journalled; then the input's error is raised."""
    journal = MemoryJournal()

    def specs() -> Iterator[AgentStepSpec]:
        yield from acting("quick", "after t3", "quick", "quick", "quick")
        raise LookupError("the input fails")

    result = ended(way, make_runner(Acting(stage.folder), max_concurrency=3, journal=journal), specs())
    assert type(result.error) is InputError
    assert isinstance(result.error.__cause__, LookupError)
    assert in_order(result.task_ids) == in_order(result.succeeded) == ["t0", "t1", "t2", "t3", "t4"]
    assert journalled(journal) == ["t0", "t1", "t2", "t3", "t4"]


@each_way_on_threads(process=["run", "completion order"], foreign=["input order", "loop"])
def test_an_interrupt_after_the_input_has_raised(way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """Ctrl-C while what was started is finished ends that, too; what was done is there."""
    journal = MemoryJournal()

    def specs() -> Iterator[AgentStepSpec]:
        yield from acting("quick", "held", "quick")
        assert way in ("run", "loop") or eventually(stage.have_begun("t0", "t1"))
        raise LookupError("the input fails")

    runner = make_runner(Acting(stage.folder), max_concurrency=2, journal=journal)
    with pressed_when(lambda: stage.have_begun("t1", "t2")() and stage.marked("done") != []):
        result = ended(way, runner, specs())
    assert type(result.error) in (FanoutInterrupted, InputError)
    assert set(result.succeeded) == set(journalled(journal))
    assert "t0" in result.succeeded
    assert "t1" not in result.succeeded


class Failing:
    """A hook that fails at the `at`th of such uses of a journal, and from then on; it counts what was done well."""

    def __init__(self, moment: str, at: int) -> None:
        self.moment, self.at = moment, at
        self.uses = 0

    def __call__(self, moment: str) -> None:
        if moment == self.moment:
            self.uses += 1
            if self.uses >= self.at:
                raise JournalError("the disk is full")


@each_way_on_threads(process=["run", "input order"], foreign=["pipeline", "completion order"])
@pytest.mark.parametrize("moment", ["writing", "syncing"])
def test_a_journal_that_fails_loses_no_outcome(moment: str, way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """Steps that were started are finished, and all that were done are given to the caller; no other one begins."""
    journal = HookedJournal(Failing(moment, at=3 if moment == "writing" else 1))
    result = ended(way, make_runner(Acting(stage.folder), max_concurrency=3, journal=journal), acting(*["quick"] * 400))
    assert type(result.error) is JournalError
    assert "the disk is full" in str(result.error)
    assert in_order(result.succeeded) == in_order(stage.marked("done")) == in_order(stage.marked("begun"))
    assert len(set(result.task_ids)) == len(result.task_ids)
    assert len(result.succeeded) < 400
    assert set(journalled(journal)) <= set(result.succeeded)


@each_way_on_threads(process=["run", "completion order"], foreign=["input order", "loop"])
def test_a_journal_that_fails_when_the_call_is_interrupted(way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """The caller is given all that was done, though the journal cannot keep it."""
    journal = HookedJournal(lambda moment: failing(moment))
    is_full = False

    def failing(moment: str) -> None:
        if moment == "writing" and is_full:
            raise JournalError("the disk is full")

    def fill() -> bool:
        nonlocal is_full
        is_full = stage.have_begun("t0", "t5", "t6")()
        return is_full

    agents = ["obedient", *HELD[1:]]
    runner = make_runner(Acting(stage.folder), max_concurrency=3, journal=journal)
    with pressed_when(fill):
        result = ended(way, runner, acting(*agents))
    assert type(result.error) in (FanoutInterrupted, JournalError)
    assert in_order(result.succeeded) == in_order(stage.marked("done"))
    assert {"t1", "t2", "t3", "t4"} <= set(result.succeeded)


@each_order
def test_a_journal_that_fails_when_a_stream_is_left(order: Any, make_runner: MakeRunner, stage: Stage) -> None:
    """It says so, or is silent; but the stream ends, and the workflow is free again."""
    hook = Failing("writing", at=10_000)
    journal = HookedJournal(hook)
    stream = make_runner(Acting(stage.folder), max_concurrency=3, journal=journal).stream(
        acting(*["quick"] * 9), order=order
    )
    next(stream)
    assert eventually(stage.at_rest())
    hook.at = 0
    try:
        stream.close()
    except JournalError as error:
        assert "the disk is full" in str(error)  # noqa: PT017 - it may be silent
    hook.at = 10_000
    again = make_runner(Acting(stage.folder), max_concurrency=3, journal=journal).run(acting(*["quick"] * 9))
    assert len(again.succeeded) == 9


# A call inside a step -------------------------------------------------------------------------------------------------


@each_way_on_threads(process=["run", "completion order"], foreign=["input order", "loop"])
def test_a_call_in_a_step_that_is_interrupted_keeps_what_was_done(
    way: str, make_runner: MakeRunner, stage: Stage
) -> None:
    """When the outer call is interrupted, the inner one is, too: it has, and has journalled, all that was done."""
    journal = MemoryJournal()
    inner_ends: list[Ended] = []
    is_over = threading.Event()

    def call(spec: AgentStepSpec) -> str:
        inner_ends.append(
            ended(way, make_runner(Acting(stage.folder), max_concurrency=3, journal=journal), acting(*HELD))
        )
        is_over.set()
        return spec.prompt

    with pressed_when(stage.have_begun("t0", "t5", "t6")), pytest.raises(FanoutInterrupted):
        Runner(FunctionExecutor({"outer": call}), max_concurrency=1).run(make_specs(1, agent="outer"))
    assert is_over.wait(EXIT_BOUND_S)
    (inner,) = inner_ends
    assert type(inner.error) is FanoutInterrupted
    assert in_order(inner.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)


@pytest.mark.parametrize("way", ["run", "input order", "pipeline"])
@pytest.mark.parametrize("backend", ["thread"])
def test_a_call_in_a_step_that_times_out_keeps_what_was_done(way: str, make_runner: MakeRunner, stage: Stage) -> None:
    """When the outer step is overdue, the inner call ends as if it was interrupted."""
    journal = MemoryJournal()
    inner_ends: list[Ended] = []
    is_over = threading.Event()

    def call(spec: AgentStepSpec) -> str:
        inner_ends.append(
            ended(way, make_runner(Acting(stage.folder), max_concurrency=3, journal=journal), acting(*HELD))
        )
        is_over.set()
        return spec.prompt

    outer = Runner(FunctionExecutor({"outer": call}), max_concurrency=1, timeout=2).run(make_specs(1, agent="outer"))
    assert outer.records[0].status == "timed_out"
    assert is_over.wait(EXIT_BOUND_S)
    (inner,) = inner_ends
    assert type(inner.error) is FanoutInterrupted
    assert in_order(inner.succeeded) == ["t1", "t2", "t3", "t4"] == journalled(journal)


def test_a_stream_in_a_step_that_is_interrupted_while_its_consumer_is_busy(
    make_runner: MakeRunner, stage: Stage
) -> None:
    """What had finished by then is journalled, though the consumer never asks for it."""
    journal = MemoryJournal()
    finished: list[str] = []
    is_over = threading.Event()

    def consume(spec: AgentStepSpec) -> str:
        stream = make_runner(Acting(stage.folder), max_concurrency=3, journal=journal).stream(acting(*["quick"] * 99))
        next(stream)
        assert eventually(stage.at_rest())
        finished.extend(in_order(stage.marked("done")))
        stage.ledger.note("busy:consumer")
        current_step().cancelled.wait(BOUND_S)
        stream.close()
        is_over.set()
        return spec.prompt

    with pressed_when(lambda: stage.marked("busy") != []), pytest.raises(FanoutInterrupted):
        Runner(FunctionExecutor({"outer": consume}), max_concurrency=1).run(make_specs(1, agent="outer"))
    assert is_over.wait(EXIT_BOUND_S)
    assert journalled(journal) == finished
    assert len(finished) >= 3
