"""What is known about a step beyond its outcome."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .status import Status, StepError
from .steps import AgentStepSpec, StepOutcome
from .usage import Usage

__all__ = ["AttemptRecord", "JournalRecord", "StepRecord"]


@frozen
class AttemptRecord:
    """One try at a step.

    Attributes:
        number: Which one, from 1.
        status: How it ended; see `Status`.
        reason: Why it failed; `None` if it did not.
        duration_s: Seconds; `None` if it never began.
        wait_s: Seconds from its end to the next one's turn, as decided; `None` if it was the last.
    """

    number: int
    status: Status
    reason: str | None
    duration_s: float | None
    wait_s: float | None


@frozen
class StepRecord:
    """Everything known about one step but its outcome.

    Attributes:
        index: The step's place in the input, from 0.
        status: How it ended; see `Status`.
        error: Why, unless the executor returned an outcome.
        attempts: Each try at it, in order; more than one only with retries, none if it never began.
        started: When its worker began the last attempt (UTC); `None` if none did, and for a cancelled step.
        finished: When that ended (UTC); `None` if it never began.
        duration_s: Seconds from `started` to `finished`, by a monotonic clock; `None` if it never began.
        worker: The thread's name, or the process id of the worker process; `None` if it never began.
        exit_code: The exit code of the worker process that died of it, if it exited.
        signal: The name of the signal that ended that worker, such as `"SIGSEGV"`, if one did.
        usage: What all its attempts have reported as used; `None` if they reported nothing.
        from_journal: Whether the outcome came from the journal, and the step did not run; then all else here tells of
            the time when it did.
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


@frozen
class JournalRecord(StepRecord):
    """A step as a journal has it: its record, and what was run with what outcome.

    Attributes:
        task_id: The `task_id` of its spec.
        outcome: What came of it.
        spec: What was run; `None` if that is not known, as for a step of an imported checkpoint.
        identity: A SHA-256, in hex, over the canonical JSON of the workflow's id and every field of the spec; `None` if
            the spec is not known.
    """

    # Each of them, not the class: older versions of attrs then have the inherited ones by name only, too.
    task_id: str = field(kw_only=True)
    outcome: StepOutcome = field(kw_only=True)
    spec: AgentStepSpec | None = field(default=None, kw_only=True)
    identity: str | None = field(default=None, kw_only=True)
