"""A run as a data frame of pandas, with types."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, FunctionExecutor, Run, Runner, StepOutcome, current_step, fanout_map

pandas = pytest.importorskip("pandas", reason="the extra pandas is not installed")


def work(spec: AgentStepSpec) -> Any:
    """Do what the prompt says."""
    if spec.prompt == "raise":
        raise ValueError(f"no {spec.task_id}")
    if spec.prompt == "spend":
        current_step().add_usage(prompt_tokens=30, completion_tokens=7, cost_usd=0.25)
    if spec.prompt == "structured":
        return {"deep": [1, {"er": "ü"}]}
    if spec.prompt == "die":
        os._exit(7)
    return spec.prompt


def specs_of(*prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{place}", "worker", "", prompt) for place, prompt in enumerate(prompts)]


EXECUTOR = FunctionExecutor({"worker": work})

TYPES = {
    "index": "Int64",
    "task_id": "string",
    "agent": "string",
    "session_id": "string",
    "success": "boolean",
    "status": "string",
    "output": "string",
    "structured": "object",
    "error_type": "string",
    "error_message": "string",
    "attempts": "Int64",
    "started": "datetime64[ns, UTC]",
    "finished": "datetime64[ns, UTC]",
    "duration_s": "Float64",
    "worker": "string",
    "exit_code": "Int64",
    "signal": "string",
    "prompt_tokens": "Int64",
    "completion_tokens": "Int64",
    "cost_usd": "Float64",
    "from_journal": "boolean",
}


@pytest.mark.parametrize("prompts", [(), ("fine",), ("raise", "spend", "structured")])
def test_every_column_has_a_type(prompts: tuple[str, ...]) -> None:
    """The same for each run, whatever is in it: also without a step, and if no value of a column is known."""
    frame = Runner(EXECUTOR).run(specs_of(*prompts)).to_pandas()
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == TYPES
    assert len(frame) == len(prompts)
    assert list(frame.index) == list(range(len(prompts)))


def test_rows_are_those_of_to_dicts() -> None:
    """In the same columns, but for times and structured values, which are objects."""
    run = Runner(EXECUTOR, backend="process", max_concurrency=2).run(specs_of("die", "raise", "spend", "structured"))
    frame, rows = run.to_pandas(), run.to_dicts()
    assert list(frame.columns) == list(rows[0])
    for place, row in enumerate(rows):
        for name, value in row.items():
            cell = frame[name].iloc[place]
            if value is None:
                assert cell is None or pandas.isna(cell), name
            elif name in ("started", "finished"):
                assert cell == pandas.Timestamp(value)
            elif name == "structured":
                assert cell == run[place].structured
            else:
                assert cell == (str(value) if name == "worker" else value), name
    assert frame.exit_code.tolist()[0] == 7
    assert frame.prompt_tokens.sum() == run.usage.prompt_tokens == 30
    assert list(frame[~frame.success].task_id) == ["t0", "t1"]


def test_any_text_and_any_object_is_in_the_frame() -> None:
    """Lone surrogates, which some columns could not hold, are escapes; a list or an array stays one cell."""
    run = fanout_map(lambda item: [[1, 2], [3]] if item == "a" else {}, ["a", "b"])
    assert run.to_pandas().structured.tolist() == [[[1, 2], [3]], {}]
    half = StepOutcome.failed("half \ud800", "a", "b")
    report = Runner(EXECUTOR).run(specs_of("fine"))._reports[0]
    report.outcome = half
    assert Run([report], 0.0).to_pandas().task_id.tolist() == ["half \\ud800"]


def test_without_pandas_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how to install it; what goes wrong inside of pandas is not hidden."""
    run = Runner(EXECUTOR).run(specs_of("fine"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'fanout_sync\[pandas\]'"):
        run.to_pandas()
