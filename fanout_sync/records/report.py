"""What is reported of an attempt at a step that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from .status import Status, StepError
from .steps import AgentStepSpec, StepOutcome

if TYPE_CHECKING:
    from .step_record import AttemptRecord, JournalRecord
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
