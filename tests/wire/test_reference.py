"""The reference's own five tests, on every kind of backend (the round trip is in test_steps.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor, AgentStepSpec, Runner, StepOutcome
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


class Later(AgentExecutor):
    """The steps end in reverse order: each one waits until the next one has written its file."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def concurrency_hint(self) -> int:
        return self.count

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        number = int(spec.prompt)
        if number + 1 < self.count:
            _await(lambda: (self.folder / str(number + 1)).exists())
        (self.folder / str(number)).touch()
        return StepOutcome.completed(spec, spec.prompt)


class Crowd(AgentExecutor):
    """Each step counts the steps that run at the same time, and waits until it has seen the hinted number."""

    def __init__(self, folder: Path, hint: int) -> None:
        self.folder = folder
        self.hint = hint

    def concurrency_hint(self) -> int:
        return self.hint

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        mark = self.folder / f"{spec.task_id}.running"
        mark.touch()
        full = self.folder / "full"
        most = 0
        deadline = time.monotonic() + HANG_BOUND_S
        while time.monotonic() < deadline:
            most = max(most, len(list(self.folder.glob("*.running"))))
            if most >= self.hint:
                full.touch()
            if full.exists():
                break
            time.sleep(0.001)  # waits for a file of another step; across processes there is no event to wait for
        mark.unlink()
        return StepOutcome.completed(spec, str(most))


class Mixed(AgentExecutor):
    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        if spec.task_id == "t1":
            return StepOutcome.failed(spec.task_id, spec.agent, "said no")
        if spec.task_id == "t2":
            raise RuntimeError("panicked")
        return StepOutcome.completed(spec, "fine")


def test_outcomes_come_in_input_order(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The outcomes are in the order of the specs, although the steps end in reverse order."""
    outcomes = make_runner(Later(tmp_path, 4)).run(make_specs(4))
    assert [outcome.task_id for outcome in outcomes] == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("hint", [1, 3])
def test_exactly_the_hinted_number_runs_at_once(make_runner: MakeRunner, tmp_path: Path, hint: int) -> None:
    """As many steps as hinted run at once, and never more."""
    outcomes = make_runner(Crowd(tmp_path, hint)).run(make_specs(4 * hint))
    assert max(int(outcome.output) for outcome in outcomes) == hint
    assert all(outcome.success for outcome in outcomes)


def test_failure_and_panic_are_isolated_and_labelled(make_runner: MakeRunner) -> None:
    """A step that fails and one that raises do not affect the others; their outcomes say what happened."""
    run = make_runner(Mixed()).run(make_specs(4))
    assert [outcome.success for outcome in run] == [True, False, False, True]
    assert run[1] == StepOutcome("t1", "task-run-t1", "tester", "said no", False)
    assert run[2] == StepOutcome("t2", "task-run-t2", "tester", "RuntimeError: panicked", False)
    assert [record.status for record in run.records] == ["succeeded", "failed", "raised", "succeeded"]


def test_the_default_hint_is_eight() -> None:
    """An executor without a `concurrency_hint` of its own runs eight steps at once."""
    assert Mixed().concurrency_hint() == DEFAULT_MAX_PARALLEL_TASKS == 8


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # waits for a file of another process
