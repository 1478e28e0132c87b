"""The same steps for fanout_sync: real specs in, real outcomes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, StepOutcome


class Answering(AgentExecutor):
    """Answers each spec with what `function` makes of its prompt."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, self._function(spec.prompt))


class AnsweringAsync(AgentExecutor):
    """Answers each spec with what an async `function` makes of its prompt."""

    def __init__(self, function: Callable[[str], Awaitable[str]]) -> None:
        self._function = function

    async def execute_step(  # type: ignore[override]  # the runner takes either; the signature names the usual one
        self, spec: AgentStepSpec, event_tx: EventSender | None = None
    ) -> StepOutcome:
        return StepOutcome.completed(spec, await self._function(spec.prompt))


def generate_specs(count: int, prompt: str = "hello") -> Iterator[AgentStepSpec]:
    """Yield `count` specs, each made when it is asked for."""
    return (AgentStepSpec(f"step-{number}", "answering", "A step", prompt) for number in range(count))


def specs_for(prompts: list[str]) -> list[AgentStepSpec]:
    """Return one spec for each prompt."""
    return [AgentStepSpec(f"step-{n}", "answering", "A step", prompt) for n, prompt in enumerate(prompts)]
