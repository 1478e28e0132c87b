"""Picklable helpers for tests of code that runs in worker processes; this package's own tests use them, too."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from ..events.senders import EventSender
from ..executors.executor import AgentExecutor
from ..records.steps import AgentStepSpec, StepOutcome

Misdeed = Callable[[AgentStepSpec], Any]
"""A function that a step calls instead of its work; the step returns what it returns."""


def make_specs(count: int, agent: str = "tester") -> list[AgentStepSpec]:
    """Return `count` specs with the task ids `"t0"`, `"t1"`, …, each with its number as the prompt."""
    return [AgentStepSpec(f"t{index}", agent, f"step {index}", str(index)) for index in range(count)]


@frozen
class Ledger:
    """A file to which each step that begins adds a line, so that a test can count how often each one ran.

    Attributes:
        path: The file; it need not exist.
    """

    path: Path = field(converter=Path)

    def note(self, task_id: str) -> None:
        """Add a line, in one piece even if other processes write at the same time."""
        line = f"{task_id}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def counts(self) -> Counter[str]:
        """Return how often each task id was noted."""
        return Counter(self.path.read_text().split()) if self.path.exists() else Counter()


class LedgerExecutor(AgentExecutor):
    """Notes each step in a ledger, then returns its prompt as output, or calls the misdeed for its task id.

    Args:
        ledger: The ledger that notes the steps.
        misdeeds: What to call instead, by task id.
        concurrency: How many steps may run at once.
    """

    def __init__(self, ledger: Ledger, misdeeds: Mapping[str, Misdeed] | None = None, concurrency: int = 4) -> None:
        self.ledger = ledger
        self.misdeeds = dict(misdeeds or {})
        self.concurrency = concurrency

    def concurrency_hint(self) -> int:
        return self.concurrency

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        self.ledger.note(spec.task_id)
        misdeed = self.misdeeds.get(spec.task_id)
        if misdeed is not None:
            outcome: StepOutcome = misdeed(spec)
            return outcome
        return StepOutcome.completed(spec, spec.prompt)
