"""What is reported of a step that has ended, and the record that is made of it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from attrs import define, evolve

from .status import Status, StepError
from .step_record import AttemptRecord, JournalRecord, StepRecord
from .steps import AgentStepSpec, StepOutcome
from .usage import Usage


@define(eq=False)
class Report:
    """How one attempt ended: made for every step, so a plain mutable class, which is made faster than a frozen one.

    What a `StepRecord` has of it, it has under the same name.

    Attributes:
        index: The step's index.
        status: How the attempt ended.
        outcome: What the caller gets.
        error: Why it failed, unless the executor returned an outcome.
        started: Seconds since the epoch; `None` if it never began.
        duration_s: Seconds; `None` if it never began.
        worker: The thread's name or the process id; `None` if it never began.
        retry_in: How long to wait before another attempt, in seconds; `None` if none is wanted.
        retry_after: For how long the step wants no other step like it to start, in seconds.
        exit_code: The exit code of the worker process that died of it.
        signal: The name of the signal that ended that worker.
        attempts: The attempts before this one.
        usage: What all attempts at the step have reported as used; `None` if nothing.
        journalled: What the journal had of the step, which was not run.
    """

    index: int
    status: Status
    outcome: StepOutcome
    error: StepError | None
    started: float | None
    duration_s: float | None
    worker: str | int | None
    retry_in: float | None = None
    retry_after: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    usage: Usage | None = None
    journalled: JournalRecord | None = None

    @property
    def reason(self) -> str | None:
        """Why it failed, in words; `None` if it did not."""
        if self.status == "succeeded":
            return None
        return self.outcome.output if self.error is None else str(self.error)


def failure(
    index: int,
    spec: AgentStepSpec,
    status: Status,
    error: StepError,
    started: float | None = None,
    duration_s: float | None = None,
    worker: str | int | None = None,
) -> Report:
    """Report a step that has no outcome of its own: the failed outcome has the spec's `task_id` and `agent`."""
    message = str(error) if status == "raised" else error.message
    outcome = StepOutcome.failed(spec.task_id, spec.agent, message)
    return Report(index, status, outcome, error, started, duration_s, worker)


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
