"""What a run of the runner returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import overload

from .attempt import Report
from .records import StepRecord
from .steps import StepOutcome


class Run(Sequence[StepOutcome]):
    """The outcomes of one run, in the order of its specs, and what else is known of each.

    Attributes:
        records: One `StepRecord` for each outcome, in the same order.
        elapsed: Seconds from the call to its return.
    """

    def __init__(self, reports: Sequence[Report], elapsed: float) -> None:
        self._outcomes = [report.outcome for report in reports]
        self.records: Sequence[StepRecord] = Records(reports)
        self.elapsed = elapsed

    @property
    def succeeded(self) -> list[StepOutcome]:
        """The outcomes that say success, in order."""
        return [outcome for outcome in self._outcomes if outcome.success]

    @property
    def failed(self) -> list[StepOutcome]:
        """The outcomes that do not, in order, whatever the reason."""
        return [outcome for outcome in self._outcomes if not outcome.success]

    def summary(self) -> str:
        """Return the counts, the time and each failed step with its reason, for people to read."""
        counts = Counter(record.status for record in self.records)
        told = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "nothing to do"
        lines = [f"{len(self)} steps in {self.elapsed:.1f} s: {told}"]
        for outcome, record in zip(self, self.records, strict=True):
            if not outcome.success:
                lines.append(f"  {outcome.task_id} ({outcome.agent}) {record.status}: {_first_line(outcome.output)}")
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
    """The records of a run, made when they are looked at: most never are."""

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
        return _record(place, self._reports[place])

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return repr(list(self))


def _record(index: int, report: Report) -> StepRecord:
    started = finished = None
    if report.started is not None and report.duration_s is not None:
        started = datetime.fromtimestamp(report.started, timezone.utc)
        finished = started + timedelta(seconds=report.duration_s)
    return StepRecord(index, report.status, report.error, started, finished, report.duration_s, report.worker)


def _first_line(text: str) -> str:
    line, _, rest = text.partition("\n")
    return f"{line} …" if rest else line
