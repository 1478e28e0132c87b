"""The record of a step: everything that is known about it besides its outcome."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
from attrs import field, frozen

from .display import DisplayedRecord, print_record
from .status import Status, StepError
from .steps import AgentStepSpec, StepOutcome
from .usage import Usage

__all__ = ["AttemptRecord", "JournalRecord", "StepRecord"]


@frozen
class AttemptRecord:
    """One attempt at a step.

    Attributes:
        number: The number of the attempt, from 1.
        status: How it ended; see `Status`.
        reason: Why it failed; `None` if it succeeded.
        duration_s: Seconds; `None` if it never began.
        wait_s: Seconds that the step was to wait before the next attempt; `None` if this was the last.
    """

    number: int
    status: Status
    reason: str | None
    duration_s: float | None
    wait_s: float | None


@frozen
class StepRecord(DisplayedRecord):
    """Everything that is known about one step besides its outcome.

    Attributes:
        index: The step's place in the input, from 0.
        status: How it ended; see `Status`.
        error: Why it failed; `None` if the executor returned an outcome.
        attempts: All attempts, in order; more than one only with retries, none if the step never began.
        started: When the last attempt began in its worker (UTC); `None` if none began, and for a cancelled step.
        finished: When the last attempt ended (UTC); `None` if none began.
        duration_s: Seconds from `started` to `finished`, by a monotonic clock; `None` if it never began.
        worker: The thread's name, or the process id of the worker process; `None` if it never began.
        exit_code: The exit code of the worker process, if the step made it exit.
        signal: The name of the signal that killed the worker process, such as `"SIGSEGV"`.
        usage: The usage that all attempts have reported; `None` if they reported none.
        from_journal: Whether the outcome came from the journal and the step did not run. All other fields then
            describe the earlier run in which it did.
    """

    index: int
    status: Status
    error: StepError | None
    attempts: tuple[AttemptRecord, ...]
    started: datetime | None
    finished: datetime | None
    duration_s: float | None
    worker: str | int | None
    exit_code: int | None = None
    signal: str | None = None
    usage: Usage | None = None
    from_journal: bool = False

    _repr_pretty_ = print_record

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values.

        Times are in ISO 8601; `error`, `usage` and each of `attempts` are dicts of their attributes.
        """
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name not in _OF_JOURNAL, value_serializer=_json)


_OF_JOURNAL = ("task_id", "outcome", "spec", "identity")


def _json(record: Any, attribute: Any, value: Any) -> Any:
    if isinstance(value, datetime):
        return iso_time(value)
    return list(value) if isinstance(value, tuple) else value


def iso_time(time: datetime) -> str:
    """Return a time in ISO 8601, always with microseconds: tables cannot read a column of two formats."""
    return time.isoformat(timespec="microseconds")


@frozen
class JournalRecord(StepRecord):
    """The record of a step in a journal: also has the spec and the outcome.

    Attributes:
        task_id: The `task_id` of its spec.
        outcome: Its outcome.
        spec: Its spec; `None` if that is not known, as for a step of an imported checkpoint.
        identity: A SHA-256, in hex, over the canonical JSON of the workflow's id and every field of the spec; `None` if
            the spec is not known.
    """

    # kw_only on each field, not on the class: older versions of attrs would apply it to the inherited fields, too.
    task_id: str = field(kw_only=True)
    outcome: StepOutcome = field(kw_only=True)
    spec: AgentStepSpec | None = field(default=None, kw_only=True)
    identity: str | None = field(default=None, kw_only=True)

    _repr_pretty_ = print_record

    def to_dict(self) -> dict[str, Any]:
        """As `StepRecord.to_dict`, with `task_id`, `identity`, and the dicts of `outcome` and `spec`."""
        return {
            **super().to_dict(),
            "task_id": self.task_id,
            "outcome": self.outcome.to_dict(),
            "spec": None if self.spec is None else self.spec.to_dict(),
            "identity": self.identity,
        }
