"""Writing the outcomes of a run to a JSON Lines file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, FunctionExecutor, Run, Runner, StepOutcome, WireError, write_outcomes
from fanout_sync.testing import make_specs


def work(spec: AgentStepSpec) -> Any:
    if spec.prompt == "1":
        raise ValueError("nö")
    return {"number": int(spec.prompt)}


RUN = Runner(FunctionExecutor({"tester": work})).run(make_specs(3))


def test_a_line_for_each_outcome(tmp_path: Path) -> None:
    """In order, failed ones included, byte for byte as `write_outcomes` writes them."""
    path = tmp_path / "out.jsonl"
    path.write_text("an older file")
    RUN.to_jsonl(path)
    assert [StepOutcome.from_json(line) for line in path.read_bytes().splitlines()] == list(RUN)
    write_outcomes(tmp_path / "also.jsonl", RUN)
    assert path.read_bytes() == (tmp_path / "also.jsonl").read_bytes()


def test_a_path_or_an_open_file(tmp_path: Path) -> None:
    """A text path, a text file or a binary one, which stay open."""
    text, binary = io.StringIO(), io.BytesIO()
    RUN.to_jsonl(text)
    RUN.to_jsonl(binary)
    RUN.to_jsonl(str(tmp_path / "out.jsonl"))
    assert text.getvalue().encode() == binary.getvalue() == (tmp_path / "out.jsonl").read_bytes()
    assert len(text.getvalue().splitlines()) == 3


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Is `"-"`."""
    RUN.to_jsonl("-")
    assert [json.loads(line)["task_id"] for line in capfd.readouterr().out.splitlines()] == ["t0", "t1", "t2"]


def test_an_empty_run_is_an_empty_file(tmp_path: Path) -> None:
    """It replaces what was there."""
    path = tmp_path / "out.jsonl"
    path.write_text("an older file")
    Run([], 0.0).to_jsonl(path)
    assert path.read_bytes() == b""


def test_errors_are_those_of_write_outcomes(tmp_path: Path) -> None:
    """A path that cannot be written, what is no path, and what JSON cannot carry."""
    with pytest.raises(OSError, match="No such file"):
        RUN.to_jsonl(tmp_path / "none" / "out.jsonl")
    with pytest.raises(TypeError, match="expected a path"):
        RUN.to_jsonl(3)  # type: ignore[arg-type]
    half = Runner(FunctionExecutor({"a": len})).run([AgentStepSpec("half \ud800", "a", "", "")])
    with pytest.raises(WireError, match=r"outcomes\[0\]"):
        half.to_jsonl(io.BytesIO())
