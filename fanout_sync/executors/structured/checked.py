"""An executor whose outcomes fit the schema of their spec, or are invalid."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from attrs import evolve

from ... import forks
from ...events.senders import EventSender
from ...formatting import printable
from ...records.report import STRUCTURED_FAILED
from ...records.status import StepError
from ...records.steps import AgentStepSpec, StepOutcome
from ...wire.schema_text import NotASchema
from ...wire.strict_json import shortened, write_json
from ..answers import InvalidOutcome, SchemaFault, carried
from ..current_step import Cancelled, RunningStep
from ..executor import AgentExecutor
from .candidates import Candidate, candidates, why_no_json
from .validation import MOST_CHARS, CompiledSchema, compiled

MOST_REPAIRS = 2
"""How often an executor is asked to repair an outcome."""

MOST_SHOWN = 3
"""How many errors stand in the output of a step."""


class UnstructuredOutcome(InvalidOutcome):
    """The failed outcome of a step whose answer does not fit the schema of its spec.

    The last line of its `output` is the reason, in brackets. The other lines have what came.
    """

    __slots__ = ()

    @property
    def reason(self) -> str:
        """The errors, with their paths."""
        return self.output.rpartition("\n")[2][1:-1]

    @classmethod
    def of(cls, outcome: StepOutcome, reason: str) -> UnstructuredOutcome:
        """Return the outcome of a step as invalid, for a reason of one line; its text has what is `structured`, too."""
        kept = _kept(outcome)
        output = f"{kept}\n[{reason}]" if kept else f"[{reason}]"
        return cls(outcome.task_id, outcome.session_id, outcome.agent, output, False)


class Checked(AgentExecutor):
    """Runs one step on another executor, checks what comes against the schema of the spec, and has it repaired.

    If the schema is none, the outcome is a `SchemaFault`, and the other executor is not called.

    Args:
        executor: Runs the step.
        step: The step; its spec has a schema.
    """

    def __init__(self, executor: AgentExecutor, step: RunningStep) -> None:
        self._executor = executor
        self._step = step
        self._forks = forks.count
        self._original: StepOutcome | None = None

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> Any:
        try:
            schema = compiled(spec.output_schema)
        except NotASchema as fault:
            return SchemaFault.because(spec, fault.error.message)
        outcome, invalid = carried(spec, self._awaited(self._executor.execute_step(spec, event_tx)))
        if invalid is not None:
            return invalid
        if not outcome.success:
            return outcome
        self._original = outcome
        answer, errors = _checked(outcome, schema)
        return self._repaired(outcome, errors, schema) if errors else answer

    def output_of(self, error: StepError) -> str | None:
        """Return the output of a step that has raised an error, with what `execute_step` had returned.

        Returns:
            `None` if it had returned nothing.
        """
        return None if self._original is None else f"{error}\n{_kept(self._original)}"

    def _repaired(self, original: StepOutcome, errors: list[str], schema: CompiledSchema) -> StepOutcome:
        """Return an outcome of the executor's `repair` that fits; if there is none, the original one as invalid."""
        spec, _, _, _, deadline, stop, _ = self._step
        repair, should_stop = _repair_of(self._executor), Cancelled(stop, deadline)
        outcome = original
        reason = first_reason = STRUCTURED_FAILED + _joined(errors)
        repairs = 0
        while repair is not None and repairs < MOST_REPAIRS and not should_stop:
            repairs += 1
            repaired, invalid = carried(spec, self._awaited(repair(spec, outcome, list(errors))))
            if invalid is not None:
                complaint = _line(invalid.reason)
            elif not repaired.success:
                complaint = _line(f"it failed: {repaired.output}")
            else:
                outcome = evolve(repaired, task_id=original.task_id, agent=original.agent)
                answer, errors = _checked(outcome, schema)
                if not errors:
                    return answer
                complaint = _joined(errors)
            reason = f"{first_reason}; after repair {repairs}: {complaint}"
        return UnstructuredOutcome.of(original, reason)

    def _awaited(self, outcome: Any) -> Any:
        if type(outcome) is not StepOutcome and inspect.isawaitable(outcome):
            from ..async_code import complete  # imported lazily: slow, and few executors are async

            outcome = complete(outcome, self._step)
        if self._forks != forks.count:  # a child that the step has forked: the step belongs to the parent
            os._exit(0)
        return outcome


def _repair_of(executor: AgentExecutor) -> Callable[[AgentStepSpec, StepOutcome, list[str]], Any] | None:
    """Return the `repair` of an executor; `None` if it has none of its own."""
    return None if getattr(executor.repair, "__func__", None) is AgentExecutor.repair else executor.repair


def _checked(outcome: StepOutcome, schema: CompiledSchema) -> tuple[StepOutcome, list[str]]:
    """Return an outcome with a `structured` that is valid, or unchanged with the errors that it has."""
    if outcome.structured is not None:
        return outcome, schema.errors(outcome.structured)
    largest: Candidate | None = None
    for candidate in candidates(outcome.output):
        if schema.accepts(candidate.value):
            return evolve(outcome, structured=candidate.value), []
        if largest is None or candidate.size > largest.size:
            largest = candidate
    if largest is None:
        return outcome, [why_no_json(outcome.output)]
    # The largest one is most likely the answer; another may be no more than a reference such as [1].
    return outcome, schema.errors(largest.value) or ["$: it cannot be checked"]


def _kept(outcome: StepOutcome) -> str:
    """Return the output of an outcome, and its `structured` if that is not the same."""
    if outcome.structured is None or (text := write_json(outcome.structured)) == outcome.output:
        return outcome.output
    return f"{outcome.output}\nstructured: {text}" if outcome.output else f"structured: {text}"


def _joined(errors: list[str]) -> str:
    more = len(errors) - MOST_SHOWN
    return "; ".join(errors[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _line(text: str) -> str:
    return shortened(printable(" ".join(text.splitlines())), MOST_CHARS)
