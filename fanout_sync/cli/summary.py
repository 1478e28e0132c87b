"""What came of a run, for people."""

from __future__ import annotations

import time

from ..records.steps import StepOutcome
from .output import shown

MAX_FAILURES_SHOWN = 20
MAX_CANCELLED_SHOWN = 5


class Summary:
    """What came of a run, for people; it holds no more of the outcomes than it shows."""

    def __init__(self, total: int) -> None:
        self.succeeded = 0
        self.failed = 0
        self._total = total
        self._began = time.monotonic()
        self._failures: list[str] = []

    @property
    def done(self) -> int:
        """How many outcomes were added."""
        return self.succeeded + self.failed

    def add(self, outcome: StepOutcome) -> None:
        if outcome.success:
            self.succeeded += 1
            return
        self.failed += 1
        if len(self._failures) < MAX_FAILURES_SHOWN:
            task, agent, reason = map(shown, (outcome.task_id, outcome.agent, outcome.output))
            self._failures.append(f"  {task} ({agent}): {reason}")

    def progress(self) -> str:
        """Say how far a run came that did not come to its end."""
        return f"{self.done} of {self._total} outcomes were written"

    def cancelled(self, known: list[str]) -> str:
        """Say which steps were not done.

        Args:
            known: Those that had been read.
        """
        names = ", ".join(map(shown, known[:MAX_CANCELLED_SHOWN]))
        more = self._total - self.done - min(len(known), MAX_CANCELLED_SHOWN)
        told = " and ".join(filter(None, (names, f"{more} {'more' if names else 'steps'}" if more else "")))
        return f"; cancelled: {told}" if told else ""

    def text(self, reused: int, notes: list[str]) -> str:
        """Say what came of a run that came to its end.

        Args:
            reused: How many of the outcomes came from the journal.
            notes: What else is to be said.
        """
        counts = [f"{self.succeeded} succeeded"] * bool(self.succeeded) + [f"{self.failed} failed"] * bool(self.failed)
        elapsed = time.monotonic() - self._began
        steps = "1 step" if self.done == 1 else f"{self.done} steps"
        lines = [f"{steps} in {elapsed:.1f} s: {', '.join(counts) or 'nothing to do'}"]
        lines += [f"  from the journal: {reused}"] * bool(reused)
        lines += [f"  {note}" for note in notes]
        lines += self._failures
        if self.failed > len(self._failures):
            lines.append(f"  … and {self.failed - len(self._failures)} more")
        return "\n".join(lines)
