"""Journalled runs: what is done is durable before it is handed out, and is not done again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from bounds import HANG_BOUND_S
from disks import small_disk
from journalled import HOLDS, says, script
from processes import eventually

from fanout_sync import (
    AgentStepSpec,
    Continue,
    EventChannel,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    Journal,
    JournalConflict,
    JournalError,
    MemoryJournal,
    OptionError,
    RunEnd,
    Runner,
    SqliteJournal,
    StepOutcome,
    Stop,
    SubagentStart,
    Usage,
    current_step,
    execute_pipeline,
    execute_steps_parallel_resumable,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

MakeRunner = Callable[..., Runner]


@pytest.fixture(params=["sqlite", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return SqliteJournal(tmp_path / "run.db") if request.param == "sqlite" else MemoryJournal()


def _raise(spec: AgentStepSpec) -> StepOutcome:
    raise ValueError("not now")


def _die(spec: AgentStepSpec) -> StepOutcome:
    os._exit(3)


# What is not run again -----------------------------------------------------------------------------------------------


def test_a_second_run_runs_nothing(make_runner: MakeRunner, ledger: Ledger, tmp_path: Path) -> None:
    """The outcomes are the same, and their records say where they are from."""
    options = {"journal": str(tmp_path / "run.db")}
    first = make_runner(LedgerExecutor(ledger), **options).run(make_specs(20))
    second = make_runner(LedgerExecutor(ledger), **options).run(make_specs(20))
    assert list(second) == list(first)
    assert ledger.counts() == {f"t{n}": 1 for n in range(20)}
    assert not any(record.from_journal for record in first.records)
    assert all(record.from_journal for record in second.records)
    assert [record.index for record in second.records] == list(range(20))
    assert [record.started for record in second.records] == [record.started for record in first.records]
    assert "from the journal: 20" in second.summary()
    assert "from the journal" not in first.summary()


@pytest.mark.parametrize("journal", ["sqlite"], indirect=True)
def test_only_successes_are_reused(ledger: Ledger, journal: Journal) -> None:
    """What failed, raised, crashed, timed out or was cancelled runs again."""

    def say_no(spec: AgentStepSpec) -> StepOutcome:
        return StepOutcome.failed(spec.task_id, spec.agent, "no")

    executor = LedgerExecutor(ledger, {"t1": _raise, "t2": _die, "t3": _hang, "t4": say_no, "t5": lambda spec: None})
    options: dict[str, Any] = {"journal": journal, "backend": "process", "timeout": 1.5}
    run = Runner(executor, **options).run(make_specs(7))
    assert [record.status for record in run.records] == [
        "succeeded",
        "raised",
        "crashed",
        "timed_out",
        "failed",
        "invalid",
        "succeeded",
    ]
    assert [record.status for record in journal.records("default")] == [record.status for record in run.records]
    again = Runner(LedgerExecutor(ledger), **options).run(make_specs(7))
    assert len(again.succeeded) == 7
    assert [record.from_journal for record in again.records] == [True, False, False, False, False, False, True]
    assert ledger.counts() == {"t0": 1, "t1": 2, "t2": 2, "t3": 2, "t4": 2, "t5": 2, "t6": 1}
    assert all(record.outcome.success for record in journal.records("default"))


def _hang(spec: AgentStepSpec) -> StepOutcome:
    time.sleep(3600)
    raise AssertionError("an hour has passed")


def test_everything_known_of_a_step_is_kept(journal: Journal) -> None:
    """Attempts, timing, worker, usage, error: as in the record of the run."""

    def spend(spec: AgentStepSpec) -> StepOutcome:
        current_step().add_usage(prompt_tokens=7, cost_usd=0.5)
        if current_step().attempt == 1:
            raise ValueError("first try")
        return StepOutcome.completed(spec, "ok", {"a": [1, None]})

    run = Runner(FunctionExecutor({"tester": spend}), journal=journal, retry=2).run(make_specs(2))
    kept = journal.records("default")
    for record, there in zip(run.records, kept, strict=True):
        for name in ("index", "status", "error", "attempts", "started", "duration_s", "worker", "usage"):
            assert getattr(there, name) == getattr(record, name), name
        assert there.usage == Usage(14, 0, 1.0)
        assert len(there.attempts) == 2
    assert [there.outcome for there in kept] == list(run)
    assert [there.spec for there in kept] == make_specs(2)
    assert len({there.identity for there in kept}) == 2


def test_new_steps_are_run_beside_old_ones(ledger: Ledger, journal: Journal) -> None:
    """A longer list, in another order: what is there is reused, wherever it stands."""
    Runner(LedgerExecutor(ledger), journal=journal).run(make_specs(3))
    run = Runner(LedgerExecutor(ledger), journal=journal).run(list(reversed(make_specs(6))))
    assert [outcome.task_id for outcome in run] == ["t5", "t4", "t3", "t2", "t1", "t0"]
    assert ledger.counts() == {f"t{n}": 1 for n in range(6)}


def test_workflows_keep_apart(ledger: Ledger, journal: Journal) -> None:
    """The same steps under another workflow are other steps."""
    for workflow_id in ("one", "two", "one"):
        Runner(LedgerExecutor(ledger), journal=journal.workflow(workflow_id)).run(make_specs(2))
    assert ledger.counts() == {"t0": 2, "t1": 2}
    assert journal.workflows() == ["one", "two"]
    journal.delete("one")
    assert journal.workflows() == ["two"]
    Runner(LedgerExecutor(ledger), journal=journal.workflow("one")).run(make_specs(2))
    assert ledger.counts() == {"t0": 3, "t1": 3}


def test_the_function_resumes(ledger: Ledger, tmp_path: Path) -> None:
    """`execute_steps_parallel_resumable` takes a path or a journal, and the runner's options."""
    executor = LedgerExecutor(ledger)
    path = tmp_path / "run.db"
    first = execute_steps_parallel_resumable(executor, make_specs(3), "nightly", path)
    second = execute_steps_parallel_resumable(
        executor, make_specs(3), "nightly", SqliteJournal(path), max_concurrency=1
    )
    assert first == second
    assert ledger.counts() == {"t0": 1, "t1": 1, "t2": 1}
    changed = [evolve(spec, prompt="new") for spec in make_specs(3)]
    with pytest.raises(JournalConflict):
        execute_steps_parallel_resumable(executor, changed, "nightly", path)
    third = execute_steps_parallel_resumable(executor, changed, "nightly", path, on_conflict="rerun")
    assert [outcome.output for outcome in third] == ["new"] * 3
    with pytest.raises(OptionError, match="execute_steps_parallel_resumable has no option 'jurnal'"):
        execute_steps_parallel_resumable(executor, [], "nightly", path, jurnal=path)  # type: ignore[call-arg]  # it does not


def test_streams_resume_too(make_runner: MakeRunner, ledger: Ledger, journal: Journal) -> None:
    """In either order, from a list or a generator."""
    runner = make_runner(LedgerExecutor(ledger), journal=journal)
    stream = runner.stream(iter(make_specs(30)))
    taken = [next(stream) for _ in range(10)]
    stream.close()
    assert [outcome.task_id for outcome in taken] == [f"t{n}" for n in range(10)]
    assert [outcome.task_id for outcome in runner.stream(spec for spec in make_specs(30))] == [
        f"t{n}" for n in range(30)
    ]
    assert {outcome.task_id for outcome in runner.stream(make_specs(30), order="completion")} == set(ledger.counts())
    counts = ledger.counts()
    assert all(counts[f"t{n}"] == 1 for n in range(10)), "what was handed out was journalled"
    assert max(counts.values()) <= 2


def test_outcomes_are_durable_before_they_are_handed_out(make_runner: MakeRunner, tmp_path: Path) -> None:
    """When an outcome is yielded, or its `subagent_end` is sent, the file has it."""
    path = tmp_path / "run.db"
    reader = SqliteJournal(path)
    told: list[str] = []
    missing: list[str] = []

    class Watching:
        def send(self, event: Any) -> None:
            if event.type == "subagent_end":
                told.append(event.task_id)
                if event.task_id not in {record.task_id for record in reader.records("default")}:
                    missing.append(event.task_id)

    executor = FunctionExecutor({"tester": _echo})
    stream = make_runner(executor, journal=path, event_tx=Watching(), max_concurrency=3).stream(make_specs(25))
    for outcome in stream:
        assert outcome.task_id in {record.task_id for record in reader.records("default")}
    assert len(told) == 25
    assert missing == []


def _echo(spec: AgentStepSpec) -> str:
    return spec.prompt


def test_events_tell_only_of_steps_that_run(ledger: Ledger, journal: Journal) -> None:
    """A step from the journal does not start; the end of the run counts it."""
    Runner(LedgerExecutor(ledger), journal=journal).run(make_specs(3))
    events: list[Any] = []
    with EventChannel() as channel:
        channel.listen(events.append)
        Runner(LedgerExecutor(ledger), journal=journal, event_tx=channel).run(make_specs(5))
    assert sorted(event.task_id for event in events if isinstance(event, SubagentStart)) == ["t3", "t4"]
    assert isinstance(events[-1], RunEnd)
    assert events[-1].succeeded == 5


# Conflicts -----------------------------------------------------------------------------------------------------------


def test_a_changed_spec_is_refused_before_anything_runs(ledger: Ledger, journal: Journal) -> None:
    """The steps and the fields that differ are named; all of them, from a list or a generator."""
    Runner(LedgerExecutor(ledger, {"t3": _raise}), journal=journal.workflow("w")).run(make_specs(4))
    changed = make_specs(6)
    changed[1] = evolve(changed[1], prompt="else", max_steps=3)
    changed[3] = evolve(changed[3], agent="other")
    for specs in (changed, iter(changed)):
        with pytest.raises(JournalConflict) as caught:
            Runner(LedgerExecutor(ledger), journal=journal.workflow("w")).run(specs)
        assert caught.value.conflicts == {"t1": ("prompt", "max_steps"), "t3": ("agent",)}
        assert "'t1' (prompt, max_steps), 't3' (agent)" in str(caught.value)
        assert "workflow 'w'" in str(caught.value)
        assert "on_conflict='rerun'" in str(caught.value)
    assert ledger.counts() == {f"t{n}": 1 for n in range(4)}, "nothing was run"


def test_every_field_counts(ledger: Ledger, journal: Journal) -> None:
    """Also a schema that is equal in Python and not as JSON; not the order of its keys."""
    spec = AgentStepSpec("t", "tester", "d", "{}", 1, "parent", {"a": 1, "b": [True]})
    Runner(LedgerExecutor(ledger), journal=journal).run([spec])
    same = evolve(spec, output_schema={"b": [True], "a": 1})
    assert Runner(LedgerExecutor(ledger), journal=journal).run([same]).records[0].from_journal
    for change in (
        {"agent": "x"},
        {"description": "x"},
        {"prompt": "x"},
        {"max_steps": None},
        {"parent_session_id": None},
        {"output_schema": {"a": 1, "b": [1]}},
    ):
        with pytest.raises(JournalConflict) as caught:
            Runner(LedgerExecutor(ledger), journal=journal).run([evolve(spec, **change)])
        assert caught.value.conflicts == {"t": tuple(change)}


def test_conflicts_can_be_run_again(ledger: Ledger, journal: Journal) -> None:
    """With `on_conflict="rerun"`: only they, and then they are what is journalled."""
    rerun = journal.workflow("w", on_conflict="rerun")
    Runner(LedgerExecutor(ledger), journal=rerun).run(make_specs(3))
    changed = make_specs(3)
    changed[1] = evolve(changed[1], prompt="else")
    run = Runner(LedgerExecutor(ledger), journal=rerun).run(changed)
    assert [outcome.output for outcome in run] == ["0", "else", "2"]
    assert ledger.counts() == {"t0": 1, "t1": 2, "t2": 1}
    assert Runner(LedgerExecutor(ledger), journal=journal.workflow("w")).run(changed).records[1].from_journal


def test_two_steps_with_one_name_are_refused(ledger: Ledger, journal: Journal) -> None:
    """Before anything runs, by name, even if they are equal; a run without a journal takes them."""
    specs = [*make_specs(3), *make_specs(2)]
    for given in (specs, iter(specs)):
        with pytest.raises(JournalConflict, match="the same task_id: 't0', 't1'; in a journal it names the step") as e:
            Runner(LedgerExecutor(ledger), journal=journal).run(given)
        assert e.value.conflicts == {"t0": (), "t1": ()}
    assert not ledger.counts()
    assert len(Runner(LedgerExecutor(ledger)).run(specs)) == 5


def test_when_a_stream_finds_conflicts(ledger: Ledger, journal: Journal) -> None:
    """Of a list, before anything runs; of a generator, when it comes to them: what came before is finished first."""
    runner = Runner(LedgerExecutor(ledger), journal=journal)
    runner.run(make_specs(1))
    specs = [*make_specs(4), evolve(make_specs(1)[0], task_id="t1")]
    with pytest.raises(JournalConflict, match="the same task_id: 't1'"):
        next(runner.stream(specs))
    assert ledger.counts() == {"t0": 1}
    taken: list[str] = []
    with pytest.raises(JournalConflict, match="the same task_id: 't1'"):
        _take_all(runner.stream(iter(specs)), taken)
    assert taken == ["t0", "t1", "t2", "t3"]
    assert len(journal.records("default")) == 4
    changed = [make_specs(1)[0], evolve(make_specs(2)[1], prompt="else")]
    with pytest.raises(JournalConflict, match=r"what differs: 't1' \(prompt\)"):
        list(runner.stream(iter(changed)))


def _take_all(stream: Iterator[StepOutcome], taken: list[str]) -> None:
    for outcome in stream:
        taken.append(outcome.task_id)


def test_steps_read_before_the_input_raised_are_run(ledger: Ledger, journal: Journal) -> None:
    """As without a journal; and what was done is journalled."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(3)
        raise OSError("gone")

    with pytest.raises(InputError, match="the input raised after 3 specs: OSError: gone") as caught:
        Runner(LedgerExecutor(ledger), journal=journal).run(specs())
    assert len(caught.value.run) == 3
    assert len(journal.records("default")) == 3
    with pytest.raises(InputError, match="specs must be an iterable of AgentStepSpec, got int 3"):
        Runner(LedgerExecutor(ledger), journal=journal).run(3)  # type: ignore[arg-type]  # that is the point
    mixed: list[Any] = [*make_specs(2), "garbage"]
    with pytest.raises(InputError, match=r"specs\[2\] is str 'garbage'"):
        Runner(LedgerExecutor(ledger), journal=journal).run(mixed)


def test_a_spec_that_cannot_be_journalled_is_refused_before_anything_runs(ledger: Ledger, journal: Journal) -> None:
    """It has no JSON, so no identity; without a journal, threads run it."""
    specs = make_specs(3)
    specs[2] = evolve(specs[2], output_schema={"x": float("nan")})
    with pytest.raises(InputError, match=r"specs\[2\] cannot be journalled: output_schema.x"):
        Runner(LedgerExecutor(ledger), journal=journal).run(specs)
    assert not ledger.counts()


# Who else uses it ----------------------------------------------------------------------------------------------------


def test_two_runs_on_one_workflow(ledger: Ledger, journal: Journal) -> None:
    """The second one is refused, naming who has it; on another workflow it may run."""
    stream = Runner(LedgerExecutor(ledger), journal=journal.workflow("w")).stream(make_specs(5))
    next(stream)
    with pytest.raises(JournalError, match=f"{os.getpid()}") as caught:
        Runner(LedgerExecutor(ledger), journal=journal.workflow("w")).run(make_specs(5))
    assert caught.value.run is None
    assert len(Runner(LedgerExecutor(ledger), journal=journal.workflow("other")).run(make_specs(2))) == 2
    stream.close()
    assert len(Runner(LedgerExecutor(ledger), journal=journal.workflow("w")).run(make_specs(5)).succeeded) == 5


def test_two_processes_on_one_workflow(ledger: Ledger, tmp_path: Path) -> None:
    """The second one is refused, naming process and host; when the first is killed, it takes over."""
    path = tmp_path / "run.db"
    runner = Runner(LedgerExecutor(ledger), journal=SqliteJournal(path).workflow("w"))
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        with pytest.raises(JournalError, match=rf"\b{process.pid}\b.*{os.uname().nodename}"):
            runner.run(make_specs(3))
        assert not ledger.counts()
        process.kill()
        assert eventually(lambda: process.poll() is not None)
        assert len(runner.run(make_specs(3)).succeeded) == 3


def test_a_run_that_is_refused_or_fails_lets_go(ledger: Ledger, journal: Journal) -> None:
    """Whatever ends a run, the next one finds the workflow free."""
    runner = Runner(LedgerExecutor(ledger), journal=journal)
    with pytest.raises(JournalConflict):
        runner.run([*make_specs(1), *make_specs(1)])

    def interrupted() -> Iterator[AgentStepSpec]:
        yield from make_specs(2)
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted):
        list(runner.stream(interrupted()))
    with pytest.raises(FanoutInterrupted) as caught:
        runner.run(interrupted())
    assert len(caught.value.run) == 0, "all specs are read before the first is run"
    assert len(runner.run(make_specs(3)).succeeded) == 3


# Faults --------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills(tmp_path: Path, ledger: Ledger) -> None:
    """The run ends with a clear error that has all that was done; the journal is intact, and goes on with more room."""
    with small_disk(tmp_path / "disk", kib=512) as disk:
        path = disk / "run.db"
        executor = FunctionExecutor({"tester": lambda spec: f"{spec.prompt}: {'x' * 4000}"}, concurrency=4)
        with pytest.raises(JournalError, match="full") as caught:
            Runner(executor, journal=path).run(make_specs(2000))
        assert caught.value.run is not None
        done = {outcome.task_id for outcome in caught.value.run if outcome.success}
        kept = {record.task_id for record in SqliteJournal(path).records("default")}
        assert kept
        assert kept <= done
        assert len(done - kept) <= 4, "those that were under way"
        assert not [record for record in caught.value.run.records if record.status == "cancelled"]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, timeout=HANG_BOUND_S)
        run = Runner(executor, journal=path).run(make_specs(2000))
        assert len(run.succeeded) == 2000
        assert sum(record.from_journal for record in run.records) == len(kept)


def test_a_stream_whose_journal_fails(tmp_path: Path) -> None:
    """What is not durable is not handed out; the error has it."""
    with small_disk(tmp_path / "disk", kib=512) as disk:
        path = disk / "run.db"
        executor = FunctionExecutor({"tester": lambda spec: f"{spec.prompt}: {'x' * 4000}"}, concurrency=4)
        taken: list[str] = []
        with pytest.raises(JournalError, match="full") as caught:
            _take_all(Runner(executor, journal=path).stream(make_specs(2000)), taken)
        kept = {record.task_id for record in SqliteJournal(path).records("default")}
        assert set(taken) <= kept
        assert caught.value.run is not None
        assert not set(taken) & {outcome.task_id for outcome in caught.value.run}


@pytest.mark.parametrize("content", [b"no database, but long enough to be taken for one" * 100, b"SQLite format 3\0"])
def test_a_file_that_is_no_journal(tmp_path: Path, content: bytes, ledger: Ledger) -> None:
    """It is refused before anything runs, by name, and is not touched."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"notes\.txt"):
        Runner(LedgerExecutor(ledger), journal=path).run(make_specs(2))
    assert path.read_bytes() == content
    assert not ledger.counts()


def test_a_place_that_is_not_there(tmp_path: Path, ledger: Ledger) -> None:
    """It is refused before anything runs, by name."""
    with pytest.raises(JournalError, match="missing"):
        Runner(LedgerExecutor(ledger), journal=tmp_path / "missing" / "run.db").run(make_specs(2))
    assert not ledger.counts()


@pytest.mark.parametrize("value", [3, "", b"run.db", SqliteJournal, object()])
def test_an_invalid_journal_argument_is_refused(value: Any, ledger: Ledger) -> None:
    """At construction, by name."""
    with pytest.raises(OptionError, match="journal must be the path of an SQLite file, a Journal or"):
        Runner(LedgerExecutor(ledger), journal=value)


@pytest.mark.parametrize("arguments", [("",), (3,), ("w", "overwrite")])
def test_bad_workflows_are_refused(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    """At construction, by name."""
    with pytest.raises(OptionError, match=r"workflow_id must be a str|on_conflict must be 'refuse' or 'rerun'"):
        SqliteJournal(tmp_path / "run.db").workflow(*arguments)


def test_an_interrupted_run_has_journalled_what_was_done(ledger: Ledger, journal: Journal) -> None:
    """What the error has as done is not run again; what it has as cancelled is."""

    def specs() -> Iterator[AgentStepSpec]:
        yield from make_specs(5)
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted) as caught:
        for _ in Runner(LedgerExecutor(ledger, concurrency=1), journal=journal).stream(specs(), order="completion"):
            pass
    kept = {record.task_id for record in journal.records("default")}
    assert {outcome.task_id for outcome in caught.value.run.succeeded} <= kept
    run = Runner(LedgerExecutor(ledger), journal=journal).run(make_specs(5))
    assert [record.task_id for record in journal.records("default")] == [f"t{n}" for n in range(5)]
    assert len(run.succeeded) == 5
    assert all(ledger.counts()[task_id] == 1 for task_id in kept)


def test_a_value_that_changes_during_the_write_fails_only_its_step(ledger: Ledger, journal: Journal) -> None:
    """On threads `structured` is the step's own object: what is journalled is what is handed out."""
    shared: dict[str, Any] = {"n": 0}
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            shared[str(n % 500)] = n
            shared.pop(str((n + 250) % 500), None)

    def share(spec: AgentStepSpec) -> StepOutcome:
        return StepOutcome.completed(spec, "ok", shared)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        run = Runner(FunctionExecutor({"tester": share}), journal=journal).run(make_specs(200))
    finally:
        stop.set()
        thread.join(HANG_BOUND_S)
    assert len(run) == 200
    assert {record.status for record in run.records} <= {"succeeded", "invalid"}
    assert [record.outcome for record in journal.records("default")] == list(run)


TWO_SIGNALS = """
import os, signal, sys, threading, time
from fanout_sync import *
from fanout_sync.testing import make_specs

def step(spec):
    if spec.prompt == "20":
        def twice():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(float(sys.argv[2]))
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=twice).start()
    time.sleep(0.005)
    return spec.prompt

try:
    Runner(FunctionExecutor({"tester": step}), journal=sys.argv[1]).run(make_specs(2000))
except FanoutInterrupted as interrupted:
    while True:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes later is nothing to the library
            break
        except KeyboardInterrupt:
            pass
    print(len(interrupted.run), len(SqliteJournal(sys.argv[1]).records("default")) >= len(interrupted.run.succeeded))
"""


@pytest.mark.parametrize("apart_s", [0, 0.002, 0.005, 0.01, 0.02])
def test_an_interrupt_that_comes_twice(tmp_path: Path, apart_s: float) -> None:
    """As when a process manager and the terminal send it: the second one does not disturb the closing journal."""
    command = [sys.executable, "-c", TWO_SIGNALS, str(tmp_path / "run.db"), str(apart_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False)
    assert (done.stdout, done.stderr) == ("2000 True\n", "")


KILLED = """
import random, sys, time
from fanout_sync import *
from fanout_sync.testing import Ledger, make_specs
path, ledger, backend = sys.argv[1:]
ledger = Ledger(ledger)

class Agent(AgentExecutor):
    def __init__(self, ledger):
        self.ledger = ledger
    def execute_step(self, spec, event_tx=None):
        self.ledger.note(spec.task_id)
        time.sleep(random.uniform(0, 0.01))
        return StepOutcome.completed(spec, spec.prompt)

print("ready", flush=True)
run = Runner(Agent(ledger), backend=backend, max_concurrency=8, journal=path).run(make_specs(500))
print(len(run.succeeded), len(set(outcome.task_id for outcome in run)), flush=True)
"""


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_run_that_is_killed_ten_times(backend: str, tmp_path: Path) -> None:
    """`kill -9` of the process group at random moments: no journalled step runs again; only running steps are lost."""
    path, ledger, chance = tmp_path / "run.db", Ledger(tmp_path / "ledger"), random.Random(backend)
    command = [sys.executable, "-c", KILLED, str(path), str(ledger.path), backend]
    kept: set[str] = set()
    before = ledger.counts()
    kills = 0
    while kills < 10:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            _wait_for_steps(ledger, before, chance.randint(5, 40), process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            process.wait(HANG_BOUND_S)
        now = _settled(ledger)
        again = {task_id for task_id in kept if now[task_id] > before[task_id]}
        assert not again, "what was journalled ran again"
        journalled = {record.task_id for record in SqliteJournal(path).records("default")}
        assert kept <= journalled, "what was journalled is lost"
        begun = {task_id for task_id in now if now[task_id] > before[task_id]}
        assert len(begun - journalled) <= 8, "more was lost than could run at once"
        kept, before = journalled, now
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=True)
    assert done.stdout == "ready\n500 500\n"
    counts = ledger.counts()
    assert len(counts) == 500
    assert counts.total() <= 500 + 10 * 8
    assert [record.task_id for record in SqliteJournal(path).records("default")] == [f"t{n}" for n in range(500)]


def _wait_for_steps(ledger: Ledger, before: Any, count: int, process: subprocess.Popen[str]) -> None:
    assert eventually(lambda: ledger.counts().total() >= before.total() + count or process.poll() is not None)


def _settled(ledger: Ledger) -> Any:
    """Return the counts of the ledger when they no longer change: workers may outlive their killed caller a little."""
    last = ledger.counts()
    clock = threading.Event()
    while True:
        clock.wait(0.3)
        if (now := ledger.counts()) == last:
            return now
        last = now


# Moving, pipelines, loops --------------------------------------------------------------------------------------------


def test_a_run_moves_to_another_machine(ledger: Ledger, journal: Journal, tmp_path: Path) -> None:
    """Steps of a checkpoint do not run again; it has no specs, so only `task_id` and agent are compared."""
    Runner(LedgerExecutor(ledger, {"t1": _raise}), journal=journal.workflow("w")).run(make_specs(3))
    there = SqliteJournal(tmp_path / "there.db")
    assert there.import_checkpoint(journal.export_checkpoint("w")) == "w"
    run = Runner(LedgerExecutor(ledger), journal=there.workflow("w")).run(make_specs(4))
    assert [record.from_journal for record in run.records] == [True, False, True, False]
    assert ledger.counts() == {"t0": 1, "t1": 2, "t2": 1, "t3": 1}
    other = [evolve(spec, agent="other") for spec in make_specs(1)]
    moved = MemoryJournal()
    moved.import_checkpoint(journal.export_checkpoint("w"))
    with pytest.raises(JournalConflict) as caught:
        Runner(LedgerExecutor(ledger), journal=moved.workflow("w")).run(other)
    assert caught.value.conflicts == {"t0": ("agent",)}


def _draft(outcome: StepOutcome | None, item: Any) -> AgentStepSpec:
    return AgentStepSpec(f"draft-{item}", "tester", "", f"{item}")


def _refine(outcome: StepOutcome | None, item: Any) -> AgentStepSpec:
    assert outcome is not None
    return AgentStepSpec(f"refine-{item}", "tester", "", f"{outcome.output}!")


def test_a_pipeline_resumes(ledger: Ledger, journal: Journal) -> None:
    """Finished steps of a chain are not run again, also where a later one failed."""
    executor = LedgerExecutor(ledger, {"refine-b": _raise})
    first = Runner(executor, journal=journal).pipeline("abc", [_draft, _refine])
    assert [outcome and outcome.success for outcome in first] == [True, False, True]
    second = execute_pipeline(LedgerExecutor(ledger), "abcd", [_draft, _refine], journal=journal)
    assert [outcome and outcome.output for outcome in second] == ["a!", "b!", "c!", "d!"]
    assert ledger.counts() == {
        "draft-a": 1,
        "draft-b": 1,
        "draft-c": 1,
        "draft-d": 1,
        "refine-a": 1,
        "refine-b": 2,
        "refine-c": 1,
        "refine-d": 1,
    }


def test_a_pipeline_with_a_conflict(ledger: Ledger, journal: Journal) -> None:
    """It is found when the spec is made; what is under way is finished first."""

    def same(outcome: StepOutcome | None, item: Any) -> AgentStepSpec:
        return AgentStepSpec("same", "tester", "", "x")

    with pytest.raises(JournalConflict, match="'same'") as caught:
        Runner(LedgerExecutor(ledger), journal=journal, max_concurrency=1).pipeline("ab", [same])
    assert caught.value.run is not None
    assert [outcome.task_id for outcome in caught.value.run] == ["same"]


def test_a_loop_resumes(ledger: Ledger, journal: Journal) -> None:
    """Rounds that were done are repeated from the journal without running a step."""

    def next_round(outcomes: Sequence[StepOutcome]) -> Continue | Stop:
        number = int(outcomes[0].output) + 1
        return Continue([AgentStepSpec(f"round-{number}", "tester", "", f"{number}")]) if number < 4 else Stop()

    initial = [AgentStepSpec("round-0", "tester", "", "0")]
    executor = LedgerExecutor(ledger, {"round-2": _raise})
    with pytest.raises(InputError):
        Runner(executor, journal=journal).loop(initial, 9, next_round)
    outcomes = Runner(LedgerExecutor(ledger), journal=journal).loop(initial, 9, next_round)
    assert [outcome.output for outcome in outcomes] == ["3"]
    assert ledger.counts() == {"round-0": 1, "round-1": 1, "round-2": 2, "round-3": 1}


def test_rounds_of_a_loop_need_names_of_their_own(ledger: Ledger, journal: Journal) -> None:
    """A loop is one journalled run: a name from an earlier round would be taken for that step."""
    runner = Runner(LedgerExecutor(ledger), journal=journal)
    with pytest.raises(JournalConflict, match="'t0'") as caught:
        runner.loop(make_specs(1), 3, lambda outcomes: Continue(make_specs(1)))
    assert caught.value.run is not None
    assert [outcome.output for outcome in caught.value.run] == ["0"], "the round that was done is not lost"
    assert ledger.counts() == {"t0": 1}


# Size ----------------------------------------------------------------------------------------------------------------

LARGE = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from journalled import record
from fanout_sync import *
from fanout_sync.journal import SqliteJournal
from fanout_sync.journal.identity import identity_of
from attrs import evolve
COUNT = 100_000
journal = SqliteJournal(sys.argv[1])

def specs():
    for n in range(COUNT):
        yield AgentStepSpec(f"step-{n}", "coder", "a step", f"do {n}")

opened = journal.open("w")
chunk = []
for n, spec in enumerate(specs()):
    chunk.append(evolve(record(spec.task_id, n), spec=spec, identity=identity_of("w", spec)))
    if len(chunk) == 5000:
        opened.write(chunk)
        chunk.clear()
opened.close()

def never(spec):
    raise AssertionError(spec)

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

stream = Runner(FunctionExecutor({"coder": never}), journal=journal.workflow("w")).stream(specs())
succeeded = sum(next(stream).success for _ in range(1000))
before = peak_kib()
succeeded += sum(outcome.success for outcome in stream)
print(succeeded, peak_kib() - before)
"""


def test_a_hundred_thousand_steps(tmp_path: Path) -> None:
    """A stream finds all of them in the journal and runs none, in memory that does not grow with their number."""
    command = [sys.executable, "-c", LARGE, str(tmp_path / "run.db"), str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    succeeded, grown_kib = map(int, done.stdout.split())
    assert succeeded == 100_000
    assert grown_kib < 8 * 1024, f"{grown_kib} KiB"
