"""Schemas on the command line: `validate` checks them, and `run` goes by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def line(task_id: str, prompt: str, schema: Any) -> str:
    step = {"task_id": task_id, "agent": "echo", "description": "", "prompt": prompt, "output_schema": schema}
    return json.dumps(step)


GOOD = line("good", "[1]", {"type": "array"})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strng"}, "$.type: 'strng' is not valid under any of the given schemas"),
        (7, "$: 7 is not of type 'object', 'boolean'"),
        ({"$ref": "http://127.0.0.1:9/"}, "the reference 'http://127.0.0.1:9/' leads nowhere"),
        ({"properties": {"a\nb": {"minimum": "1"}}}, "minimum: '1' is not of type 'number'"),
    ],
)
@pytest.mark.parametrize("stdin", [False, True])
def test_validate_names_the_line_of_a_schema_that_is_none(schema: Any, said: str, stdin: bool, folder: Folder) -> None:
    """The message begins with file and line, is one line, and the status is 2."""
    (folder / "steps.jsonl").write_text("\n".join([GOOD, "", line("bad", "", schema), "nonsense"]))
    done = folder.shell("$FANOUT validate - < steps.jsonl") if stdin else folder.call("validate", "steps.jsonl")
    place = "<stdin>" if stdin else "steps.jsonl"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{place}:3: output_schema: no JSON Schema: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_validate_takes_schemas_of_any_dialect(folder: Folder) -> None:
    """Also `true`, and one that an older draft allows."""
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    (folder / "steps.jsonl").write_text("\n".join([GOOD, line("t", "", True), line("u", "", old)]))
    done = folder.call("validate", "steps.jsonl")
    assert (done.returncode, done.stdout) == (0, "3 steps are valid\n")


def test_run_reports_what_does_not_fit(folder: Folder) -> None:
    """Steps that fit succeed; the summary has the reason of the others, and not what the agent said."""
    (folder / "own.py").write_text("agents = {'echo': lambda spec: spec.prompt}\n")
    steps = [GOOD, line("text", "Sure!", {"type": "array"}), line("faulty", "[]", {"type": "strng"})]
    (folder / "steps.jsonl").write_text("\n".join(steps))
    done = folder.call("run", "steps.jsonl", "--executor", "own.py:agents")
    outcomes = [json.loads(text) for text in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [outcome["success"] for outcome in outcomes] == [True, False, False]
    assert outcomes[0]["structured"] == [1]
    assert "text (echo) invalid: structured output failed: $: the output has no JSON" in done.stderr
    assert "faulty (echo) invalid: output_schema is no JSON Schema: $.type: 'strng'" in done.stderr
