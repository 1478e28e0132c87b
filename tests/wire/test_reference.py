"""The reference's own five tests, over every kind of backend (the round trip is in test_steps.py)."""

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
    """The first step ends last: each one waits until its successor has left a mark."""

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
    """Each step counts those that run beside it, and waits until the hinted number was seen at once."""

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
            time.sleep(0.001)  # another step's mark is what is awaited; nothing else can tell of it across processes
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
    """The order of outcomes is that of the specs, though the steps end in the opposite one."""
    outcomes = make_runner(Later(tmp_path, 4)).run(make_specs(4))
    assert [outcome.task_id for outcome in outcomes] == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("hint", [1, 3])
def test_exactly_the_hinted_number_runs_at_once(make_runner: MakeRunner, tmp_path: Path, hint: int) -> None:
    """As many steps as hinted are seen side by side, and never one more."""
    outcomes = make_runner(Crowd(tmp_path, hint)).run(make_specs(4 * hint))
    assert max(int(outcome.output) for outcome in outcomes) == hint
    assert all(outcome.success for outcome in outcomes)


def test_failure_and_panic_are_isolated_and_labelled(make_runner: MakeRunner) -> None:
    """A failed and a raising step leave the others alone and say what happened."""
    run = make_runner(Mixed()).run(make_specs(4))
    assert [outcome.success for outcome in run] == [True, False, False, True]
    assert run[1] == StepOutcome("t1", "task-run-t1", "tester", "said no", False)
    assert run[2] == StepOutcome("t2", "task-run-t2", "tester", "RuntimeError: panicked", False)
    assert [record.status for record in run.records] == ["succeeded", "failed", "raised", "succeeded"]


def test_default_hint() -> None:
    """An executor that says nothing runs eight steps at once."""
    assert Mixed().concurrency_hint() == DEFAULT_MAX_PARALLEL_TASKS == 8


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # a file of another process is what is awaited
