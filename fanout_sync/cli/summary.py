"""The summary of a run that a command line prints."""

from __future__ import annotations

import time

from ..records.status import Status
from ..records.steps import StepOutcome
from ..results.failures import FailureGroups
from .output import shown

MAX_LINES = 25
MAX_CANCELLED_SHOWN = 5
MAX_PATH_CHARS = 4096


class Summary:
    """The summary of a run, in text of at most `MAX_LINES` lines; it holds no more of the outcomes than it may show.

    Args:
        total: How many steps there are.
        place: Where the outcomes go, such as the name of a file.
    """

    def __init__(self, total: int, place: str) -> None:
        self.succeeded = 0
        self.cancelled = 0
        self._total = total
        self._place = place
        self._began = time.monotonic()
        self._failures = FailureGroups(shown)

    @property
    def unsuccessful(self) -> int:
        """How many of the outcomes that were added say failure, those of cancelled steps included."""
        return self._failures.count

    @property
    def done(self) -> int:
        """How many outcomes were added."""
        return self.succeeded + self.unsuccessful

    def add(self, outcome: StepOutcome, status: Status) -> None:
        """Add the outcome of a step, and how that ended."""
        if outcome.success:
            self.succeeded += 1
        else:
            self.cancelled += status == "cancelled"
            self._failures.add(outcome.task_id, outcome.agent, status, outcome.output)

    def progress(self) -> str:
        """Return how far a run came that ended early."""
        return f"{self.done} of {self._total} outcomes were written"

    def interrupted(self, cancelled: list[str] | None, resume: str | None) -> str:
        """Say how far an interrupted run came.

        Args:
            cancelled: The task ids of the steps that were read and cancelled; `None` if that is not known.
            resume: How to resume it; `None` if that is not possible.
        """
        parts = [f"Interrupted: {self.progress()}"]
        if cancelled is not None:
            names = ", ".join(map(shown, cancelled[:MAX_CANCELLED_SHOWN]))
            more = self._total - self.done - min(len(cancelled), MAX_CANCELLED_SHOWN)
            told = " and ".join(filter(None, (names, f"{more} {'more' if names else 'steps'}" if more else "")))
            parts += [f"cancelled: {told}"] * bool(told)
        return "\n".join(["; ".join(parts), *self._where(), *[f"  {resume}"] * (resume is not None)])

    def text(self, reused: int, notes: list[str], resume: str | None) -> str:
        """Return the summary of a run that came to its end.

        Args:
            reused: How many of the outcomes came from the journal.
            notes: Further lines.
            resume: How to run the failed steps again; `None` if that is not possible.
        """
        failed = self.unsuccessful - self.cancelled
        by_end = {"succeeded": self.succeeded, "failed": failed, "cancelled": self.cancelled}
        counts = [f"{count} {end}" for end, count in by_end.items() if count]
        elapsed = time.monotonic() - self._began
        steps = "1 step" if self.done == 1 else f"{self.done} steps"
        lines = [f"{steps} in {elapsed:.1f} s: {', '.join(counts) or 'nothing to do'}"]
        lines += [f"  from the journal: {reused}"] * bool(reused)
        lines += [f"  {note}" for note in notes]
        where = [*self._where(), *[f"  {resume}"] * (resume is not None and self.unsuccessful > 0)]
        lines += self._failures.lines(MAX_LINES - len(lines) - len(where))
        return "\n".join([*lines, *where])

    def _where(self) -> list[str]:
        """Return the line that says where the outcomes are, if there are any."""
        return [f"  outcomes: {shown(self._place, MAX_PATH_CHARS)}"] * bool(self.done)
