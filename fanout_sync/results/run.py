"""The result of a run."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import overload

from ..records.conversion import record_of
from ..records.report import Report
from ..records.step_record import StepRecord
from ..records.steps import StepOutcome

__all__ = ["Run"]

MAX_REASON_CHARS = 200
"""How many characters of the reason of a failed step `summary` shows."""

MAX_SLOWEST = 3
"""How many of the slowest steps `summary` shows."""


class Run(Sequence[StepOutcome]):
    """The outcomes of one run, in the order of its specs, with a record of each step.

    Attributes:
        records: One `StepRecord` for each outcome, in the same order.
        elapsed: Seconds from the start of the call to its end.
    """

    def __init__(self, reports: Sequence[Report], elapsed: float, notes: Sequence[str] = ()) -> None:
        self._notes = notes
        self._outcomes = [report.outcome for report in reports]
        self.records: Sequence[StepRecord] = Records(reports)
        self.elapsed = elapsed

    @property
    def succeeded(self) -> list[StepOutcome]:
        """The outcomes that say success, in order."""
        return [outcome for outcome in self._outcomes if outcome.success]

    @property
    def failed(self) -> list[StepOutcome]:
        """The outcomes that say failure, in order."""
        return [outcome for outcome in self._outcomes if not outcome.success]

    def summary(self) -> str:
        """Return a text for people: counts by status, the time, the slowest steps, each failed step with its reason.

        It also says how many outcomes came from the journal, and how much of a budget is used up. A reason is cut to
        one line of at most `MAX_REASON_CHARS` characters.
        """
        records = list(self.records)
        counts = Counter(record.status for record in records)
        by_status = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "nothing to do"
        steps = "1 step" if len(self) == 1 else f"{len(self)} steps"
        lines = [f"{steps} in {self.elapsed:.1f} s: {by_status}"]
        tried_again = sum(len(record.attempts) > 1 for record in records)
        if tried_again:
            lines.append(f"  tried more than once: {tried_again}")
        reused = sum(record.from_journal for record in records)
        if reused:
            lines.append(f"  from the journal: {reused}")
        lines += [f"  {note}" for note in self._notes]
        timed = [(_busy_s(record), place) for place, record in enumerate(records) if _has_run(record)]
        slowest = heapq.nlargest(MAX_SLOWEST, timed, key=lambda item: item[0])
        if slowest:
            named = ", ".join(f"{self[place].task_id} {busy_s:.3g} s" for busy_s, place in slowest)
            lines.append(f"  slowest: {named}")
        for outcome, record in zip(self, records, strict=True):
            if not outcome.success:
                lines.append(f"  {outcome.task_id} ({outcome.agent}) {record.status}: {_shortened(outcome.output)}")
        return "\n".join(lines)

    @overload
    def __getitem__(self, index: int) -> StepOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepOutcome]: ...
    def __getitem__(self, index: int | slice) -> StepOutcome | list[StepOutcome]:
        return self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Run):
            return self._outcomes == other._outcomes
        return self._outcomes == other

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list

    def __repr__(self) -> str:
        return f"<Run of {len(self)} steps, {len(self.failed)} failed, {self.elapsed:.3g} s>"


class Records(Sequence[StepRecord]):
    """The records of a run. Each one is made when it is asked for, because most never are."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._reports = reports

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return record_of(self._reports[place])

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return repr(list(self))


def _has_run(record: StepRecord) -> bool:
    return bool(record.attempts) and not record.from_journal


def _busy_s(record: StepRecord) -> float:
    return sum(attempt.duration_s or 0.0 for attempt in record.attempts)


def _shortened(text: str) -> str:
    line, _, rest = text.partition("\n")
    is_cut = bool(rest) or len(line) > MAX_REASON_CHARS
    return f"{line[:MAX_REASON_CHARS]} …" if is_cut else line
