"""How the public interface is meant to be used, for the type checker alone: nothing here is ever run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import tenacity
from tqdm import tqdm

import fanout_sync
from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    AttemptRecord,
    Budget,
    BudgetExhausted,
    BudgetUsed,
    Command,
    CommandExecutor,
    Continue,
    Event,
    EventChannel,
    EventSender,
    FanoutInterrupted,
    FunctionExecutor,
    Journal,
    JournalConflict,
    JournalError,
    JournalRecord,
    Lagged,
    MemoryJournal,
    OpenWorkflow,
    ProcessBackend,
    Progress,
    RateLimit,
    Retry,
    RetryAfter,
    Run,
    RunEnd,
    RunHandle,
    Runner,
    SqliteJournal,
    StepOutcome,
    StepRecord,
    Stop,
    TextDelta,
    ThreadBackend,
    Usage,
    Workflow,
    current_step,
    execute_loop,
    execute_pipeline,
    execute_steps_parallel,
    execute_steps_parallel_resumable,
    fanout_map,
    fanout_stream,
    read_specs,
    schema_of,
    write_outcomes,
)


class Agent(AgentExecutor):
    thread_safe = False

    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        return None if spec.max_steps is None else 2.0 * spec.max_steps

    def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
        return StepOutcome.completed(spec, "; ".join(errors), outcome.structured)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if current_step().cancelled.wait(0.1) or current_step().deadline is None:
            raise RetryAfter(3)
        if event_tx is not None:
            event_tx.send(TextDelta(spec.task_id, "…"))
            event_tx.usage(prompt_tokens=900, cost_usd=0.01)
        current_step().add_usage(prompt_tokens=900, completion_tokens=100, cost_usd=1)
        return StepOutcome.completed(spec, spec.prompt, {"any": ["json"]})


spec: AgentStepSpec = AgentStepSpec("t", "a", "d", "p", max_steps=3).with_max_steps(None).with_output_schema(True)
typed: AgentStepSpec = spec.with_output_schema(Usage).with_output_schema({"type": "object"}).with_output_schema(None)
schema: dict[str, Any] = schema_of(Usage)
again: AgentStepSpec = AgentStepSpec.from_json(spec.to_json())
outcome: StepOutcome = StepOutcome.from_dict(StepOutcome.failed("t", "a", "no").to_dict())

made: Usage = outcome.structured_as(Usage)

outcomes: list[StepOutcome] = execute_steps_parallel(Agent(), [spec], max_concurrency=2, backend="process")
run: Run = Runner(Agent(), backend=ThreadPoolExecutor()).run(spec for _ in range(3))
first: StepOutcome = run[0]
some: list[StepOutcome] = run[:2]
named: StepOutcome = run["t"]
values: list[Any] = run.values()
rows: list[dict[str, Any]] = [*run.to_dicts(), run.records[0].to_dict()]
paid: float = run.usage.cost_usd
tried_again: Run = run.retry_failed(timeout=60, backend="process")
unsuccessful: list[AgentStepSpec] = run.failed_specs
run.to_jsonl("out.jsonl")
run.to_jsonl(Path("out.jsonl"))
columns: list[str] = list(run.to_pandas().columns)
record: StepRecord = run.records[0]
stream: Iterator[StepOutcome] = Runner(Agent(), backend=ProcessBackend()).stream([spec], order="completion")
with contextlib.closing(Runner(Agent()).stream([spec])) as outcomes_so_far:
    streamed: Run = outcomes_so_far.run
future: Future[int] = ThreadBackend().submit(len, "text")
copies: Run = Runner(FunctionExecutor({"a": len}), backend=ThreadBackend(copies=True)).run([spec])
write_outcomes("out.jsonl", Runner(Agent()).stream(read_specs("-")))

executor = FunctionExecutor({"shout": lambda spec: spec.prompt.upper()}, concurrency=4)
programs: CommandExecutor = CommandExecutor(
    {
        "a": Command(["llm", Path("file")], prompt="argument", cwd=Path(), env={"A": "b", "C": None}),
        "b": Command(("llm",), output="json", answer="result.text", idle_timeout=60, exit_grace=0),
        "c": Command(["llm"], output=str.splitlines, extra_args=("-v",), start_interval=0.5),
        "d": Command.claude(model="m", extra_args=["-v"], idle_timeout=60),
    },
    concurrency=16,
)


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
    done: list[StepOutcome] = interrupted.run.succeeded
    told: str = interrupted.run.summary()
    first = interrupted.run["t"]

events: list[Event] = []
for item in EventChannel().subscribe():
    if isinstance(item, Lagged):
        lost: int = item.n
    elif isinstance(item, BudgetExhausted):
        left: float = item.limit - item.used


def take(event: Event) -> int:
    return event.reused if isinstance(event, RunEnd) else len(event.type)


with EventChannel() as channel:
    callbacks: list[Callable[[Event], object]] = [take, events.append, lambda event: event.type]
    for callback in callbacks:
        channel.listen(callback)
        Runner(Agent(), event_tx=callback)
    execute_steps_parallel(Agent(), [spec], take)
    Runner(Agent(), event_tx=channel)


def look(progress: Progress) -> float | None:
    return None if progress.total is None else progress.eta_s


shown: list[Progress] = []
for show in (True, False, None, tqdm, partial(tqdm, desc="reviews"), look, shown.append):
    Runner(Agent(), progress=show)
fanout_map(len, ["text"], progress=True)
execute_loop(Agent(), [spec], 3, lambda outcomes: Stop(), progress=look)

journal: SqliteJournal = SqliteJournal("run.db")
nightly: Workflow = journal.workflow("nightly", on_conflict="rerun")
for keeper in ("run.db", Path("run.db"), journal, MemoryJournal(), nightly):
    Runner(Agent(), journal=keeper)
resumed: list[StepOutcome] = execute_steps_parallel_resumable(Agent(), [spec], "nightly", journal, on_conflict="rerun")
kept: JournalRecord = journal.records("nightly")[0]
was_asked: AgentStepSpec | None = kept.spec
was_said: StepOutcome = kept.outcome
workflow_id: str = MemoryJournal().import_checkpoint(journal.export_checkpoint("nightly"))
try:
    run = Runner(Agent(), journal=nightly).run([spec])
except JournalConflict as conflict:
    fields: tuple[str, ...] = conflict.conflicts["t"]
except JournalError as error:
    so_far: int = 0 if error.run is None else len(error.run)


class Store(Journal):
    def open(self, workflow_id: str) -> OpenWorkflow:
        return MemoryJournal().open(workflow_id)

    def workflows(self) -> list[str]:
        return []

    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        return []

    def delete(self, workflow_id: str) -> None:
        return None


limit: RateLimit = RateLimit(requests_per_minute=2.5, tokens_per_minute=10_000, key=lambda spec: spec.agent)
cautious: RateLimit = RateLimit(requests_per_minute=60, on_refusal="wait_all")
bold: RateLimit = RateLimit(requests_per_minute=60, on_refusal="wait_step")
budget: Budget = Budget(max_tokens=10_000, max_cost_usd=5, max_seconds=60.0, max_steps=100)
estimated: Budget = Budget(max_cost_usd=0.5, estimate=lambda spec: Usage(prompt_tokens=len(spec.prompt)))
used: BudgetUsed = budget.used
total: Usage | None = run.records[0].usage
governed: Runner = Runner(Agent(), rate_limit=limit, budget=budget, max_failures=10, journal=Store())
strict: Runner = Runner(Agent(), rate_limit=[limit, RateLimit(60)], budget=estimated)


def draft(outcome: StepOutcome | None, item: int) -> AgentStepSpec | None:
    return None if item < 0 else spec


def refine(outcome: StepOutcome | None, item: Any) -> AgentStepSpec:
    return AgentStepSpec(f"refine-{item}", "a", "", outcome.output if outcome is not None else "")


last: list[StepOutcome | None] = governed.pipeline(range(3), [draft, refine])
last = execute_pipeline(Agent(), ["an item"], [refine], max_concurrency=3)


def next_round(outcomes: Sequence[StepOutcome]) -> Continue | Stop:
    return Stop() if all(outcome.success for outcome in outcomes) else Continue(spec for _ in outcomes)


rounds: list[StepOutcome] = governed.loop([spec], 5, next_round)
rounds = execute_loop(Agent(), iter([spec]), max_iterations=5, next_round=next_round, budget=budget)


class Document:
    name = "a.txt"


async def summarize(document: Document) -> dict[str, int]:
    return {"length": len(document.name)}


def with_events(spec: AgentStepSpec, event_tx: EventSender) -> StepOutcome:
    event_tx.usage(prompt_tokens=1)
    return StepOutcome.completed(spec, spec.prompt)


def with_named_events(spec: AgentStepSpec, *, event_tx: EventSender | None = None) -> list[int]:
    return [len(spec.prompt)]


def events_first(event_tx: EventSender, spec: AgentStepSpec) -> str:
    return spec.prompt


several: FunctionExecutor = FunctionExecutor(
    {"a": with_events, "b": with_named_events, "c": events_first, "d": plan, "e": Agent().execute_step}
)
mapped: Run = fanout_map(str.upper, ["a", "b"], max_concurrency=16, retry=3, backend="process", event_tx=EventChannel())
mapped = fanout_map(
    summarize,
    (Document() for _ in range(3)),
    task_id=lambda document, index: f"{document.name}-{index}",
    agent="summarize",
    journal="run.db",
    on_conflict="rerun",
)
stream_of_items: Iterator[StepOutcome] = fanout_stream(abs, range(3), order="completion", timeout=5, budget=budget)
rerunning: Runner = Runner(Agent(), journal="run.db", on_conflict="rerun")
handle: RunHandle = rerunning.start(iter([spec]))
is_done: bool = handle.done()
awaited: Run = handle.result(timeout=2.5)
awaited = handle.snapshot()
how_far: Progress = handle.progress()
handle.cancel()
version: str = fanout_sync.__version__

fanout_map(str.upper, ["a"], max_concurency=3)  # type: ignore[call-arg]  # an option that does not exist
fanout_map(str.upper, [1])  # type: ignore[arg-type]  # the function takes no int
fanout_map(str.upper, ["a"], timeout="5")  # type: ignore[arg-type]  # nor is this a number
fanout_stream(str.upper, ["a"], order="random")  # type: ignore[arg-type]  # there is no such order
execute_steps_parallel(Agent(), [spec], retry="3")  # type: ignore[arg-type]  # a number, or a Retry
execute_steps_parallel(Agent(), [spec], max_workers=3)  # type: ignore[call-arg]  # its name is max_concurrency
execute_pipeline(Agent(), ["an item"], [refine], backend="proces")  # type: ignore[arg-type]  # a misspelt backend
execute_loop(Agent(), [spec], 5, next_round, max_failures="3")  # type: ignore[arg-type]  # a number
execute_steps_parallel_resumable(Agent(), [spec], "nightly", journal, bugdet=budget)  # type: ignore[call-arg]
FunctionExecutor({"a": "no function"})  # type: ignore[dict-item]
CommandExecutor({"a": ["llm"]})  # type: ignore[dict-item]
Command(["llm"], prompt="file")  # type: ignore[arg-type]
Runner(Agent(), max_concurency=3)  # type: ignore[arg-type]  # an option that does not exist
Runner(Agent(), backend="proces")  # type: ignore[arg-type]  # nor does this backend
Runner(Agent()).run([1])  # type: ignore[list-item]  # and this is no spec
Runner(Agent()).start([1])  # type: ignore[list-item]  # nor here
handle.result("5")  # type: ignore[arg-type]  # seconds
Runner(Agent(), event_tx="events.jsonl")  # type: ignore[arg-type]  # no function
Runner(Agent(), event_tx=lambda: None)  # type: ignore[arg-type,misc]  # which takes no event
EventChannel().listen(lambda event: event.nonsense)  # type: ignore[attr-defined]  # an event has no such field
outcome.structured_as("Usage")  # type: ignore[arg-type]  # the class itself
Runner(Agent(), retry=Retry(on_invalid=1))  # type: ignore[arg-type]  # yes or no
Runner(Agent(), budget=5)  # type: ignore[arg-type]  # dollars or tokens?
Runner(Agent()).loop([spec], 5, lambda outcomes: None)  # type: ignore[arg-type,return-value]  # go on or not?
journal.workflow("nightly", on_conflict="overwrite")  # type: ignore[arg-type]  # neither refuse nor rerun
