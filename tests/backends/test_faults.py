"""The fault matrix of the design: whatever one step does, the others run exactly once and keep their outcomes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import misdeeds
import pytest

from fanout_sync import Run, Runner, StepOutcome, StepRecord
from fanout_sync.testing import Ledger, LedgerExecutor, Misdeed, make_specs

COUNT = 12
CULPRIT = 5


def run_with(misdeed: Misdeed, backend: str, ledger: Ledger, description: str = "") -> tuple[Run, StepRecord]:
    """Run twelve steps, one of which does `misdeed`; assert what holds for each misdeed."""
    specs = make_specs(COUNT)
    specs[CULPRIT] = attrs.evolve(specs[CULPRIT], description=description)
    executor = LedgerExecutor(ledger, {f"t{CULPRIT}": misdeed}, concurrency=3)
    run = Runner(executor, backend=backend).run(specs)  # type: ignore[arg-type]  # one of the two words
    assert [outcome.task_id for outcome in run] == [spec.task_id for spec in specs]
    assert [outcome.agent for outcome in run] == ["tester"] * COUNT
    assert [outcome.output for i, outcome in enumerate(run) if i != CULPRIT] == [
        str(i) for i in range(COUNT) if i != CULPRIT
    ]
    assert all(outcome.success for i, outcome in enumerate(run) if i != CULPRIT)
    assert ledger.counts() == {spec.task_id: 1 for spec in specs}
    return run, run.records[CULPRIT]


def assert_failed(run: Run, record: StepRecord, status: str, kind: str, text: str) -> None:
    outcome = run[CULPRIT]
    assert outcome.success is False
    assert outcome.session_id == f"task-run-t{CULPRIT}"
    assert text in outcome.output
    assert record.status == status
    assert record.error is not None
    assert record.error.type.endswith(kind)
    outcome.to_json()


RAISING: list[tuple[Misdeed, str, str]] = [
    (misdeeds.raise_value_error, "ValueError", "ValueError: boom"),
    (misdeeds.raise_system_exit, "SystemExit", "SystemExit: 3"),
    (misdeeds.raise_keyboard_interrupt, "KeyboardInterrupt", "KeyboardInterrupt: from a step"),
    (misdeeds.raise_generator_exit, "GeneratorExit", "GeneratorExit: odd"),
    (misdeeds.raise_falsy, "Falsy", "nothing to see"),
    (misdeeds.raise_unpicklable, "Unpicklable", "cannot travel"),
    (misdeeds.raise_unloadable, "Unloadable", "cannot arrive"),
    (misdeeds.raise_unprintable, "Unprintable", "Unprintable"),
    (misdeeds.raise_surrogate, "ValueError", "half a character: \\ud800"),
    (misdeeds.recurse, "RecursionError", "maximum recursion depth"),
]


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize(("misdeed", "kind", "text"), RAISING, ids=lambda value: getattr(value, "__name__", ""))
def test_a_step_that_raises(backend: str, misdeed: Misdeed, kind: str, text: str, ledger: Ledger) -> None:
    """Any exception fails its own step only, also a `BaseException` and one that does not pickle."""
    run, record = run_with(misdeed, backend, ledger)
    assert_failed(run, record, "raised", kind, text)
    assert record.error is not None
    assert record.error.traceback is not None
    assert misdeed.__name__ in record.error.traceback or "formatting it raised" in record.error.traceback


GARBAGE: list[tuple[Misdeed, str]] = [
    (misdeeds.return_none, "returned None"),
    (misdeeds.return_text, "str 'text'"),
    (misdeeds.return_surrogate, "output"),
    (misdeeds.return_object, "structured.deep[0]"),
    (misdeeds.return_nan, "structured[0]"),
    (misdeeds.return_cycle, "structured"),
    (misdeeds.return_uninitialized_outcome, "StepOutcome"),
    (misdeeds.return_outcome_that_kills_its_loader, "KillsItsLoader"),
]


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize(("misdeed", "text"), GARBAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_step_that_returns_garbage(backend: str, misdeed: Misdeed, text: str, ledger: Ledger) -> None:
    """A result that is no outcome, or that JSON cannot carry, becomes a failed outcome that says what came."""
    run, record = run_with(misdeed, backend, ledger)
    assert_failed(run, record, "invalid", "InvalidOutcome", text)


DYING: list[tuple[Misdeed, str]] = [
    (misdeeds.exit_at_once, "exited with code 7"),
    (misdeeds.segfault, "SIGSEGV"),
    (misdeeds.abort, "SIGABRT"),
    (misdeeds.kill_myself, "SIGKILL"),
    (misdeeds.terminate_myself, "SIGTERM"),
    (misdeeds.run_out_of_memory, "memory"),
    (misdeeds.die_while_sending, "SIGKILL"),
    (misdeeds.close_descriptors, "closes all descriptors"),
    (misdeeds.replace_descriptors, "closes all descriptors"),
    (misdeeds.write_to_every_socket, "wrote to a descriptor that is not its own"),
]


@pytest.mark.parametrize(("misdeed", "text"), DYING, ids=lambda value: getattr(value, "__name__", ""))
def test_a_step_that_kills_its_worker(misdeed: Misdeed, text: str, ledger: Ledger, tmp_path: Path) -> None:
    """The death of a worker fails only the step that it ran; the outcome names the exit code or the signal."""
    run, record = run_with(misdeed, "process", ledger, str(tmp_path / "scratch"))
    assert_failed(run, record, "crashed", "WorkerDied", text)
    assert isinstance(record.worker, int)
    assert str(record.worker) in run[CULPRIT].output
    assert (record.signal is None) != (record.exit_code is None)
    assert record.signal in (None, text) or misdeed in (misdeeds.run_out_of_memory, misdeeds.write_to_every_socket)
    assert record.exit_code in (None, 7) or "descriptors" in text


def test_replaced_descriptors_are_not_written_to(ledger: Ledger, tmp_path: Path) -> None:
    """Nothing is written to a file that a step opened with the number of the worker's own descriptor."""
    scratch = tmp_path / "scratch"
    run_with(misdeeds.replace_descriptors, "process", ledger, str(scratch))
    assert scratch.read_bytes() == b""


def test_the_death_of_a_worker_is_noticed_though_its_child_lives(ledger: Ledger, tmp_path: Path) -> None:
    """A dead worker is noticed even if a forked child still has all its descriptors open."""
    child = tmp_path / "child"
    try:
        run, record = run_with(misdeeds.fork_and_die, "process", ledger, str(child))
        assert_failed(run, record, "crashed", "WorkerDied", "SIGKILL")
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


HARMLESS: list[Misdeed] = [misdeeds.change_directory_and_environment, misdeeds.fork_and_return]


@pytest.mark.parametrize("misdeed", HARMLESS, ids=lambda value: value.__name__)
def test_a_step_that_changes_its_process(misdeed: Misdeed, ledger: Ledger) -> None:
    """A changed directory or a fork that returns twice changes no outcome and does not delay the end of the run."""
    run, _ = run_with(misdeed, "process", ledger)
    assert run[CULPRIT].success


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_step_that_leaves_a_thread(backend: str, ledger: Ledger) -> None:
    """A step that leaves a non-daemon thread running succeeds, and so do the others."""
    run, _ = run_with(misdeeds.leave_a_thread, backend, ledger)
    misdeeds.RELEASE.set()
    assert run[CULPRIT].success


def test_directory_and_environment_are_put_back(tmp_path: Path) -> None:
    """The next step in a worker finds the directory and the environment as they were before a step changed them."""
    specs = make_specs(3)
    executor = LedgerExecutor(
        Ledger(tmp_path / "ledger"),
        {
            "t0": misdeeds.report_directory_and_environment,
            "t1": misdeeds.change_directory_and_environment,
            "t2": misdeeds.report_directory_and_environment,
        },
        concurrency=1,
    )
    run = Runner(executor, backend="process").run(specs)
    assert run.records[0].worker == run.records[2].worker
    found: Any = run[0].structured
    assert found == run[2].structured
    assert found["cwd"] == str(Path.cwd())


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_very_large_output(backend: str, ledger: Ledger) -> None:
    """An output of 200 MB arrives complete."""
    run, record = run_with(misdeeds.return_large, backend, ledger)
    assert run[CULPRIT].output == "y" * 200_000_000
    assert record.status == "succeeded"


def test_two_hundred_steps_of_which_twenty_die(ledger: Ledger) -> None:
    """Twenty deaths of different kinds among two hundred steps on four workers fail exactly twenty steps."""
    ways: list[Callable[..., Any]] = [
        misdeeds.exit_at_once,
        misdeeds.segfault,
        misdeeds.abort,
        misdeeds.kill_myself,
        misdeeds.close_descriptors,
    ]
    culprits = {f"t{number}": ways[i % len(ways)] for i, number in enumerate(range(3, 200, 10))}
    specs = make_specs(200)
    run = Runner(LedgerExecutor(ledger, culprits, concurrency=4), backend="process").run(specs)
    assert [outcome.task_id for outcome in run] == [spec.task_id for spec in specs]
    assert {outcome.task_id for outcome in run.failed} == set(culprits)
    assert all(run.records[int(task_id[1:])].status == "crashed" for task_id in culprits)
    assert ledger.counts() == {spec.task_id: 1 for spec in specs}
    assert isinstance(run[3], StepOutcome)
