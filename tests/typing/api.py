"""How the public interface is meant to be used, for the type checker alone: nothing here is ever run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tenacity

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    AttemptRecord,
    EventChannel,
    EventSender,
    FanoutInterrupted,
    FunctionExecutor,
    Lagged,
    ProcessBackend,
    Retry,
    RetryAfter,
    Run,
    Runner,
    StepOutcome,
    StepRecord,
    TextDelta,
    ThreadBackend,
    current_step,
    execute_steps_parallel,
    read_specs,
    write_outcomes,
)


class Agent(AgentExecutor):
    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        return None if spec.max_steps is None else 2.0 * spec.max_steps

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if current_step().cancelled.wait(0.1) or current_step().deadline is None:
            raise RetryAfter(3)
        if event_tx is not None:
            event_tx.send(TextDelta(spec.task_id, "…"))
        return StepOutcome.completed(spec, spec.prompt, {"any": ["json"]})


spec: AgentStepSpec = AgentStepSpec("t", "a", "d", "p", max_steps=3).with_max_steps(None).with_output_schema(True)
again: AgentStepSpec = AgentStepSpec.from_json(spec.to_json())
outcome: StepOutcome = StepOutcome.from_dict(StepOutcome.failed("t", "a", "no").to_dict())

outcomes: list[StepOutcome] = execute_steps_parallel(Agent(), [spec], max_concurrency=2, backend="process")
run: Run = Runner(Agent(), backend=ThreadPoolExecutor()).run(spec for _ in range(3))
first: StepOutcome = run[0]
some: list[StepOutcome] = run[:2]
record: StepRecord = run.records[0]
stream: Iterator[StepOutcome] = Runner(Agent(), backend=ProcessBackend()).stream([spec], order="completion")
future: Future[int] = ThreadBackend().submit(len, "text")
write_outcomes("out.jsonl", Runner(Agent()).stream(read_specs("-")))

executor = FunctionExecutor({"shout": lambda spec: spec.prompt.upper()}, concurrency=4)


@executor.register("plan")
async def plan(spec: AgentStepSpec, event_tx: Any) -> str:
    return spec.prompt


careful: Runner = Runner(
    Agent(),
    backend=ProcessBackend(max_tasks_per_child=100, capture_output=True),
    timeout=5,
    retry=Retry(attempts=3, wait=tenacity.wait_fixed(2), retry_on=(OSError, ValueError), on_crash=True),
    on_interrupt="return",
)
also: Runner = Runner(Agent(), timeout=0.5, retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(3)))
again_and_again: list[StepOutcome] = execute_steps_parallel(Agent(), [spec], retry=3, timeout=1.5)
attempts: tuple[AttemptRecord, ...] = run.records[0].attempts
try:
    run = careful.run([spec])
except FanoutInterrupted as interrupted:
    run = interrupted.run

for item in EventChannel().subscribe():
    if isinstance(item, Lagged):
        lost: int = item.n

Runner(Agent(), max_concurency=3)  # type: ignore[arg-type]  # an option that does not exist
Runner(Agent(), backend="proces")  # type: ignore[arg-type]  # nor does this backend
Runner(Agent()).run([1])  # type: ignore[list-item]  # and this is no spec
