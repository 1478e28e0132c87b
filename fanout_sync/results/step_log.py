"""What a stream keeps of its steps: everything but their outputs, in some forty bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import isnan, nan
from struct import Struct
from typing import Any, overload

import attrs
from attrs import evolve

from ..records.conversion import record_of
from ..records.report import Report, reason_in
from ..records.step_record import AttemptRecord, StepRecord
from ..records.steps import StepOutcome
from ..records.usage import Usage

MAX_TEXT_CHARS = 2000
"""How many characters of the reason of a failed step are kept."""

MAX_TRACEBACKS = 1000
"""How many tracebacks are kept: those of the first failed steps."""

_ROW = Struct("<IddIQ?")
"""Of a step: its index; when it began and how long it took, `nan` if that is not known; the place of its agent and
worker; where its task id ends; whether it was reused."""

_USAGE = Struct("<qqd")
_NO_USAGE = _USAGE.pack(-1, 0, 0.0)


class StepLog(Sequence[Report]):
    """The reports of steps, without their outputs; in a copy that `in_order` returns, by index.

    Of a step that has succeeded at its first attempt, a row of numbers and the task id are kept. Of any other, the
    report is kept. One thread may add, while others ask for copies.
    """

    def __init__(self) -> None:
        self._rows = bytearray()
        self._task_ids = bytearray()
        self._usages = bytearray()  # empty as long as no step has reported any
        self._places = _Words()
        self._others: dict[int, Report] = {}
        self._tracebacks = 0
        self._order: Sequence[int] | None = None

    def add(self, report: Report) -> None:
        """Add the last report of a step."""
        outcome, usage, is_reused = report.outcome, report.usage, False
        if report.journalled is not None:
            is_reused, usage = True, report.journalled.usage
        self._task_ids += outcome.task_id.encode("utf-8", "surrogatepass")
        if usage is not None or self._usages:
            self._add_usage(usage)
        if _is_plain(report):
            place = self._places.place((outcome.agent, report.worker))
        else:
            self._others[len(self)] = self._trimmed(report)
            place = 0
        times = [nan if seconds is None else seconds for seconds in (report.started, report.duration_s)]
        # The last, because it says how many there are.
        self._rows += _ROW.pack(report.index, *times, place, len(self._task_ids), is_reused)

    def extend(self, reports: Iterable[Report]) -> None:
        """Add the last reports of several steps."""
        for report in reports:
            self.add(report)

    def in_order(self) -> StepLog:
        """Return the reports so far, by index."""
        rows, copied = bytearray(self._rows), StepLog()
        copied._rows, copied._task_ids, copied._usages = rows, bytearray(self._task_ids), bytearray(self._usages)
        copied._places, copied._others = self._places, dict(self._others)
        indices = array("q", (row[0] for row in _ROW.iter_unpack(rows)))
        if any(indices[place] > indices[place + 1] for place in range(len(indices) - 1)):
            copied._order = array("q", sorted(range(len(indices)), key=indices.__getitem__))
        return copied

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> list[Report]: ...
    def __getitem__(self, index: int | slice) -> Report | list[Report]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self._order is not None:
            place = self._order[place]
        other = self._others.get(place)
        return self._plain(place) if other is None else other

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    def _add_usage(self, usage: Usage | None) -> None:
        if not self._usages:
            self._usages += _NO_USAGE * len(self)
        self._usages += (
            _NO_USAGE if usage is None else _USAGE.pack(usage.prompt_tokens, usage.completion_tokens, usage.cost_usd)
        )

    def _plain(self, place: int) -> Report:
        index, *times, words, end, is_reused = _ROW.unpack_from(self._rows, place * _ROW.size)
        started, duration_s = (None if isnan(seconds) else seconds for seconds in times)
        begin = 0 if place == 0 else _ROW.unpack_from(self._rows, (place - 1) * _ROW.size)[4]
        task_id = self._task_ids[begin:end].decode("utf-8", "surrogatepass")
        agent, worker = self._places.words[words]
        outcome = StepOutcome(*_names(task_id), agent, "", True)
        report = Report(index, "succeeded", outcome, None, started, duration_s, worker, usage=self._usage(place))
        if is_reused:
            report.journalled = evolve(record_of(report), from_journal=True)
        return report

    def _usage(self, place: int) -> Usage | None:
        if place * _USAGE.size >= len(self._usages):  # no step has reported any, or none had when it was copied
            return None
        used = _USAGE.unpack_from(self._usages, place * _USAGE.size)
        return None if used[0] < 0 else Usage(*used)

    def _trimmed(self, report: Report) -> Report:
        """Return a report without what may be large: outputs, long texts, and the tracebacks of later failures."""
        given, record = report.outcome, report.journalled
        output = "" if given.success else _cut_output(given.output)
        outcome = StepOutcome(given.task_id, given.session_id, given.agent, output, given.success)
        error = report.error if record is None else record.error
        if error is not None:
            self._tracebacks += 1
            trace = error.traceback if self._tracebacks <= MAX_TRACEBACKS else None
            error = evolve(error, message=_cut(error.message), traceback=trace)
        if record is None:
            return evolve(report, outcome=outcome, error=error, attempts=_cut_attempts(report.attempts), spec=None)
        values = {field.name: getattr(record, field.name) for field in attrs.fields(StepRecord)}
        values.update(error=error, attempts=_cut_attempts(record.attempts))
        return evolve(report, outcome=outcome, journalled=StepRecord(**values), spec=None)


class _Words:
    """Gives each value a place in a list: there are few workers and agents, and many steps."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, word: Any) -> int:
        place = self._places.get(word)
        if place is None:
            place = self._places[word] = len(self.words)
            self.words.append(word)
        return place


def _is_plain(report: Report) -> bool:
    """Whether a step has succeeded at its first attempt, and nothing is unusual about it."""
    if report.status != "succeeded" or report.attempts:
        return False
    outcome, record = report.outcome, report.journalled
    if record is not None and record != evolve(record, **_as_if_plain(report, record)):
        return False
    return (outcome.task_id, outcome.session_id) == _names(outcome.task_id)


def _as_if_plain(report: Report, record: StepRecord) -> dict[str, Any]:
    plain = record_of(evolve(report, journalled=None))
    return {name: getattr(plain, name) for name in ("error", "attempts", "started", "finished", "exit_code", "signal")}


def _names(task_id: str) -> tuple[str, str]:
    """Return a task id, and the session id that goes with it by default."""
    return task_id, f"task-run-{task_id}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]} …"


def _cut_output(output: str) -> str:
    """Return the beginning of a failed step's output, and the note after an answer that does not fit its schema."""
    cut, reason = _cut(output), reason_in(output)
    return cut if cut == output or reason == output else f"{cut}\n[{_cut(reason)}]"


def _cut_attempts(attempts: tuple[AttemptRecord, ...]) -> tuple[AttemptRecord, ...]:
    return tuple(
        attempt if attempt.reason is None else evolve(attempt, reason=_cut(attempt.reason)) for attempt in attempts
    )
