"""Specs that ask for what a program cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from attrs import frozen
from programs import own_backends, spec_for

from fanout_sync import AgentStepSpec, Command, CommandExecutor, Continue, InputError, Retry, Runner, Stop
from fanout_sync.events.types import Event
from fanout_sync.executors.command.answer import Answer

pytestmark = pytest.mark.usefixtures("no_program_left")


class LastLine:
    """Reads an answer that is the last line."""

    def __init__(self) -> None:
        self.text = ""

    def line(self, line: str) -> Iterable[Event]:
        self.text = line
        return ()

    def is_complete(self) -> bool:
        return False

    def pause(self, rest: str) -> None:
        return None

    def answer(self, exit_status: int | None, stderr: str) -> Answer:
        return Answer(self.text)


@frozen
class Capless:
    """A program that has no cap on turns."""

    program: str = "cat"
    prompt: str = "stdin"
    needs_schema_file: bool = False
    how_to_get: str = "nowhere"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        return {}

    def private_folder_variable(self) -> str | None:
        return None

    def private_variables(self, *_: object) -> dict[str, str]:
        return {}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return spec.prompt

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        return None if spec.max_steps is None else f"cat has no cap on turns (max_steps={spec.max_steps})"

    def reader(self, spec: AgentStepSpec) -> LastLine:
        return LastLine()


EXECUTOR = CommandExecutor({"a": Command(["cat"], preset=Capless())})  # type: ignore[arg-type]  # `prompt` is a str
GOOD, BAD = spec_for(task_id="good"), spec_for(task_id="bad", max_steps=5)

EXPECTED = r"specs\[1\], step 'bad' of agent 'a': cat has no cap on turns \(max_steps=5\)"

Call = Callable[[Runner, Iterable[AgentStepSpec]], Any]
CALLS: dict[str, Call] = {
    "run": lambda runner, specs: runner.run(specs),
    "stream": lambda runner, specs: list(runner.stream(specs)),
    "start": lambda runner, specs: runner.start(specs).result(),
    "loop": lambda runner, specs: runner.loop(specs, 2, lambda outcomes: Stop()),
}


@own_backends
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_refused_before_anything_runs(call: Call, kind: type, backend: Any) -> None:
    """If the input is a list, a spec that asks for what the program cannot do ends the call before its first step."""
    events: list[str] = []
    runner = Runner(EXECUTOR, backend=backend, event_tx=lambda event: events.append(event.type))
    with pytest.raises(InputError, match=EXPECTED):
        call(runner, kind([GOOD, BAD]))
    assert "subagent_start" not in events


@own_backends
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_in_any_other_input_the_step_is_invalid(call: Call, backend: Any) -> None:
    """If the input is no list, that step alone is invalid, and it is not tried again."""
    runner = Runner(EXECUTOR, backend=backend, retry=Retry(3, wait=0, on_failure=True))
    good, bad = call(runner, iter([GOOD, BAD]))
    assert good.output == "hello"
    assert (bad.success, bad.output) == (False, "cat has no cap on turns (max_steps=5)")


def test_a_later_round_of_a_loop() -> None:
    """In a later round of a loop the step alone is invalid: the rounds before have run."""
    outcomes = Runner(EXECUTOR).loop([GOOD], 2, lambda outcomes: Continue([GOOD, BAD]))
    assert [outcome.success for outcome in outcomes] == [True, False]


def test_the_record_of_such_a_step() -> None:
    """Its status is `invalid`, and there was no attempt."""
    run = Runner(EXECUTOR, retry=Retry(3, wait=0, on_failure=True)).run(iter([BAD]))
    assert run.records[0].status == "invalid"
    assert run.records[0].attempts == ()
