"""The code review of examples/ reviews real code, on threads and on processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, StepOutcome, read_specs

FOLDER = Path(__file__).parents[2] / "examples" / "code_review"
AGENTS = ("outline", "complexity", "smells", "plan")


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, encoding="utf-8", timeout=90, check=False
    )


def review(folder: Path, *modules: str, backend: str = "thread") -> list[StepOutcome]:
    """Review `modules` through the command line; returns the outcomes in the order of the steps."""
    made = run_in(folder, str(FOLDER / "make_steps.py"), *modules)
    assert made.returncode == 0, made.stderr
    steps = folder / "steps.jsonl"
    steps.write_text(made.stdout, encoding="utf-8")
    executor = f"{FOLDER / 'agents.py'}:executor"
    options = ["--backend", backend, "-j", "2", "-o", "outcomes.jsonl", "--events", "events.jsonl"]
    done = run_in(folder, "-m", "fanout_sync", "run", steps.name, "--executor", executor, *options)
    assert done.returncode in (0, 1), done.stderr
    lines = (folder / "outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    return [StepOutcome.from_json(line) for line in lines]


def by_task(outcomes: list[StepOutcome]) -> Mapping[str, StepOutcome]:
    return {outcome.task_id: outcome for outcome in outcomes}


def structured(outcome: StepOutcome) -> dict[str, Any]:
    assert outcome.success, outcome.output
    assert isinstance(outcome.structured, dict)
    return outcome.structured


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_review_finds_what_stands_in_the_source(backend: str, tmp_path: Path) -> None:
    """All four agents answer in order, and say of `argparse` and `json.decoder` what is true of them."""
    outcomes = review(tmp_path, "argparse", "json.decoder", backend=backend)
    assert [outcome.task_id for outcome in outcomes] == [
        f"{agent}:{module}" for module in ("argparse", "json.decoder") for agent in AGENTS
    ]
    found = {task: structured(outcome) for task, outcome in by_task(outcomes).items()}

    classes = {each["name"]: each for each in found["outline:argparse"]["classes"]}
    assert "parse_args" in classes["ArgumentParser"]["methods"]
    assert classes["ArgumentParser"]["bases"] == ["_AttributeHolder", "_ActionsContainer"]
    assert "JSONDecoder.raw_decode" in {each["name"] for each in found["outline:json.decoder"]["functions"]}

    ranked = found["complexity:argparse"]["functions"]
    assert ranked[0]["complexity"] > 20
    assert [each["complexity"] for each in ranked] == sorted((each["complexity"] for each in ranked), reverse=True)

    assert found["smells:argparse"]["logical_lines"] > 1000
    assert any("parameters" in each["smell"] for each in found["smells:argparse"]["smells"])


def test_plan_starts_with_the_function_that_has_most_against_it(tmp_path: Path) -> None:
    """The worst function of `json.decoder` leads its plan, for reasons from both the outline and the complexity."""
    outcomes = by_task(review(tmp_path, "json.decoder"))
    worst = structured(outcomes["complexity:json.decoder"])["functions"][0]
    first = structured(outcomes["plan:json.decoder"])["tasks"][0]
    assert (first["name"], first["line"]) == (worst["name"], worst["line"])
    assert any(f"complexity {worst['complexity']}" in reason for reason in first["reasons"])
    assert any("lines" in reason for reason in first["reasons"])
    assert worst["name"] in outcomes["plan:json.decoder"].output


def test_module_without_source_costs_no_other_step(tmp_path: Path) -> None:
    """A module that is built in, or that does not exist, fails its own steps and says why."""
    outcomes = review(tmp_path, "sys", "no_such.module", "textwrap")
    assert [outcome.success for outcome in outcomes] == [False] * 8 + [True] * 4
    assert "LookupError" in outcomes[0].output
    assert "'no_such.module'" in outcomes[4].output


def test_plan_reports_its_tools_as_events(tmp_path: Path) -> None:
    """`--events` shows which tool the plan used, inside the step it belongs to."""
    review(tmp_path, "textwrap", backend="process")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [event["type"] for event in events if event.get("task_id") == "plan:textwrap"]
    assert kinds == ["subagent_start", *["tool_start", "tool_end"] * 2, "subagent_end"]


def test_steps_file_is_what_its_script_makes(tmp_path: Path) -> None:
    """steps.jsonl in the repository is the output of make_steps.py."""
    made = run_in(tmp_path, str(FOLDER / "make_steps.py"))
    assert made.stdout == (FOLDER / "steps.jsonl").read_text(encoding="utf-8")


def test_steps_cover_every_agent_and_module() -> None:
    """The example has some thirty modules, each reviewed by all four agents."""
    specs: list[AgentStepSpec] = list(read_specs(FOLDER / "steps.jsonl"))
    modules = {spec.prompt for spec in specs}
    assert len(modules) == 30
    assert {(spec.agent, spec.prompt) for spec in specs} == {(agent, module) for agent in AGENTS for module in modules}
