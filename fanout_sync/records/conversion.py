"""From the last report of a step to its record."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from attrs import evolve

from .report import Report
from .step_record import AttemptRecord, JournalRecord, StepRecord
from .steps import AgentStepSpec


def record_of(report: Report) -> StepRecord:
    """Return the record of a step from its last report."""
    if report.journalled is not None:
        return evolve(report.journalled, index=report.index)
    return StepRecord(**_values_of(report))


def journal_record_of(report: Report, spec: AgentStepSpec, identity: str | None) -> JournalRecord:
    """Return the record of a step for a journal, from its last report."""
    return JournalRecord(
        **_values_of(report), task_id=spec.task_id, outcome=report.outcome, spec=spec, identity=identity
    )


_SHARED = tuple({field.name for field in attrs.fields(StepRecord)} & {field.name for field in attrs.fields(Report)})


def _values_of(report: Report) -> dict[str, Any]:
    """Return the values of a `StepRecord` by name."""
    values = {name: getattr(report, name) for name in _SHARED}
    started = finished = None
    if report.started is not None and report.duration_s is not None:
        started = datetime.fromtimestamp(report.started, timezone.utc)
        finished = started + timedelta(seconds=report.duration_s)
    values["started"], values["finished"] = started, finished
    earlier = report.attempts
    if report.started is not None or (earlier and report.status != "cancelled"):
        last = AttemptRecord(len(earlier) + 1, report.status, report.reason, report.duration_s, None)
        values["attempts"] = (*earlier, last)
    return values
