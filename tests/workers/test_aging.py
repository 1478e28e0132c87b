"""Workers that are replaced after a number of steps, and workers that die while they start."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, FunctionExecutor, OptionError, ProcessBackend, Runner
from fanout_sync.records.steps import StepOutcome
from fanout_sync.testing import Ledger, make_specs

TELL_PID = FunctionExecutor({"tester": lambda spec: str(os.getpid())})


@pytest.mark.parametrize(("limit", "streams"), [(1, False), (3, True)])
def test_a_worker_is_replaced_after_max_tasks_per_child_steps(limit: int, streams: bool, ledger: Ledger) -> None:
    """No worker runs more than `max_tasks_per_child` steps; every step runs once."""

    def work(spec: AgentStepSpec) -> str:
        ledger.note(spec.task_id)
        return str(os.getpid())

    specs = make_specs(15)
    runner = Runner(
        FunctionExecutor({"tester": work}), backend=ProcessBackend(max_tasks_per_child=limit), max_concurrency=2
    )
    outcomes = list(runner.stream(specs) if streams else runner.run(specs))
    assert all(outcome.success for outcome in outcomes)
    assert max(Counter(outcome.output for outcome in outcomes).values()) <= limit
    assert ledger.counts() == {spec.task_id: 1 for spec in specs}


def test_a_replacement_starts_before_the_last_step_ends(ledger: Ledger) -> None:
    """While a worker runs its last step, the worker that replaces it starts."""

    class Watching(AgentExecutor):
        def setup(self) -> None:
            ledger.note("setup")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            while ledger.counts()["setup"] <= (spec.max_steps or 0):
                time.sleep(0.005)  # waits for another process
            return StepOutcome.completed(spec, "")

    specs = [spec.with_max_steps(number + 1) for number, spec in enumerate(make_specs(4))]
    run = Runner(Watching(), backend=ProcessBackend(max_tasks_per_child=1), max_concurrency=1, timeout=50).run(specs)
    assert not run.failed


def test_no_more_steps_run_at_once_while_workers_are_replaced(ledger: Ledger, tmp_path: Any) -> None:
    """There may be more workers than the bound for a moment, but not more steps."""

    def work(spec: AgentStepSpec) -> str:
        mark = tmp_path / f"{spec.task_id}.running"
        mark.touch()
        at_once = len(list(tmp_path.glob("*.running")))
        mark.unlink()
        return str(at_once)

    backend = ProcessBackend(max_tasks_per_child=2)
    run = Runner(FunctionExecutor({"tester": work}), backend=backend, max_concurrency=2).run(make_specs(40))
    assert {int(outcome.output) for outcome in run} <= {1, 2}


def test_every_replaced_worker_tears_down(ledger: Ledger) -> None:
    """`teardown` runs to its end also in replaced workers, even if it ends after the last step of the run."""

    class Closing(AgentExecutor):
        def setup(self) -> None:
            ledger.note(f"setup-{os.getpid()}")

        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            return StepOutcome.completed(spec, str(os.getpid()))

        def teardown(self) -> None:
            time.sleep(0.2)  # long enough to be cut short, if that happened
            ledger.note(f"teardown-{os.getpid()}")

    run = Runner(Closing(), backend=ProcessBackend(max_tasks_per_child=2), max_concurrency=2).run(make_specs(6))
    for outcome in run:
        assert ledger.counts()[f"teardown-{outcome.output}"] == 1


def test_no_worker_starts_when_a_run_ends(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a run replaces no worker: one that starts then would be waited for until it is killed."""
    work = FunctionExecutor({"tester": lambda spec: spec.prompt})
    run = Runner(work, backend=ProcessBackend(max_tasks_per_child=2), max_concurrency=2).run(make_specs(6))
    assert not run.failed
    assert "teardown() is still running" not in caplog.text


def test_calls_count_for_the_limit() -> None:
    """A worker runs at most `max_tasks_per_child` calls of `submit`."""
    with ProcessBackend(1, max_tasks_per_child=2) as backend:
        pids = [backend.submit(os.getpid).result(60) for _ in range(6)]
    assert max(Counter(pids).values()) <= 2


def test_the_count_of_a_warm_worker_goes_on_in_the_next_run() -> None:
    """The steps of all runs of a worker that is kept between them count for the limit."""
    with Runner(TELL_PID, backend=ProcessBackend(max_tasks_per_child=4), max_concurrency=1) as runner:
        pids = [outcome.output for _ in range(3) for outcome in runner.run(make_specs(3))]
    assert max(Counter(pids).values()) <= 4


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "3"])
def test_an_invalid_max_tasks_per_child_is_refused(limit: Any) -> None:
    """`max_tasks_per_child` must be an int of at least 1."""
    with pytest.raises(OptionError, match="max_tasks_per_child must be an int of at least 1"):
        ProcessBackend(max_tasks_per_child=limit)


def test_an_invalid_capture_output_is_refused() -> None:
    """`capture_output` must be a bool."""
    with pytest.raises(OptionError, match="capture_output must be a bool, got str 'yes'"):
        ProcessBackend(capture_output="yes")  # type: ignore[arg-type]


class DiesAtStart(AgentExecutor):
    def __init__(self, ledger: Ledger, good_starts: int) -> None:
        self.ledger = ledger
        self.good_starts = good_starts

    def setup(self) -> None:
        self.ledger.note("start")
        if self.ledger.counts()["start"] > self.good_starts:
            os._exit(9)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if spec.prompt == "2":
            os._exit(1)
        return StepOutcome.completed(spec, "done")


def test_no_more_workers_start_after_three_deaths_at_start(ledger: Ledger) -> None:
    """After three deaths in a row no more workers start; the steps that are left fail with the cause."""
    run = Runner(DiesAtStart(ledger, good_starts=1), backend="process", max_concurrency=1).run(make_specs(8))
    assert [record.status for record in run.records] == ["succeeded"] * 2 + ["crashed"] * 6
    assert ledger.counts()["start"] == 1 + 3
    assert "exited with code 1" in run[2].output
    for outcome, record in zip(run[3:], run.records[3:], strict=True):
        assert "exited with code 9 while it started" in outcome.output
        assert record.exit_code == 9
