"""The result of a run."""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, overload

from ..formatting import close_words, describe
from ..records.conversion import record_of
from ..records.report import Report
from ..records.step_record import StepRecord, iso_time
from ..records.steps import Json, StepOutcome
from ..records.usage import Usage
from ..tracebacks import ShortIndexError, ShortKeyError, ShortTypeError
from ..wire.strict_json import write_json

__all__ = ["Run"]

MAX_SUMMARY_LINES = 25
"""How many lines `summary` has at most."""

MAX_SLOWEST = 3
"""How many of the slowest steps `summary` shows."""

MAX_COMPARED = 1000
"""How many task ids are compared with an unknown one to find similar ones: it is slow."""

MAX_NAME_CHARS = 80
"""How many characters of the task id of a slow step `summary` shows."""


class Run(Sequence[StepOutcome]):
    """The outcomes of one run, in the order of its specs, with a record of each step.

    `run[0]` is the first outcome, and `run["t1"]` that of the step with the task id `"t1"`: a `KeyError` if there is
    none, or more than one. `"t1" in run` says whether there is any.

    Attributes:
        records (Sequence[StepRecord]): One `StepRecord` for each outcome, in the same order.
        elapsed (float): Seconds from the start of the call to its end.
    """

    def __init__(self, reports: Sequence[Report], elapsed: float, notes: Sequence[str] = ()) -> None:
        self._reports = reports
        self._notes = notes
        self._places_by_id: dict[str, list[int]] | None = None
        self.records: Sequence[StepRecord] = Records(reports)
        self.elapsed = elapsed

    @property
    def succeeded(self) -> list[StepOutcome]:
        """The outcomes that say success, in order."""
        return [outcome for outcome in self if outcome.success]

    @property
    def failed(self) -> list[StepOutcome]:
        """The outcomes that say failure, in order."""
        return [outcome for outcome in self if not outcome.success]

    @property
    def usage(self) -> Usage:
        """What all steps of this run together have reported; steps that the journal had have used nothing in it."""
        usages = [report.usage for report in self._reports if report.journalled is None and report.usage is not None]
        return sum(usages, start=Usage())

    def values(self) -> list[Json]:
        """Return what each step came to, in order: `structured`, else `output`; `None` for a failed step."""
        return [_value(outcome) for outcome in self]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a flat dict for each step, of its outcome and its record.

        So `pandas.DataFrame(run.to_dicts())` is a table.
        All have the same keys, and all values are `str`, `int`, `float`, `bool` or `None`: `structured` is JSON text,
        times are in ISO 8601, `attempts` is a number. What is not known is `None`.
        """
        return [_row(report.outcome, record_of(report)) for report in self._reports]

    def summary(self) -> str:
        """Return a text for people: counts by status, the time, the slowest steps, and why steps have failed.

        It also says how many outcomes came from the journal, and how much of a budget is used up. It has at most
        25 lines: failed steps with the same reason have one line, with their number and the task ids
        of three, and so have all cancelled steps. Two reasons are the same if their first lines differ only in words
        that have a digit, such as numbers, durations, addresses and ids of requests, or in the command of a program.
        But a number after "code", "status", "HTTP" or "errno" makes a difference.
        """
        from .failures import FailureGroups, first_line  # imported lazily: slow, it compiles regular expressions

        counts = Counter[str]()
        tried_again = reused = 0
        failures = FailureGroups(first_line)
        for report in self._reports:
            counts[report.status] += 1
            tried_again += _is_tried_again(report)
            reused += _is_reused(report)
            if not (outcome := report.outcome).success:
                failures.add(outcome.task_id, outcome.agent, report.status, outcome.output)
        by_status = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "nothing to do"
        steps = "1 step" if len(self) == 1 else f"{len(self)} steps"
        lines = [f"{steps} in {self.elapsed:.1f} s: {by_status}"]
        lines += [f"  tried more than once: {tried_again}"] * bool(tried_again)
        lines += [f"  from the journal: {reused}"] * bool(reused)
        lines += [f"  {note}" for note in self._notes]
        lines += self._slowest()
        return "\n".join([*lines, *failures.lines(MAX_SUMMARY_LINES - len(lines))])

    def _slowest(self) -> list[str]:
        from .failures import first_line  # as above

        timed = ((_busy_s(report), -place) for place, report in enumerate(self._reports) if _has_run(report))
        slowest = [
            f"{first_line(self[-place].task_id, MAX_NAME_CHARS)} {busy_s:.3g} s"
            for busy_s, place in heapq.nlargest(MAX_SLOWEST, timed)
        ]
        return [f"  slowest: {', '.join(slowest)}"] * bool(slowest)

    def _places(self) -> dict[str, list[int]]:
        """Return the indices of the steps with each task id."""
        if self._places_by_id is None:
            places: dict[str, list[int]] = {}
            for place, outcome in enumerate(self):
                places.setdefault(outcome.task_id, []).append(place)
            self._places_by_id = places
        return self._places_by_id

    def _place_of(self, task_id: str) -> int:
        places = self._places().get(task_id, [])
        if not places:
            close = close_words(task_id, islice(self._places(), MAX_COMPARED))
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ShortKeyError(f"no step of this run has the task_id {task_id!r}{hint}")
        if len(places) > 1:
            shown = ", ".join(map(str, places[:5])) + ", …" * (len(places) > 5)
            raise ShortKeyError(f"{len(places)} steps of this run have the task_id {task_id!r}; use an index: {shown}")
        return places[0]

    def _in_range(self, index: int) -> int:
        try:
            place = operator.index(index)
        except TypeError:
            raise ShortTypeError(f"a run has an int, a slice or a task_id as index, got {describe(index)}") from None
        if not -len(self) <= place < len(self):
            raise ShortIndexError(f"there is no step {place} in a run of {len(self)} steps")
        return place

    @overload
    def __getitem__(self, index: int | str) -> StepOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepOutcome]: ...
    def __getitem__(self, index: int | str | slice) -> StepOutcome | list[StepOutcome]:
        if isinstance(index, slice):
            return [report.outcome for report in self._reports[index]]
        return self._reports[self._place_of(index) if isinstance(index, str) else self._in_range(index)].outcome

    def __iter__(self) -> Iterator[StepOutcome]:
        return (report.outcome for report in self._reports)

    def __contains__(self, value: object) -> bool:
        return value in self._places() if isinstance(value, str) else super().__contains__(value)

    def __len__(self) -> int:
        return len(self._reports)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Run) else other)

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


def _value(outcome: StepOutcome) -> Json:
    if not outcome.success:
        return None
    return outcome.output if outcome.structured is None else outcome.structured


def _row(outcome: StepOutcome, record: StepRecord) -> dict[str, Any]:
    error, usage = record.error, record.usage
    return {
        "index": record.index,
        "task_id": outcome.task_id,
        "agent": outcome.agent,
        "session_id": outcome.session_id,
        "success": outcome.success,
        "status": record.status,
        "output": outcome.output,
        "structured": None if outcome.structured is None else write_json(outcome.structured),
        "error_type": None if error is None else error.type,
        "error_message": None if error is None else error.message,
        "attempts": len(record.attempts),
        "started": None if record.started is None else iso_time(record.started),
        "finished": None if record.finished is None else iso_time(record.finished),
        "duration_s": record.duration_s,
        "worker": record.worker,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "cost_usd": None if usage is None else usage.cost_usd,
        "from_journal": record.from_journal,
    }


def _is_tried_again(report: Report) -> bool:
    if report.journalled is None and not report.attempts:
        return False
    return len(record_of(report).attempts) > 1


def _is_reused(report: Report) -> bool:
    return report.journalled is not None and report.journalled.from_journal


def _has_run(report: Report) -> bool:
    return not _is_reused(report) and (report.started is not None or bool(report.attempts))


def _busy_s(report: Report) -> float:
    return sum(attempt.duration_s or 0.0 for attempt in report.attempts) + (report.duration_s or 0.0)
