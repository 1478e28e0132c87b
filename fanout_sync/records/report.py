"""The report of an attempt at a step that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from .status import Status, StepError
from .steps import AgentStepSpec, StepOutcome

if TYPE_CHECKING:
    from .step_record import AttemptRecord, StepRecord
    from .usage import Usage


@define(eq=False)
class Report:
    """How one attempt ended. Mutable, because there is one for every step, and frozen objects are slower to make.

    A field that a `StepRecord` has, too, has the same name there.

    Attributes:
        index: The step's index.
        status: How the attempt ended.
        outcome: What the caller gets.
        error: Why it failed, unless the executor returned an outcome.
        started: Seconds since the epoch; `None` if it never began.
        duration_s: Seconds; `None` if it never began.
        worker: The thread's name or the process id; `None` if it never began.
        retry_in: Seconds to wait before another attempt; `None` if there is to be none.
        retry_after: Seconds during which no step with the same rate limit key is to start; `None` if the step did not
            raise `RetryAfter`.
        exit_code: The exit code of the worker process, if the step ended that process.
        signal: The name of the signal that killed that process.
        attempts: The attempts before this one.
        usage: The usage that all attempts at the step have reported; `None` if they reported none.
        journalled: The record in the journal, if the outcome came from there and the step was not run.
        spec: The spec of a step that did not succeed, to run it again; otherwise `None`. The run sets it, no worker.
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
    journalled: StepRecord | None = None
    spec: AgentStepSpec | None = None

    @property
    def reason(self) -> str | None:
        """Why it failed, in words; `None` if it did not."""
        if self.status == "succeeded":
            return None
        return self.outcome.output if self.error is None else str(self.error)


STRUCTURED_FAILED = "structured output failed: "
"""How the note begins that is added to an answer which does not fit the schema of its spec."""


def reason_in(output: str) -> str:
    """Return the part of a failed step's output that says why it failed: all of it, or the note after an answer."""
    begin = output.rfind(f"[{STRUCTURED_FAILED}")
    if begin < 0 or output[begin - 1 : begin] not in ("", "\n"):
        return output
    return output[begin + 1 :].partition("\n")[0].removesuffix("]")


def failure(
    index: int,
    spec: AgentStepSpec,
    status: Status,
    error: StepError,
    started: float | None = None,
    duration_s: float | None = None,
    worker: str | int | None = None,
    output: str | None = None,
) -> Report:
    """Return the report of a step that returned no outcome: the failed one has the spec's `task_id` and `agent`.

    Its `output` is the message of the error, unless another one is given.
    """
    if output is None:
        output = str(error) if status == "raised" else error.message
    outcome = StepOutcome.failed(spec.task_id, spec.agent, output)
    return Report(index, status, outcome, error, started, duration_s, worker)
