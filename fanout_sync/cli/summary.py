"""The summary of a run that a command line prints."""

from __future__ import annotations

import time

from ..records.steps import StepOutcome
from .output import shown

MAX_FAILURES_SHOWN = 20
MAX_CANCELLED_SHOWN = 5


class Summary:
    """The summary of a run, in text; it holds no more of the outcomes than it shows."""

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
        """Return how far a run came that ended early."""
        return f"{self.done} of {self._total} outcomes were written"

    def interrupted(self, cancelled: list[str] | None, *, resumes: bool) -> str:
        """Say how far an interrupted run came.

        Args:
            cancelled: The task ids of the steps that were read and cancelled; `None` if that is not known.
            resumes: Whether the same command resumes the run.
        """
        parts = [f"Interrupted: {self.progress()}"]
        if cancelled is not None:
            names = ", ".join(map(shown, cancelled[:MAX_CANCELLED_SHOWN]))
            more = self._total - self.done - min(len(cancelled), MAX_CANCELLED_SHOWN)
            told = " and ".join(filter(None, (names, f"{more} {'more' if names else 'steps'}" if more else "")))
            parts += [f"cancelled: {told}"] * bool(told)
        return "; ".join([*parts, *["the same command resumes"] * resumes])

    def text(self, reused: int, notes: list[str]) -> str:
        """Return the summary of a run that came to its end.

        Args:
            reused: How many of the outcomes came from the journal.
            notes: Further lines.
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
