"""Running the failed steps of a run again: only those, on its runner, with every outcome in its place."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fanout_sync import (
    AgentStepSpec,
    Budget,
    EventChannel,
    ExecutorNotPicklable,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    JournalConflict,
    JournalError,
    MemoryJournal,
    OptionError,
    Progress,
    RateLimit,
    Run,
    Runner,
    SqliteJournal,
    StepOutcome,
    UnknownOption,
    Usage,
    current_step,
    fanout_map,
    fanout_stream,
)
from fanout_sync.runner.options import OPTIONS
from fanout_sync.runner.retry_failed import with_options
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

MakeRunner = Callable[..., Runner]


class Mended(Exception):
    """Raised by a step until the file exists that its description names."""


def work(spec: AgentStepSpec) -> Any:
    """Do what the prompt says, until the description names a file that exists."""
    current_step().add_usage(prompt_tokens=10, cost_usd=0.25)
    if not Path(spec.description).exists():
        if spec.prompt == "raise":
            raise Mended(spec.task_id)
        if spec.prompt == "fail":
            return StepOutcome.failed(spec.task_id, spec.agent, "not today")
        if spec.prompt == "die":
            os._exit(7)
        if spec.prompt == "garbage":
            return StepOutcome.completed(spec, "fine", [float("nan")])
    return f"{spec.task_id} is done"


def answer(spec: AgentStepSpec) -> StepOutcome:
    """Do the same as the whole of a step."""
    answered: Any = work(spec)
    return answered if isinstance(answered, StepOutcome) else StepOutcome.completed(spec, answered)


EXECUTOR = FunctionExecutor({"worker": work})


@pytest.fixture
def mended(tmp_path: Path) -> Path:
    """A file that does not exist yet; once it does, all steps succeed."""
    return tmp_path / "mended"


def specs_of(mended: Path, *prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{place}", "worker", str(mended), prompt) for place, prompt in enumerate(prompts)]


def statuses(run: Any) -> list[str]:
    return [record.status for record in run.records]


# What runs again ------------------------------------------------------------------------------------------------------


def test_only_failed_steps_run_again(make_runner: MakeRunner, tmp_path: Path, mended: Path) -> None:
    """Each step that has not succeeded runs once more; the new run has all outcomes and records in their places."""
    ledger = Ledger(tmp_path / "ledger")
    specs = specs_of(mended, "fine", "raise", "fine", "fail", "raise")
    run = make_runner(LedgerExecutor(ledger, dict.fromkeys(("t1", "t3", "t4"), answer))).run(iter(specs))
    assert statuses(run) == ["succeeded", "raised", "succeeded", "failed", "raised"]
    mended.touch()
    again = run.retry_failed()
    assert ledger.counts() == {"t0": 1, "t1": 2, "t2": 1, "t3": 2, "t4": 2}
    assert statuses(again) == ["succeeded"] * 5
    assert [outcome.task_id for outcome in again] == [spec.task_id for spec in specs]
    assert again["t1"].output == "t1 is done"
    assert [record.index for record in again.records] == [0, 1, 2, 3, 4]
    assert (again[0], again.records[0]) == (run[0], run.records[0])
    assert statuses(run)[1] == "raised"  # the first run is what it was


def test_records_are_of_the_new_try_and_sums_of_both(make_runner: MakeRunner, mended: Path) -> None:
    """Attempts and times are those of the last try; what was used and how long it took are of all tries together."""
    run = make_runner(EXECUTOR, retry=3).run(specs_of(mended, "fine", "raise"))
    assert len(run.records[1].attempts) == 3
    assert run.usage == Usage(40, 0, 1.0)
    mended.touch()
    again = run.retry_failed()
    assert len(again.records[1].attempts) == 1
    assert again.records[1].error is None
    assert again.records[1].usage == Usage(10, 0, 0.25)
    assert again.usage == Usage(50, 0, 1.25)
    assert again.elapsed > run.elapsed
    assert pickle.loads(pickle.dumps(again)).usage == again.usage


def test_a_run_that_was_retried_can_be_retried(make_runner: MakeRunner, mended: Path) -> None:
    """As often as there are failed steps; what failed again is in its place, too."""
    run = make_runner(EXECUTOR).run(specs_of(mended, "fine", "raise", "fail"))
    again = run.retry_failed()
    assert statuses(again) == ["succeeded", "raised", "failed"]
    mended.touch()
    last = again.retry_failed()
    assert statuses(last) == ["succeeded"] * 3
    assert last.usage == Usage(70, 0, 1.75)
    assert last.retry_failed() == last


def test_nothing_runs_if_nothing_has_failed(make_runner: MakeRunner, ledger: Ledger) -> None:
    """The same outcomes come back, without an event; options are checked nevertheless."""
    events: list[Any] = []
    run = make_runner(LedgerExecutor(ledger), event_tx=events.append).run(make_specs(3))
    events.clear()
    assert list(run.retry_failed()) == list(run)
    assert events == []
    assert ledger.counts() == {"t0": 1, "t1": 1, "t2": 1}
    with pytest.raises(UnknownOption):
        run.retry_failed(workers=3)
    assert Runner(LedgerExecutor(ledger)).run([]).retry_failed() == []


def test_crashed_steps_and_garbage_run_again(mended: Path) -> None:
    """Whatever a step has failed by; also several steps with one task id."""
    specs = specs_of(mended, "die", "fine", "garbage", "die")
    run = Runner(EXECUTOR, backend="process", max_concurrency=2).run([*specs, specs[0]])
    assert statuses(run) == ["crashed", "succeeded", "invalid", "crashed", "crashed"]
    mended.touch()
    again = run.retry_failed()
    assert statuses(again) == ["succeeded"] * 5
    assert [outcome.task_id for outcome in again] == ["t0", "t1", "t2", "t3", "t0"]


def test_steps_that_took_too_long_run_again(make_runner: MakeRunner) -> None:
    """With another timeout, for instance."""
    executor = FunctionExecutor({"worker": wait_for_the_time})
    specs = [AgentStepSpec("t0", "worker", "", "long"), AgentStepSpec("t1", "worker", "", "short")]
    with pytest.warns(UserWarning, match="soft") if _is_foreign(make_runner) else contextlib.nullcontext():
        run = make_runner(executor, timeout=0.3).run(specs)
    assert statuses(run) == ["timed_out", "succeeded"]
    assert statuses(run.retry_failed(timeout=None)) == ["succeeded", "succeeded"]


def wait_for_the_time(spec: AgentStepSpec) -> str:
    step = current_step()
    if spec.prompt == "long" and step.deadline is not None:
        step.cancelled.wait(60)
    return "done"


def _is_foreign(make_runner: MakeRunner) -> bool:
    return "ThreadPoolExecutor" in repr(make_runner(EXECUTOR))


def test_cancelled_steps_run_again(mended: Path) -> None:
    """Those that never began, because too many had failed or the budget was used up."""
    run = Runner(EXECUTOR, max_concurrency=1, max_failures=1).run(specs_of(mended, "raise", "fine", "fine"))
    assert statuses(run) == ["raised", "cancelled", "cancelled"]
    mended.touch()
    assert statuses(run.retry_failed()) == ["succeeded"] * 3

    run = Runner(EXECUTOR, max_concurrency=1, budget=Budget(max_steps=1)).run(specs_of(mended, "a", "b"))
    assert statuses(run) == ["succeeded", "cancelled"]
    assert statuses(run.retry_failed()) == ["succeeded", "cancelled"]  # it is the same budget
    assert statuses(run.retry_failed(budget=None)) == ["succeeded", "succeeded"]


def test_a_runner_that_keeps_its_workers_uses_them(mended: Path, tmp_path: Path) -> None:
    """Within its `with` block, as for every other call; after it, new ones."""
    with Runner(EXECUTOR, backend="process", max_concurrency=1) as runner:
        run = runner.run(specs_of(mended, "fine", "raise"))
        again = run.retry_failed()
        assert again.records[1].worker == run.records[1].worker
    mended.touch()
    assert statuses(again.retry_failed()) == ["succeeded"] * 2


def test_only_specs_of_failed_steps_are_kept(make_runner: MakeRunner, mended: Path) -> None:
    """In order; a run of a million steps holds no spec of those that have succeeded."""
    specs = specs_of(mended, "fine", "raise", "fine", "fail")
    run = make_runner(EXECUTOR).run(specs)
    assert run.failed_specs == [specs[1], specs[3]]
    assert [report.spec for report in run._reports] == [None, specs[1], None, specs[3]]


# Options --------------------------------------------------------------------------------------------------------------


def test_options_go_before_those_of_the_runner(mended: Path) -> None:
    """For this try and those of its result; the first run keeps its own."""
    run = Runner(EXECUTOR, retry=2, max_concurrency=1).run(specs_of(mended, "raise"))
    again = run.retry_failed(retry=4, backend="process")
    assert len(again.records[0].attempts) == 4
    assert isinstance(again.records[0].worker, int)
    assert len(again.retry_failed().records[0].attempts) == 4
    assert len(run.retry_failed().records[0].attempts) == 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("timeout", -1, "timeout must be"),
        ("max_concurrency", 0, "max_concurrency must be"),
        ("backend", "proces", "did you mean 'process'"),
        ("retry", 0, "retry must be"),
        ("max_failures", 0, "max_failures must be"),
        ("on_conflict", "rerun", "needs a journal"),
        ("on_interrupt", "ignore", "on_interrupt must be"),
        ("executor", EXECUTOR, "retry_failed has no option 'executor'"),
        ("max_workers", 3, "did you mean max_concurrency"),
    ],
)
def test_bad_options_are_refused(option: str, value: Any, message: str, ledger: Ledger) -> None:
    """By name, before anything runs."""
    executor = LedgerExecutor(ledger, {"t0": raise_always})
    run = Runner(executor).run(make_specs(2))
    with pytest.raises(OptionError, match=message):
        run.retry_failed(**{option: value})
    assert ledger.counts() == {"t0": 1, "t1": 1}


def raise_always(spec: AgentStepSpec) -> Any:
    raise ValueError(spec.task_id)


def test_every_option_of_a_runner_can_be_given(tmp_path: Path) -> None:
    """What it becomes is what it is in a runner that is made with it."""
    channel, journal = EventChannel(), MemoryJournal()
    pool = ThreadPoolExecutor(1)
    given: dict[str, Any] = {
        "backend": pool,
        "max_concurrency": 3,
        "timeout": 4.5,
        "retry": None,
        "rate_limit": RateLimit(requests_per_minute=3),
        "budget": Budget(max_steps=3),
        "max_failures": 5,
        "progress": print,
        "on_interrupt": "return",
        "journal": journal.workflow("w"),
        "on_conflict": "rerun",
        "event_tx": channel,
    }
    assert set(given) == set(OPTIONS)
    plain = Runner(EXECUTOR, retry=3)._plan
    with pytest.warns(UserWarning, match="soft"):
        made = Runner(EXECUTOR, **given)._plan
    with pytest.warns(UserWarning, match="soft"):
        changed = with_options(plain, given)
    assert (changed.backend, changed.event_tx) == (pool, channel)
    for name in ("max_concurrency", "limits", "budget", "workflow", "raises_interrupts"):
        assert getattr(changed, name) == getattr(made, name), name
    for name in ("timeout_s", "retry", "max_failures", "timeout_for"):
        assert getattr(changed.policies, name) == getattr(made.policies, name), name
    assert changed.make_sink is not None
    pool.shutdown()


def test_what_a_runner_does_with_conflicts_is_kept() -> None:
    """Unless `on_conflict` is given: then that counts."""
    workflow = MemoryJournal().workflow("w")

    def changed(runner: Runner, **options: Any) -> str | None:
        workflow = with_options(runner._plan, options).workflow
        return None if workflow is None else workflow.on_conflict

    rerun, refuse = (Runner(EXECUTOR, journal=workflow, on_conflict=word) for word in ("rerun", "refuse"))
    other = MemoryJournal()
    assert changed(rerun, journal=other) == changed(refuse, on_conflict="rerun") == "rerun"
    assert changed(rerun, on_conflict="refuse") == changed(refuse, journal=other) == "refuse"
    assert changed(rerun, journal=None) is None


# Journals, items, events ----------------------------------------------------------------------------------------------


def test_a_journal_keeps_what_comes_of_it(make_runner: MakeRunner, mended: Path, tmp_path: Path) -> None:
    """The same workflow has the new outcomes, in order; a run of all specs resumes with nothing left to do."""
    journal = SqliteJournal(tmp_path / "run.db").workflow("w")
    specs = specs_of(mended, "fine", "raise", "fail")
    run = make_runner(EXECUTOR, journal=journal).run(specs)
    mended.touch()
    again = run.retry_failed()
    assert statuses(again) == ["succeeded"] * 3
    assert [record.from_journal for record in again.records] == [False] * 3
    kept = journal.journal.records("w")
    assert [(record.index, record.task_id) for record in kept] == [(n, spec.task_id) for n, spec in enumerate(specs)]
    resumed = make_runner(EXECUTOR, journal=journal).run(specs)
    assert [record.from_journal for record in resumed.records] == [True] * 3
    assert resumed == again


def test_what_the_journal_has_by_now_does_not_run(mended: Path, tmp_path: Path) -> None:
    """If another run has done it meanwhile; what the first try has used still counts."""
    specs = specs_of(mended, "fine", "raise")
    run = Runner(EXECUTOR, journal=tmp_path / "run.db").run(specs)
    mended.touch()
    Runner(EXECUTOR, journal=tmp_path / "run.db").run(specs)
    again = run.retry_failed()
    assert [record.from_journal for record in again.records] == [False, True]
    assert again.usage == run.usage == Usage(20, 0, 0.5)


def test_a_run_with_reused_outcomes_can_be_retried(mended: Path, tmp_path: Path) -> None:
    """Which stay as they are."""
    specs = specs_of(mended, "fine", "raise")
    for _ in range(2):
        run = Runner(EXECUTOR, journal=tmp_path / "run.db").run(specs)
    mended.touch()
    again = run.retry_failed()
    assert [record.from_journal for record in again.records] == [True, False]
    assert statuses(again) == ["succeeded"] * 2


def test_a_rerun_spec_does_not_conflict_with_itself(mended: Path, tmp_path: Path) -> None:
    """The journal has the new spec under its task id by then, also of one that was cancelled before it began."""
    old = specs_of(mended, "raise", "raise")
    Runner(EXECUTOR, journal=tmp_path / "run.db").run(old)
    new = [AgentStepSpec(spec.task_id, "worker", str(mended), "fail") for spec in old]
    runner = Runner(EXECUTOR, journal=tmp_path / "run.db", on_conflict="rerun", max_failures=1, max_concurrency=1)
    run = runner.run(new)
    assert statuses(run) == ["failed", "cancelled"]
    mended.touch()
    assert statuses(run.retry_failed()) == ["succeeded"] * 2


def test_errors_of_the_journal_have_all_outcomes(mended: Path, tmp_path: Path) -> None:
    """A conflict, or a journal that another run holds."""
    specs = specs_of(mended, "fine", "raise")
    run = Runner(EXECUTOR).run([*specs, specs[1]])
    with pytest.raises(JournalConflict) as caught:
        run.retry_failed(journal=tmp_path / "run.db")
    assert caught.value.run == run
    journal = MemoryJournal().workflow("w")
    stream = Runner(EXECUTOR, journal=journal).stream(specs)
    next(stream)
    with pytest.raises(JournalError):
        run.retry_failed(journal=journal)
    stream.close()
    half = Runner(FunctionExecutor({"\ud800": work})).run([AgentStepSpec("\ud800", "\ud800", "", "raise")])
    with pytest.raises(InputError) as refused:
        half.retry_failed(journal=journal)
    assert refused.value.run == half


def test_an_executor_that_cannot_be_sent_leaves_all_outcomes(mended: Path) -> None:
    """As the error of a backend that the first try did not have."""
    executor = FunctionExecutor({"worker": work})
    executor.lock = threading.Lock()  # type: ignore[attr-defined]
    run = Runner(executor).run(specs_of(mended, "fine", "raise"))
    with pytest.raises(ExecutorNotPicklable) as caught:
        run.retry_failed(backend="process")
    assert caught.value.run == run


class Item:
    """An item without JSON."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number


def square(item: Item) -> int:
    if item.number % 2 and not item.path.exists():
        raise Mended(str(item.number))
    return item.number**2


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("has_journal", [False, True])
def test_items_run_again(backend: Any, has_journal: bool, mended: Path, tmp_path: Path) -> None:
    """The function gets the same items once more."""
    journal = tmp_path / "run.db" if has_journal else None
    items = (Item(mended, number) for number in range(6))
    run = fanout_map(square, items, backend=backend, journal=journal, max_concurrency=2)
    assert run.values() == [0, None, 4, None, 16, None]
    mended.touch()
    assert run.retry_failed().values() == [0, 1, 4, 9, 16, 25]


def test_events_and_progress_are_of_the_steps_that_run(mended: Path) -> None:
    """The total is the number of failed steps."""
    events: list[Any] = []
    shown: list[Progress] = []
    run = Runner(EXECUTOR, event_tx=events.append, progress=shown.append).run(specs_of(mended, "a", "raise", "fail"))
    events.clear()
    shown.clear()
    mended.touch()
    run.retry_failed()
    assert (shown[-1].total, shown[-1].succeeded) == (2, 2)
    assert (events[0].total, events[-1].succeeded) == (2, 2)


# Runs that ended early ------------------------------------------------------------------------------------------------


def interrupting(spec: AgentStepSpec) -> str:
    """Interrupt the run in the middle of step 1, until the description names a file that exists."""
    if spec.task_id == "t1" and not Path(spec.description).exists():
        os.kill(os.getppid() if spec.prompt == "process" else os.getpid(), signal.SIGINT)
        current_step().cancelled.wait(60)
        raise Mended(spec.task_id)
    return f"{spec.task_id} is done"


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_an_interrupted_run_goes_on(backend: Any, mended: Path) -> None:
    """With the steps that were cancelled, those that had not begun included."""
    specs = specs_of(mended, *[backend] * 5)
    runner = Runner(FunctionExecutor({"worker": interrupting}), backend=backend, max_concurrency=1)
    with pytest.raises(FanoutInterrupted) as caught:
        runner.run(specs)
    assert statuses(caught.value.run)[2:] == ["cancelled"] * 3
    assert caught.value.run.failed_specs == specs[1:]
    mended.touch()
    again = caught.value.run.retry_failed()
    assert [outcome.output for outcome in again] == [f"t{place} is done" for place in range(5)]


@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_an_interrupt_of_the_retry_has_all_outcomes(backend: Any, on_interrupt: Any, tmp_path: Path) -> None:
    """In their places: of the first run, of the retry so far, and cancelled ones for the rest."""
    mended, calm = tmp_path / "mended", tmp_path / "calm"
    executor = FunctionExecutor({"worker": work, "interrupter": interrupting})
    specs = specs_of(mended, "fine", "raise", "raise", "fine", "raise")
    specs[1] = AgentStepSpec("t0", "worker", str(mended), "raise")
    specs[2] = AgentStepSpec("t1", "interrupter", str(calm), backend)
    runner = Runner(executor, backend=backend, max_concurrency=1, max_failures=1, on_interrupt=on_interrupt)
    run = runner.run(specs)
    assert statuses(run) == ["succeeded", "raised", *["cancelled"] * 3]
    mended.touch()
    if on_interrupt == "return":
        cut: Any = run.retry_failed()
    else:
        with pytest.raises(FanoutInterrupted, match="of 5 steps were done") as caught:
            run.retry_failed()
        cut = caught.value.run
    # On a thread, the step that the interrupt stopped ends by itself, with an error.
    assert statuses(cut) == ["succeeded", "succeeded", cut.records[2].status, "cancelled", "cancelled"]
    assert not cut[2].success
    assert [record.index for record in cut.records] == [0, 1, 2, 3, 4]
    calm.touch()
    assert statuses(cut.retry_failed()) == ["succeeded"] * 5


def test_the_run_of_a_broken_input_can_be_retried(mended: Path) -> None:
    """It has the steps that came before the error."""

    def broken() -> Iterator[AgentStepSpec]:
        yield from specs_of(mended, "fine", "raise")
        raise LookupError("no more rows")

    with pytest.raises(InputError) as caught:
        Runner(EXECUTOR).run(broken())
    mended.touch()
    assert statuses(caught.value.run.retry_failed()) == ["succeeded"] * 2


def test_the_rest_of_an_interrupted_stream_can_be_retried(mended: Path) -> None:
    """The run of the interrupt has the steps that the stream had not yielded."""
    stream = Runner(EXECUTOR, max_concurrency=1).stream(specs_of(mended, "fine", "fine", "fine"))
    next(stream)
    with pytest.raises(FanoutInterrupted) as caught:
        stream.throw(KeyboardInterrupt())
    again = caught.value.run.retry_failed()
    assert {outcome.task_id for outcome in again} <= {"t1", "t2"}
    assert all(outcome.success for outcome in again)
    assert [record.index for record in again.records] == [record.index for record in caught.value.run.records]


def test_the_run_of_a_stream_says_that_it_has_no_specs(mended: Path) -> None:
    """Before its end and after, with failed steps and without."""
    stream = Runner(EXECUTOR).stream(specs_of(mended, "fine", "raise"))
    next(stream)
    with pytest.raises(RuntimeError, match="the run of a stream keeps no specs"):
        stream.run.retry_failed()
    assert len(list(stream)) == 1
    for run in (stream.run, pickle.loads(pickle.dumps(stream.run))):
        with pytest.raises(RuntimeError, match="the run of a stream keeps no specs"):
            run.retry_failed()
        with pytest.raises(RuntimeError, match="the run of a stream keeps no specs"):
            _ = run.failed_specs
    assert all(report.spec is None for report in stream.run._reports)
    items = fanout_stream(len, ["a"])
    assert len(list(items)) == 1
    with pytest.raises(RuntimeError, match=r"Runner\(\.\.\.\)\.run\(specs\)"):
        items.run.retry_failed()


# Pickles and copies ---------------------------------------------------------------------------------------------------


def test_a_loaded_run_says_that_it_has_no_runner(make_runner: MakeRunner, mended: Path) -> None:
    """And what to do: it has the specs of its failed steps."""
    specs = specs_of(mended, "fine", "raise", "fail")
    run = make_runner(EXECUTOR).run(specs)
    loaded = pickle.loads(pickle.dumps(run))
    assert loaded == run
    assert list(loaded.records) == list(run.records)
    assert loaded.summary() == run.summary()
    assert loaded.failed_specs == specs[1:]
    with pytest.raises(RuntimeError, match=r"no runner to retry with.*Runner\(\.\.\.\)\.run\(specs\).*failed_specs"):
        loaded.retry_failed()
    assert pickle.loads(pickle.dumps(loaded)).failed_specs == specs[1:]
    assert copy.deepcopy(run).failed_specs == specs[1:]


def test_a_run_pickles_whatever_its_runner_and_items_are(mended: Path) -> None:
    """An item that cannot be pickled, or loaded, is missed by `failed_specs` alone."""
    items = [Item(mended, 1), Item(mended, 2), lambda: None, Unloadable()]
    run = fanout_map(raise_always_of, items, event_tx=lambda event: None)
    loaded = pickle.loads(pickle.dumps(run))
    assert list(loaded) == list(run)
    with pytest.raises(RuntimeError, match="2 of 4 specs of failed steps are not there, such as that of '2'"):
        _ = loaded.failed_specs
    assert len(run.failed_specs) == 4


class Unloadable:
    def __reduce__(self) -> Any:
        return raise_always_of, (None,)


def raise_always_of(item: Any) -> Any:
    raise ValueError("never")


def test_a_copy_is_a_run_of_the_same_runner(mended: Path) -> None:
    """A shallow copy shares it."""
    run = copy.copy(Runner(EXECUTOR).run(specs_of(mended, "raise")))
    mended.touch()
    assert statuses(run.retry_failed()) == ["succeeded"]


def test_an_error_with_a_run_pickles_with_its_specs(mended: Path) -> None:
    """As the run itself does."""
    run = Runner(EXECUTOR, max_failures=1, max_concurrency=1).run(specs_of(mended, "raise", "fine"))
    loaded = pickle.loads(pickle.dumps(FanoutInterrupted(run)))
    assert isinstance(loaded.run, Run)
    assert loaded.run.failed_specs == run.failed_specs
