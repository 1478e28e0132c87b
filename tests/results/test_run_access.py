"""A run by task id, as values and as rows of a table; a record as a dict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from fanout_sync import (
    AgentStepSpec,
    FanoutInterrupted,
    FunctionExecutor,
    Run,
    Runner,
    SqliteJournal,
    StepOutcome,
    StepRecord,
    Usage,
    current_step,
)
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def work(spec: AgentStepSpec) -> Any:
    """Do what the prompt says."""
    if spec.prompt == "raise":
        raise ValueError(f"no {spec.task_id}")
    if spec.prompt == "spend":
        current_step().add_usage(prompt_tokens=30, completion_tokens=7, cost_usd=0.25)
        return "spent"
    if spec.prompt == "fail":
        return StepOutcome.failed(spec.task_id, spec.agent, "not today")
    if spec.prompt == "structured":
        return {"deep": [1, {"er": "ü"}]}
    if spec.prompt == "empty":
        return []
    if spec.prompt == "die":
        os._exit(7)
    return spec.prompt


def specs_of(*prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{place}", "worker", "", prompt) for place, prompt in enumerate(prompts)]


EXECUTOR = FunctionExecutor({"worker": work, "tester": work})
PROMPTS = ("plain", "structured", "raise", "fail", "spend", "empty")


# By task id -----------------------------------------------------------------------------------------------------------


def test_a_step_is_found_by_its_task_id(make_runner: MakeRunner) -> None:
    """`run["t1"]` is the outcome of that step; indices and slices are what they were."""
    run = make_runner(EXECUTOR).run(specs_of(*PROMPTS))
    assert run["t1"] is run[1]
    assert [run[spec.task_id] for spec in specs_of(*PROMPTS)] == list(run)
    assert run[-1] == run["t5"]
    assert run[1:3] == [run["t1"], run["t2"]]


def test_an_unknown_task_id_is_a_key_error_with_similar_ones() -> None:
    """The error says what was asked for and, if any are similar, what it may have meant."""
    run = Runner(EXECUTOR).run([AgentStepSpec(name, "worker", "", "x") for name in ("review-a", "review-b", "plan")])
    with pytest.raises(KeyError, match=r"no step of this run has the task_id 'reviev-a'; did you mean 'review-a'"):
        run["reviev-a"]
    with pytest.raises(KeyError) as caught:
        run[""]
    assert caught.value.args == ("no step of this run has the task_id ''",)


def test_an_ambiguous_task_id_is_a_key_error_with_the_indices() -> None:
    """Two steps with one task id are told apart by their indices; the others are found as usual."""
    run = Runner(EXECUTOR).run([AgentStepSpec(name, "worker", "", name) for name in ("a", "b", "a", "c", *"aaaaa")])
    with pytest.raises(KeyError, match=r"7 steps of this run have the task_id 'a'; use an index: 0, 2, 4, 5, 6, …"):
        run["a"]
    assert run["c"].output == "c"


def test_membership_is_by_outcome_or_task_id() -> None:
    """`in` takes an outcome, as for any sequence of outcomes, or a task id, an ambiguous one included."""
    run = Runner(EXECUTOR).run(specs_of("x", "y"))
    everything: Sequence[Any] = run
    assert run[0] in run
    assert StepOutcome.failed("t0", "worker", "else") not in run
    assert "t1" in everything
    assert "t2" not in everything
    assert 0 not in everything
    assert (run.index(run[1]), run.count(run[0])) == (1, 1)


def test_the_run_of_an_error_is_accessible_by_task_id() -> None:
    """An interrupted run has its outcomes by id, too, and as a table."""
    stream = Runner(EXECUTOR, max_concurrency=1).stream(make_specs(3))
    next(stream)
    with pytest.raises(FanoutInterrupted) as caught:
        stream.throw(KeyboardInterrupt())
    assert caught.value.run["t2"].success is False
    assert "t2" in caught.value.run
    assert [row["task_id"] for row in caught.value.run.to_dicts()][-1] == "t2"
    assert caught.value.run.values()[-1] is None


# Values and tables ----------------------------------------------------------------------------------------------------


def test_values_are_structured_or_output_or_none(make_runner: MakeRunner) -> None:
    """One value for each step, in order; an empty list is a value."""
    run = make_runner(EXECUTOR).run(specs_of(*PROMPTS))
    assert run.values() == ["plain", {"deep": [1, {"er": "ü"}]}, None, None, "spent", []]
    assert Runner(EXECUTOR).run([]).values() == []


def test_rows_are_flat_and_have_the_same_keys(make_runner: MakeRunner) -> None:
    """Each row has the outcome and the record of a step, in JSON scalars alone."""
    run = make_runner(EXECUTOR).run(specs_of(*PROMPTS))
    rows = run.to_dicts()
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert all(value is None or isinstance(value, (str, int, float)) for row in rows for value in row.values())
    assert json.loads(json.dumps(rows)) == rows
    for row, outcome, record in zip(rows, run, run.records, strict=True):
        assert (row["index"], row["status"], row["worker"]) == (record.index, record.status, record.worker)
        assert (row["task_id"], row["agent"], row["session_id"]) == (
            outcome.task_id,
            outcome.agent,
            outcome.session_id,
        )
        assert (row["output"], row["success"]) == (outcome.output, outcome.success)
        assert datetime.fromisoformat(row["started"]) == record.started
        assert datetime.fromisoformat(row["finished"]) == record.finished
        assert (row["duration_s"], row["attempts"], row["from_journal"]) == (record.duration_s, 1, False)
    assert json.loads(rows[1]["structured"]) == run[1].structured
    assert rows[0]["structured"] is None
    assert (rows[2]["error_type"], rows[2]["error_message"]) == ("ValueError", "no t2")
    assert (rows[3]["error_type"], rows[3]["error_message"]) == (None, None)
    usage = [(row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) for row in rows]
    assert usage == [(None, None, None)] * 4 + [(30, 7, 0.25), (None, None, None)]


def test_rows_of_steps_that_never_began_or_died() -> None:
    """A cancelled step has neither times nor worker; a dead worker leaves its exit code."""
    run = Runner(EXECUTOR, backend="process", max_concurrency=1, max_failures=1).run(specs_of("die", "x"))
    died, cancelled = run.to_dicts()
    assert (died["status"], died["exit_code"], died["error_type"]) == ("crashed", 7, "WorkerDied")
    assert (cancelled["status"], cancelled["attempts"]) == ("cancelled", 0)
    assert cancelled["started"] is cancelled["finished"] is cancelled["duration_s"] is cancelled["worker"] is None


def test_rows_of_reused_steps(tmp_path: Path) -> None:
    """They have the same keys as the others, and say that they come from the journal."""
    for _ in range(2):
        run = Runner(EXECUTOR, journal=tmp_path / "run.db").run(specs_of("x", "raise"))
    rows = run.to_dicts()
    assert [row["from_journal"] for row in rows] == [True, False]
    assert list(rows[0]) == list(rows[1])


def test_the_usage_of_a_run_is_the_sum_of_its_steps(make_runner: MakeRunner, tmp_path: Path) -> None:
    """What failed attempts have used counts, too; what an earlier run has used does not."""
    journal = tmp_path / "run.db"
    run = make_runner(EXECUTOR, journal=journal).run(specs_of("spend", "spend", "x"))
    assert run.usage == Usage(60, 14, 0.5)
    assert make_runner(EXECUTOR, journal=journal).run(specs_of("spend", "spend", "x")).usage == Usage()
    assert Run([], 0.0).usage == Usage()


# Records --------------------------------------------------------------------------------------------------------------


def test_a_record_is_a_dict_of_json_values(make_runner: MakeRunner) -> None:
    """`to_dict` has every attribute; error, usage and attempts are dicts of theirs."""
    run = make_runner(EXECUTOR, retry=2).run(specs_of("spend", "raise", "fail"))
    spent, raised, failed = (record.to_dict() for record in run.records)
    for found, record in zip((spent, raised, failed), run.records, strict=True):
        assert json.loads(json.dumps(found)) == found
        assert list(found) == [attribute.name for attribute in attrs.fields(StepRecord)]
        assert datetime.fromisoformat(found["started"]) == record.started
    assert spent["usage"] == {"prompt_tokens": 30, "completion_tokens": 7, "cost_usd": 0.25}
    assert spent["error"] is None
    assert raised["error"]["type"] == "ValueError"
    assert "Traceback" in raised["error"]["traceback"]
    assert [attempt["number"] for attempt in raised["attempts"]] == [1, 2]
    assert raised["attempts"][1]["wait_s"] is None
    assert failed["attempts"] == [
        {"number": 1, "status": "failed", "reason": "not today", "duration_s": failed["duration_s"], "wait_s": None}
    ]


def test_a_record_of_a_journal_is_a_dict_too(tmp_path: Path) -> None:
    """It also has the outcome and the spec, in their wire form."""
    journal = SqliteJournal(tmp_path / "run.db")
    Runner(EXECUTOR, journal=journal.workflow("w")).run(specs_of("structured"))
    (record,) = journal.records("w")
    found = record.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert StepOutcome.from_dict(found["outcome"]) == record.outcome
    assert AgentStepSpec.from_dict(found["spec"]) == record.spec
    assert (found["task_id"], found["identity"], found["status"]) == ("t0", record.identity, "succeeded")
