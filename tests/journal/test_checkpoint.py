"""Checkpoints: what is done leaves a journal as JSON, and comes into one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from attrs import evolve
from journalled import record

from fanout_sync.errors import JournalError, WireError
from fanout_sync.journal import Journal, MemoryJournal, SqliteJournal
from fanout_sync.records.step_record import JournalRecord
from fanout_sync.records.steps import StepOutcome

OUTCOME = {"task_id": "a", "session_id": "s", "agent": "coder", "output": "done", "success": True}


@pytest.fixture(params=["sqlite", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return SqliteJournal(tmp_path / "runs.db") if request.param == "sqlite" else MemoryJournal()


def fill(journal: Journal, *records: JournalRecord) -> None:
    opened = journal.open("w")
    opened.write(records)
    opened.close()


def checkpoint(*outcomes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    steps = [{"task_id": outcome["task_id"], "outcome": outcome} for outcome in outcomes]
    return {"schema_version": 1, "workflow_id": "w", "steps": steps, "checkpoint_ms": 1, **changes}


def test_successes_are_exported(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint has the steps that succeeded, in order, as compact JSON."""
    monkeypatch.setattr(time, "time", lambda: 1700000000.9876)
    fill(journal, record("b", 1, output="für"), record("f", 2, success=False), record("a", 0))
    assert journal.export_checkpoint("w") == (
        '{"schema_version":1,"workflow_id":"w","steps":['
        '{"task_id":"a","outcome":{"task_id":"a","session_id":"task-run-a","agent":"coder","output":"done",'
        '"success":true}},'
        '{"task_id":"b","outcome":{"task_id":"b","session_id":"task-run-b","agent":"coder","output":"für",'
        '"success":true}}],"checkpoint_ms":1700000000987}'
    )


def test_an_unknown_workflow_has_no_checkpoint(journal: Journal) -> None:
    """The error names the workflow; a workflow without steps has a checkpoint without steps."""
    fill(journal)
    with pytest.raises(JournalError, match=r"there is no workflow 'v' in (SqliteJournal|MemoryJournal)"):
        journal.export_checkpoint("v")
    assert json.loads(journal.export_checkpoint("w"))["steps"] == []


def test_an_outcome_that_nests_too_deep_is_named(journal: Journal) -> None:
    """An outcome at the limit of nesting is beyond it inside a checkpoint, which could not be read."""
    nested: Any = 1
    for _ in range(126):
        nested = [nested]
    deep = evolve(record("a"), outcome=StepOutcome("a", "s", "coder", "", True, nested))
    fill(journal, deep)
    assert list(journal.records("w")) == [deep]
    with pytest.raises(JournalError, match=r"'w' cannot be exported: .*nested deeper"):
        journal.export_checkpoint("w")


@pytest.mark.parametrize("form", [json.dumps, lambda data: json.dumps(data).encode(), dict, MappingProxyType])
def test_a_checkpoint_is_imported(journal: Journal, form: Callable[[Any], Any]) -> None:
    """From text, bytes or a mapping: outcomes are journalled, failed ones as failed; times and workers are unknown."""
    failed = {**OUTCOME, "task_id": "b", "success": False}
    assert journal.import_checkpoint(form(checkpoint(OUTCOME, failed, unknown=[1]))) == "w"
    first, second = journal.records("w")
    outcome = StepOutcome.from_dict(OUTCOME)
    assert (first.index, first.task_id, first.status, first.outcome) == (0, "a", "succeeded", outcome)
    assert (first.spec, first.identity, first.attempts, first.started) == (None, None, (), None)
    assert (second.index, second.task_id, second.status, second.outcome.success) == (1, "b", "failed", False)


def test_an_imported_checkpoint_exports_the_same(journal: Journal) -> None:
    """What one journal exports, another imports, and exports again with only the time changed."""
    fill(journal, *(record(f"{i:03}", i) for i in range(100)))
    text = journal.export_checkpoint("w")
    other = MemoryJournal()
    assert other.import_checkpoint(text) == "w"
    assert {**json.loads(other.export_checkpoint("w")), "checkpoint_ms": 0} == {**json.loads(text), "checkpoint_ms": 0}


def test_a_success_that_is_journalled_is_kept(journal: Journal) -> None:
    """A checkpoint replaces a journalled step that failed, but not one that succeeded; other steps stay."""
    fill(journal, record("a", 5, output="mine"), record("b", 6, success=False), record("c", 7))
    journal.import_checkpoint(checkpoint(OUTCOME, {**OUTCOME, "task_id": "b"}))
    found = {step.task_id: step for step in journal.records("w")}
    assert (found["a"], found["c"]) == (record("a", 5, output="mine"), record("c", 7))
    assert (found["b"].outcome.output, found["b"].index, found["b"].status) == ("done", 1, "succeeded")


def test_a_checkpoint_without_a_version_is_an_old_one(journal: Journal) -> None:
    """It is read as version 0, which has the same fields."""
    old = checkpoint(OUTCOME)
    del old["schema_version"]
    assert journal.import_checkpoint(old) == "w"
    assert len(journal.records("w")) == 1


def test_a_newer_checkpoint_is_refused(journal: Journal) -> None:
    """Whatever else it contains, the error says to upgrade."""
    with pytest.raises(JournalError, match=r"newer version \(schema 2, this one reads up to 1\); upgrade"):
        journal.import_checkpoint({"schema_version": 2})


def test_a_workflow_in_use_is_not_imported_into(journal: Journal) -> None:
    """A living run holds it; afterwards it is free, and nobody holds it after an import either."""
    opened = journal.open("w")
    with pytest.raises(JournalError, match="held by this process"):
        journal.import_checkpoint(checkpoint(OUTCOME))
    opened.close()
    journal.import_checkpoint(checkpoint(OUTCOME))
    journal.open("w").close()


STEP = {"task_id": "a", "outcome": OUTCOME}


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        ("", "", "no valid JSON"),
        (b"\xff", "", "expected UTF-8"),
        ("[]", "", "expected an object, got an array"),
        ('{"workflow_id":"w","workflow_id":"w"}', "workflow_id", "duplicate key"),
        (checkpoint(schema_version="1"), "schema_version", "expected an integer of at least 0, got the string '1'"),
        (checkpoint(schema_version=None), "schema_version", "expected an integer of at least 0, got null"),
        (checkpoint(schema_version=True), "schema_version", "expected an integer of at least 0, got true"),
        (checkpoint(schema_version=1.0), "schema_version", "expected an integer of at least 0, got the number 1.0"),
        (checkpoint(schema_version=-1), "schema_version", "expected an integer of at least 0, got the integer -1"),
        (checkpoint(workflow_id=7), "workflow_id", "expected a string, got the integer 7"),
        (checkpoint(workflow_id=""), "workflow_id", "expected a string that is not empty"),
        (checkpoint(workflow_id="\ud800"), "workflow_id", "a lone surrogate"),
        ({"steps": []}, "workflow_id", "missing; a checkpoint requires it"),
        ({"workflow_id": "w"}, "steps", "missing; a checkpoint requires it"),
        (checkpoint(steps={}), "steps", "expected an array, got an object"),
        (checkpoint(checkpoint_ms="now"), "checkpoint_ms", "expected an integer"),
        (checkpoint(steps=[STEP, 7]), "steps[1]", "expected an object, got the integer 7"),
        (checkpoint(steps=[{"task_id": "a"}]), "steps[0].outcome", "missing; a checkpoint requires it"),
        (checkpoint(steps=[{"outcome": OUTCOME}]), "steps[0].task_id", "missing; a checkpoint requires it"),
        (checkpoint(steps=[{**STEP, "task_id": 1}]), "steps[0].task_id", "expected a string, got the integer 1"),
        (checkpoint(steps=[{**STEP, "outcome": []}]), "steps[0].outcome", "expected an object, got an array"),
        (
            checkpoint({**OUTCOME, "success": 1}),
            "steps[0].outcome.success",
            "expected true or false, got the integer 1",
        ),
        (checkpoint({**OUTCOME, "structured": [{1}]}), "steps[0].outcome.structured[0]", "expected a JSON value"),
        (checkpoint(steps=[STEP, STEP]), "steps[1].task_id", "duplicate; steps[0] is that step too"),
    ],
)
def test_an_invalid_checkpoint_is_refused(journal: Journal, wrong: Any, field: str, reason: str) -> None:
    """The field at fault is named, nothing is journalled, and no workflow is created."""
    fill(journal)
    journal.delete("w")
    with pytest.raises(WireError, match=re.escape(reason)) as caught:
        journal.import_checkpoint(wrong)
    assert caught.value.field == field
    assert journal.workflows() == []


def test_a_checkpoint_that_is_a_number_is_refused(journal: Journal) -> None:
    """A number is neither JSON text nor a mapping."""
    with pytest.raises(TypeError, match="JSON is read from str or bytes, got int"):
        journal.import_checkpoint(7)  # type: ignore[arg-type]
