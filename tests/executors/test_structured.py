"""Structured output: a step whose spec has a schema succeeds only with a value that fits it, on every backend."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import create_autospec

import attrs
import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    EventSender,
    FunctionExecutor,
    MemoryJournal,
    OptionError,
    Retry,
    RetryAfter,
    Run,
    Runner,
    StepOutcome,
    Stop,
    SubagentEnd,
    current_step,
)
from fanout_sync.testing import Ledger

MakeRunner = Callable[..., Runner]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
ADA = {"name": "Ada", "age": 36}
ADA_TEXT = '{"name":"Ada","age":36}'


def spec_of(prompt: str, schema: Any = SCHEMA, task_id: str = "t") -> AgentStepSpec:
    return AgentStepSpec(task_id, "a", "", prompt, output_schema=schema)


class Echo(AgentExecutor):
    """Answers with the prompt."""

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome(spec.task_id, "own-session", spec.agent, spec.prompt, True)


class Repairing(Echo):
    """Answers a request for a repair with the next of some texts; an exception is raised."""

    def __init__(self, *repairs: Any, ledger: Ledger | None = None) -> None:
        self.repairs = repairs
        self.ledger = ledger

    def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
        step = current_step()
        assert step.spec == spec
        if self.ledger is not None:
            self.ledger.note(f"{step.attempt}:{os.getpid()}:{threading.get_ident()}")
        earlier = [outcome.output == repair for repair in self.repairs]
        answer = self.repairs[earlier.index(True) + 1 if True in earlier else 0]
        if isinstance(answer, BaseException):
            raise answer
        return StepOutcome.completed(spec, answer) if isinstance(answer, str) else answer


class AsyncAgent(AgentExecutor):
    """Answers and repairs in the event loop."""

    async def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:  # type: ignore[override]
        await asyncio.sleep(0)
        return StepOutcome.completed(spec, spec.prompt)

    async def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:  # type: ignore[override]
        await asyncio.sleep(0)
        assert current_step().spec == spec
        return StepOutcome.completed(spec, f"{errors[0]} is mended", ADA)


def run_one(make_runner: MakeRunner, executor: AgentExecutor, spec: AgentStepSpec, **options: Any) -> Any:
    run = make_runner(executor, **options).run([spec])
    return run[0], run.records[0]


ANSWERS: list[tuple[str, Any]] = [
    (ADA_TEXT, ADA),
    (f"Here it is:\n```json\n{ADA_TEXT}\n```\nBye.", ADA),
    (f"As [1] says, {{}} is empty, but {ADA_TEXT} is not. {{}}", ADA),
    (f'```json\n{{"name": "Bob"}}\n```\nNo, wait:\n```json\n{ADA_TEXT}\n```', ADA),
    (f"```py\nprint({{}})\n```\nprints {ADA_TEXT}", ADA),
]


@pytest.mark.parametrize(("output", "structured"), ANSWERS)
def test_an_answer_is_parsed(make_runner: MakeRunner, output: str, structured: Any) -> None:
    """The first value in the output that fits becomes `structured`; the output stays as it is."""
    outcome, record = run_one(make_runner, Echo(), spec_of(output))
    assert outcome == StepOutcome("t", "own-session", "a", output, True, structured)
    assert (record.status, record.error) == ("succeeded", None)


@pytest.mark.parametrize(
    ("schema", "output", "structured"),
    [
        ({"type": "integer"}, "42", 42),
        ({"type": "integer"}, "It is\n```\n42\n```", 42),
        ({"type": "boolean"}, "false", False),
        ({"type": "array", "items": {"type": "integer"}}, "Not ['a'] and not [\"a\"], but [1, 2].", [1, 2]),
        ({"type": ["null", "integer"]}, "null", None),
        (True, "[]", []),
        ({"type": "object"}, '{"a": "{\\"b\\": 1}"}', {"a": '{"b": 1}'}),
        ({"type": "string"}, '"text"', "text"),
    ],
)
def test_any_kind_of_value_may_be_asked_for(schema: Any, output: str, structured: Any) -> None:
    """Scalars and arrays are found as well as objects; what is false is a value, too."""
    outcome, record = run_one(Runner, Echo(), spec_of(output, schema))
    assert (record.status, outcome.structured) == ("succeeded", structured)


@attrs.frozen
class Person:
    name: str
    age: int


@pytest.mark.parametrize("answer", [ADA, Person("Ada", 36), ADA_TEXT, StepOutcome("t", "s", "a", "x", True, ADA)])
def test_functions_may_return_what_they_like(make_runner: MakeRunner, answer: Any) -> None:
    """A dict, an object, text, or an outcome with structured data: all of them are checked."""
    outcome, record = run_one(make_runner, FunctionExecutor({"a": lambda spec: answer}), spec_of(""))
    assert (record.status, outcome.structured) == ("succeeded", ADA)


@pytest.mark.parametrize(
    "answer", [{"name": "Ada"}, 0, [], "", "{}", "no", StepOutcome("t", "s", "a", ADA_TEXT, True, {})]
)
def test_what_does_not_fit_is_invalid(make_runner: MakeRunner, answer: Any) -> None:
    """Structured data that an executor returns is what counts, even if its output has something that would fit."""
    outcome, record = run_one(make_runner, FunctionExecutor({"a": lambda spec: answer}), spec_of(""))
    assert (record.status, record.error.type) == ("invalid", "InvalidOutcome")
    assert (outcome.success, outcome.structured) == (False, None)
    assert "[structured output failed: $" in outcome.output
    assert record.error.message.startswith("structured output failed: $")


def test_an_invalid_outcome_keeps_the_text(make_runner: MakeRunner) -> None:
    """The text and the session are the agent's; the errors with their paths are added, the first of them only."""
    text = 'Well…\n{"name": 1, "age": "x", "more": 1}'
    outcome, record = run_one(make_runner, Echo(), spec_of(text, {**SCHEMA, "maxProperties": 2, "minProperties": 9}))
    first, *more = outcome.output.removeprefix(f"{text}\n[structured output failed: ").removesuffix("]").split("; ")
    assert (first, more[-1]) == ("$.name: 1 is not of type 'string'", "and 1 more")
    assert (outcome.task_id, outcome.agent, outcome.session_id) == ("t", "a", "own-session")
    assert len(record.attempts) == 1


def test_structured_data_that_does_not_fit_is_kept_as_text() -> None:
    """It may have been paid for; but `structured` is never something that does not fit."""
    answer = StepOutcome("t", "s", "a", "There:", True, {"name": "Ada"})
    outcome, _ = run_one(Runner, FunctionExecutor({"a": lambda spec: answer}), spec_of(""))
    assert outcome.output == (
        'There:\nstructured: {"name":"Ada"}\n[structured output failed: $: \'age\' is a required property]'
    )
    assert outcome.structured is None


def test_the_errors_are_those_of_the_largest_value(make_runner: MakeRunner) -> None:
    """A reference in brackets is not what the agent is told about."""
    outcome, _ = run_one(make_runner, Echo(), spec_of('As [1] says: {"name": "Ada", "age": "36"}. [2]'))
    assert outcome.output.endswith("[structured output failed: $.age: '36' is not of type 'integer']")


def test_a_failed_outcome_stays_as_it_is(make_runner: MakeRunner) -> None:
    """If the agent says that it has failed, nothing is parsed and nothing repaired."""
    failed = StepOutcome("t", "s", "a", "quota", False, {"code": 5})

    class Failing(Repairing):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            return failed

    outcome, record = run_one(make_runner, Failing(ADA_TEXT), spec_of(""))
    assert outcome == failed
    assert record.status == "failed"


def test_what_no_outcome_can_hold_is_invalid_as_ever(make_runner: MakeRunner) -> None:
    """A function that returns an object without JSON gets the message about that."""
    outcome, record = run_one(make_runner, FunctionExecutor({"a": lambda spec: object()}), spec_of(""))
    assert record.status == "invalid"
    assert "which is no JSON value" in outcome.output


# --- repairs ------------------------------------------------------------------------------------------------------


def test_an_outcome_is_repaired_in_the_same_attempt(make_runner: MakeRunner, ledger: Ledger) -> None:
    """`repair` is asked at most twice, in the worker of the step and its attempt; what it returns is the outcome."""
    outcome, record = run_one(make_runner, Repairing("still no", ADA_TEXT, ledger=ledger), spec_of("no"))
    assert outcome == StepOutcome.completed(spec_of(""), ADA_TEXT, ADA)
    assert (record.status, len(record.attempts)) == ("succeeded", 1)
    assert list(ledger.counts().values()) == [2]


def test_repairs_that_do_not_help_are_told(make_runner: MakeRunner, ledger: Ledger) -> None:
    """After two repairs the step is invalid, with the text that came first and the errors of both."""
    repairing = Repairing("nor here", "{}", ADA_TEXT, ledger=ledger)
    outcome, record = run_one(make_runner, repairing, spec_of("nothing here"))
    assert record.status == "invalid"
    assert outcome.output == (
        "nothing here\n[structured output failed: $: the output has no JSON; after repair 2: $: 'name' is a required "
        "property; $: 'age' is a required property]"
    )
    assert sum(ledger.counts().values()) == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "the step returned None, expected a StepOutcome"),
        (StepOutcome.failed("t", "a", "no\nmoney"), "it failed: no money"),
        (7, "the step returned int 7"),
    ],
)
def test_a_repair_may_fail(make_runner: MakeRunner, ledger: Ledger, answer: Any, told: str) -> None:
    """A failed outcome, or none, is a repair that did not help; the next one gets the same outcome again."""
    outcome, record = run_one(make_runner, Repairing(answer, ledger=ledger), spec_of("no"))
    assert record.status == "invalid"
    assert f"after repair 2: {told}" in outcome.output
    assert outcome.output.startswith("no\n")
    assert sum(ledger.counts().values()) == 2


def test_what_repair_gets(make_runner: MakeRunner) -> None:
    """The outcome that does not fit, and each error with its path."""

    class Asking(Echo):
        def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
            return StepOutcome.completed(spec, f"{outcome.output} {errors}", ADA)

    outcome, _ = run_one(make_runner, Asking(), spec_of('{"name": 1, "age": "x"}'))
    errors = ["$.name: 1 is not of type 'string'", "$.age: 'x' is not of type 'integer'"]
    assert outcome.output == f'{{"name": 1, "age": "x"}} {errors}'


def test_what_repair_raises_the_step_has_raised(make_runner: MakeRunner) -> None:
    """The error has its traceback, the output also the text; retries see the exception."""
    outcome, record = run_one(make_runner, Repairing(ValueError("no client")), spec_of("the text"))
    assert (record.status, record.error.type) == ("raised", "ValueError")
    assert outcome.output == "ValueError: no client\nthe text"
    assert "in repair" in record.error.traceback


def test_repair_may_ask_to_be_tried_again_later(make_runner: MakeRunner) -> None:
    """A `RetryAfter` of `repair` is one of the step."""

    class Refused(Echo):
        def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
            if current_step().attempt == 1:
                raise RetryAfter(0)
            return StepOutcome.completed(spec, ADA_TEXT)

    outcome, record = run_one(make_runner, Refused(), spec_of("no"), retry=2)
    assert outcome.structured == ADA
    assert [attempt.status for attempt in record.attempts] == ["raised", "succeeded"]


def test_async_agents_may_repair(make_runner: MakeRunner) -> None:
    """`async def repair` runs in the event loop, and knows its step."""
    outcome, record = run_one(make_runner, AsyncAgent(), spec_of("no"))
    assert record.status == "succeeded"
    assert (outcome.output, outcome.structured) == ("$: the output has no JSON is mended", ADA)


def test_repair_may_be_set_on_an_object() -> None:
    """So functions can be repaired, too."""
    executor = FunctionExecutor({"a": lambda spec: "no"})
    executor.repair = lambda spec, outcome, errors: StepOutcome.completed(spec, ADA_TEXT)  # type: ignore[method-assign]
    outcome, _ = run_one(Runner, executor, spec_of(""))
    assert outcome.structured == ADA


def test_a_repaired_outcome_keeps_its_step(make_runner: MakeRunner) -> None:
    """`repair` cannot give it to another task or agent."""

    class Other(Echo):
        def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
            return StepOutcome("other", "session", "somebody", ADA_TEXT, True)

    (outcome,) = make_runner(Other()).run([spec_of("no")])
    assert (outcome.task_id, outcome.agent, outcome.structured) == (spec_of("").task_id, spec_of("").agent, ADA)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_repair_counts_in_the_timeout(backend: str, ledger: Ledger) -> None:
    """A repair that hangs is a step that has timed out; and no repair begins after that."""

    class Hanging(Repairing):
        def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
            ledger.note("repair")
            current_step().cancelled.wait(HANG_BOUND_S)
            return StepOutcome.completed(spec, "still no")

    outcome, record = run_one(Runner, Hanging(ledger=ledger), spec_of("no"), backend=backend, timeout=0.5)
    assert record.status == "timed_out"
    assert "timed out after 0.5 s" in outcome.output
    assert ledger.counts() == {"repair": 1}


def test_no_repair_begins_after_the_timeout(ledger: Ledger) -> None:
    """An answer that comes too late is not repaired: nobody would use it."""
    threads: list[threading.Thread] = []

    class Late(Repairing):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            threads.append(threading.current_thread())
            current_step().cancelled.wait(HANG_BOUND_S)
            return StepOutcome.completed(spec, "no")

    _, record = run_one(Runner, Late(ADA_TEXT, ledger=ledger), spec_of("no"), timeout=0.1)
    assert record.status == "timed_out"
    threads[0].join(HANG_BOUND_S)
    assert not threads[0].is_alive()
    assert ledger.counts() == {}


def test_a_check_that_takes_for_ever_counts_in_the_timeout() -> None:
    """A pattern that backtracks without end is killed with its worker, and the other steps run."""
    patient = {"type": "string", "pattern": "^(a+)+$"}
    specs = [spec_of(f'"{"a" * 60}!"', patient, "t0"), spec_of('"aaa"', patient, "t1")]
    run = Runner(Echo(), backend="process", timeout=2).run(specs)
    assert [record.status for record in run.records] == ["timed_out", "succeeded"]


def test_a_forked_child_asks_for_no_repair(make_runner: MakeRunner, ledger: Ledger) -> None:
    """The child of a step that forks ends; only the step itself is repaired."""

    class Forking(Repairing):
        def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12: the process has threads
                child = os.fork()
            if child:
                os.waitpid(child, 0)
            return StepOutcome.completed(spec, "no")

    outcome, _ = run_one(make_runner, Forking(ADA_TEXT, ledger=ledger), spec_of("no"))
    assert outcome.structured == ADA
    assert sum(ledger.counts().values()) == 1


def test_a_worker_may_die_in_a_repair(ledger: Ledger) -> None:
    """The step has crashed, as in any other part of it; the others are not touched."""

    class Dying(Echo):
        def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
            os._exit(7)

    run = Runner(Dying(), backend="process").run([spec_of("no", task_id="t0"), spec_of(ADA_TEXT, task_id="t1")])
    assert [record.status for record in run.records] == ["crashed", "succeeded"]


@pytest.mark.parametrize("repair", [lambda spec, outcome: outcome, "text"])
def test_a_repair_that_cannot_be_called_is_refused(repair: Any) -> None:
    """The error comes before anything runs, as for the other methods of an executor."""
    executor: Any = Echo()
    executor.repair = repair
    with pytest.raises(OptionError, match=r"repair of Echo must take \(self, spec, outcome, errors\), but it"):
        Runner(executor)


def test_an_imitation_of_an_executor_may_raise() -> None:
    """What `create_autospec` makes of a class is an executor like any other."""
    imitation = create_autospec(Echo, instance=True)
    imitation.thread_safe = True
    imitation.concurrency_hint.return_value = 2
    imitation.timeout_for.return_value = None
    imitation.execute_step.side_effect = [ValueError("no"), StepOutcome("t1", "s", "a", ADA_TEXT, True)]
    run = Runner(imitation, max_concurrency=1).run([spec_of("", None, "t0"), spec_of("", SCHEMA, "t1")])
    assert (run[0].output, run[1].structured) == ("ValueError: no", ADA)


def test_processes_of_a_pool_check_it_too() -> None:
    """Answers, repairs and schemas that are none, in processes of a pool of the caller's."""
    specs = [spec_of(ADA_TEXT, task_id="t0"), spec_of("no", task_id="t1"), spec_of("", {"type": "strng"}, "t2")]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        run = Runner(AsyncAgent(), backend=pool).run(specs)
    assert [outcome.structured for outcome in run] == [ADA, ADA, None]
    assert [record.status for record in run.records] == ["succeeded", "succeeded", "invalid"]


# --- schemas that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [{"type": "strng"}, 5, [], {"$ref": "http://127.0.0.1:9/"}, {"const": float("nan")}])
def test_a_step_whose_schema_is_none_does_not_run(make_runner: MakeRunner, ledger: Ledger, schema: Any) -> None:
    """It is invalid before it runs, and is not tried again; the other steps run."""
    calls = Calls(ledger)
    runner = make_runner(calls, retry=Retry(3, wait=0, on_invalid=True, on_failure=True))
    run = runner.run([spec_of("x", schema, "bad"), spec_of(ADA_TEXT, SCHEMA, "good")])
    record = run.records[0]
    assert [each.status for each in run.records] == ["invalid", "succeeded"]
    assert run[0].output.startswith("output_schema is no JSON Schema: ")
    assert record.error is not None
    assert (record.error.type, record.attempts, record.started, record.worker) == ("InvalidSchema", (), None, None)
    assert ledger.counts() == {"good": 1}


class Calls(Echo):
    """Notes each call."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.ledger.note(spec.task_id)
        return super().execute_step(spec, event_tx)


def test_a_class_in_the_place_of_a_schema_says_what_to_write() -> None:
    """The class itself cannot be sent to an agent."""
    outcome, record = run_one(Runner, Echo(), spec_of("", Person))
    assert record.status == "invalid"
    assert "it is the class Person; write spec.with_output_schema(Person)" in outcome.output


# --- retries, and all other ways to run ---------------------------------------------------------------------------


class Learning(Echo):
    """Gives an answer that fits at its third attempt."""

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, ADA_TEXT if current_step().attempt == 3 else "no")


def test_retries_cover_invalid_steps_if_asked_to(make_runner: MakeRunner) -> None:
    """`on_invalid` has a step tried again whose answer does not fit."""
    outcome, record = run_one(make_runner, Learning(), spec_of(""), retry=Retry(3, wait=0, on_invalid=True))
    assert outcome.structured == ADA
    assert [attempt.status for attempt in record.attempts] == ["invalid", "invalid", "succeeded"]
    assert record.attempts[0].reason == "InvalidOutcome: structured output failed: $: the output has no JSON"


@pytest.mark.parametrize("retry", [3, Retry(3, wait=0, on_failure=True, on_timeout=True, on_crash=True)])
def test_retries_do_not_cover_invalid_steps_otherwise(make_runner: MakeRunner, retry: Any) -> None:
    """The same answer would probably come again, and cost the same again."""
    _, record = run_one(make_runner, Learning(), spec_of(""), retry=retry)
    assert (record.status, len(record.attempts)) == ("invalid", 1)


def test_retries_cover_invalid_answers_of_any_kind(make_runner: MakeRunner) -> None:
    """`on_invalid` means the status: also a function that returned nothing, with or without a schema."""

    def forgetful(spec: AgentStepSpec) -> Any:
        return None if current_step().attempt == 1 else "there"

    retry = Retry(2, wait=0, on_invalid=True)
    outcome, _ = run_one(make_runner, FunctionExecutor({"a": forgetful}), spec_of("", None), retry=retry)
    assert outcome.output == "there"


def test_streams_pipelines_and_loops_check_it_too(make_runner: MakeRunner) -> None:
    """However steps are run, one with a schema has a value that fits it."""
    runner = make_runner(Echo())
    specs = [spec_of(ADA_TEXT, task_id="t0"), spec_of("no", task_id="t1")]
    assert [outcome.structured for outcome in runner.stream(specs)] == [ADA, None]
    last = runner.pipeline(["x"], [lambda outcome, item: spec_of(ADA_TEXT)])
    assert last[0] is not None
    assert last[0].structured == ADA
    assert [outcome.structured for outcome in runner.loop(specs, 1, lambda outcomes: Stop())] == [ADA, None]


def test_a_journal_keeps_what_fits(make_runner: MakeRunner, ledger: Ledger) -> None:
    """A step that was invalid runs again; one that has succeeded has its structured value from the journal."""
    journal = MemoryJournal()
    specs = [spec_of(ADA_TEXT, task_id="good"), spec_of("no", task_id="bad")]
    for _ in range(2):
        run = make_runner(Calls(ledger), journal=journal.workflow("w")).run(specs)
        assert [outcome.structured for outcome in run] == [ADA, None]
    assert ledger.counts() == {"good": 1, "bad": 2}


def test_the_end_of_a_step_tells_why(make_runner: MakeRunner) -> None:
    """Events and summaries have the errors, and a summary has them instead of the agent's text."""
    channel = EventChannel()
    receiver = channel.subscribe()
    run: Run = make_runner(Echo(), event_tx=channel).run([spec_of("Sure thing", task_id=f"t{n}") for n in range(3)])
    channel.close()
    ends = [event for event in receiver if isinstance(event, SubagentEnd)]
    assert [(end.success, end.session_id) for end in ends] == [(False, "own-session")] * 3
    assert all("[structured output failed: $: the output has no JSON]" in end.output for end in ends)
    assert "3 invalid: structured output failed: $: the output has no JSON (t0, t1, t2)" in run.summary()
    assert "Sure thing" not in run._repr_html_()


def test_a_stream_keeps_the_reason_of_a_long_answer() -> None:
    """The run of a stream has the beginning of the text and all of the reason."""
    stream = Runner(Echo()).stream([spec_of("x" * 100_000)])
    assert len(list(stream)) == 1
    run = stream.run
    assert len(run[0].output) < 10_000
    assert run[0].output.endswith("\n[structured output failed: $: the output has no JSON]")
    assert "structured output failed" in run.summary()


def test_large_answers_are_checked_where_they_came_from() -> None:
    """It is the worker that parses and validates: nothing of jsonschema is imported in the caller's process."""
    code = (
        "import sys\n"
        "from fanout_sync import *\n"
        "def answer(spec):\n"
        "    return '[' + '1,' * 100_000 + '1]'\n"
        "run = Runner(FunctionExecutor({'a': answer}), backend='process').run([\n"
        "    AgentStepSpec('t', 'a', '', '', output_schema={'items': {'type': 'integer'}})])\n"
        "print(len(run[0].structured), 'jsonschema' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_BOUND_S, check=True
    )
    assert done.stdout == "100001 False\n"


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_run_without_schemas_does_not_import_jsonschema(backend: str) -> None:
    """Specs without a schema pay nothing, in the caller's process and in its workers."""
    code = (
        "import sys\n"
        "from fanout_sync import *\n"
        "def loaded(spec):\n"
        "    heavy = 'jsonschema', 'referencing', 'rpds', 'fanout_sync.executors.structured'\n"
        "    return str([name for name in sys.modules if name.startswith(heavy)])\n"
        f"run = Runner(FunctionExecutor({{'a': loaded}}), backend={backend!r}).run([AgentStepSpec('t', 'a', '', '')])\n"
        "print(run[0].output, 'jsonschema' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_BOUND_S, check=True
    )
    assert done.stdout == "[] False\n"
