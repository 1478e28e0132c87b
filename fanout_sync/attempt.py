"""One try at one step, wherever it runs: whatever the step does short of killing its process ends in a `Report`."""

from __future__ import annotations

import os
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, NamedTuple

from attrs import evolve

from .current import RunningStep, running_step
from .errors import WireError
from .executor import AgentExecutor, EventSender
from .options import not_negative
from .retry_after import RetryAfter
from .status import Status, StepError
from .steps import AgentStepSpec, StepOutcome
from .strict_json import check_json, check_text
from .wording import describe, printable

if TYPE_CHECKING:
    from .records import AttemptRecord, JournalRecord
    from .retry import RetryRule
    from .usage import Usage


class Report(NamedTuple):
    """How one attempt ended. A tuple, because one is made for every step.

    Attributes:
        ticket: The number under which the runner started the attempt: the step's index.
        status: How it ended.
        outcome: What the caller gets.
        error: Why, unless the executor returned an outcome.
        started: Seconds since the epoch; `None` if it never began.
        duration_s: Seconds; `None` if it never began.
        worker: Thread name or process id; `None` if it never began.
        retry_in: How long to wait before another attempt, in seconds; `None` if none is wanted.
        exit_code: Of the worker process that died of it.
        signal: The name of the signal that ended that worker.
        earlier: The attempts before this one.
        retry_after: For how long the step wants nobody to start another one like it, in seconds.
        usage: What all the step's attempts have reported as used; `None` if nothing.
        journalled: What the journal had of the step, which was not run.
    """

    ticket: int
    status: Status
    outcome: StepOutcome
    error: StepError | None
    started: float | None
    duration_s: float | None
    worker: str | int | None
    retry_in: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    earlier: tuple[AttemptRecord, ...] = ()
    retry_after: float | None = None
    usage: Usage | None = None
    journalled: JournalRecord | None = None

    @property
    def reason(self) -> str | None:
        """Why it failed, in words; `None` if it did not."""
        if self.status == "succeeded":
            return None
        return self.outcome.output if self.error is None else str(self.error)


def run_attempt(
    executor: AgentExecutor,
    step: RunningStep,
    event_tx: EventSender | None,
    worker: str | int,
    rule: RetryRule | None = None,
) -> Report:
    """Run `step` on `executor` in this thread and report how it ended; raises nothing.

    Does not return in a child that the step forked: the report, and all other steps, are its parent's.
    """
    forks = _forks
    spec, ticket, attempt, timeout_s, _, _, _ = step
    error = retry_in = retry_after = None
    running_step.set(step)
    started = time()
    clock = perf_counter()
    try:
        outcome = executor.execute_step(spec, event_tx)
        duration_s = perf_counter() - clock
    except BaseException as raised:
        # A step must not end its worker, not even by SystemExit or KeyboardInterrupt; only text of the
        # exception is kept, so that neither its frames nor an object that does not pickle outlives it.
        duration_s = perf_counter() - clock
        error = StepError.of(raised)
        if isinstance(raised, RetryAfter):
            retry_after = _seconds_of(raised)
        if rule is not None and forks == _forks:
            retry_in, error = _ask(rule, spec, attempt, None, raised, error)
    if forks != _forks:
        os._exit(0)
    if timeout_s is not None and duration_s >= timeout_s:
        return timed_out(step, started, duration_s, worker)
    if error is not None:
        report = failure(ticket, spec, "raised", error, started, duration_s, worker)
        return report._replace(retry_in=retry_in, retry_after=retry_after)
    fault = _fault_of(outcome)
    if fault is not None:
        return failure(ticket, spec, "invalid", StepError("InvalidOutcome", fault), started, duration_s, worker)
    if rule is not None and rule.looks_at_outcomes:
        retry_in, error = _ask(rule, spec, attempt, outcome, None, None)
    status = "succeeded" if outcome.success else "failed"
    # Made as a plain tuple is: this is the commonest way to end, and a named tuple's own way takes three times as long.
    fields = (ticket, status, outcome, error, started, duration_s, worker, retry_in, None, None, (), None, None, None)
    succeeded: Report = _NEW(Report, fields)
    return succeeded


def _seconds_of(raised: RetryAfter) -> float | None:
    try:
        return not_negative("seconds of RetryAfter", raised.seconds)
    except BaseException:  # a subclass of the caller's own, whose seconds are none; the retry rule says so
        return None


def _ask(
    rule: RetryRule,
    spec: AgentStepSpec,
    attempt: int,
    outcome: StepOutcome | None,
    raised: BaseException | None,
    error: StepError | None,
) -> tuple[float | None, StepError | None]:
    try:
        return rule.wait_after(spec, attempt, outcome, raised), error
    except BaseException as second:  # the caller's own strategies: what they raise costs the other attempts alone
        from .retry import told_of_strategy

        told = told_of_strategy(second)
        return None, None if error is None else evolve(error, message=f"{error.message}{told}")


_NEW: Any = tuple.__new__
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork either
    os.register_at_fork(after_in_child=_count_fork)


def failure(
    ticket: int,
    spec: AgentStepSpec,
    status: Status,
    error: StepError,
    started: float | None = None,
    duration_s: float | None = None,
    worker: str | int | None = None,
) -> Report:
    """Report a step that has no outcome of its own: the failed outcome keeps the spec's `task_id` and `agent`."""
    message = str(error) if status == "raised" else error.message
    outcome = StepOutcome.failed(spec.task_id, spec.agent, message)
    return Report(ticket, status, outcome, error, started, duration_s, worker)


def timed_out(step: RunningStep, started: float, duration_s: float, worker: str | int, and_then: str = "") -> Report:
    """Report a step that took too long.

    Args:
        step: Which one, with its deadline.
        started: Seconds since the epoch.
        duration_s: Seconds.
        worker: Thread name or process id.
        and_then: What became of the worker.
    """
    spec, ticket, _, timeout_s, _, _, _ = step
    error = StepError("TimeoutError", f"timed out after {timeout_s:g} s{and_then}")
    return failure(ticket, spec, "timed_out", error, started, duration_s, worker)


def _fault_of(outcome: Any) -> str | None:
    """Say why what a step returned is no outcome that the wire can carry; `None` if it is one."""
    try:
        return None if _is_plain(outcome) else _closer_look(outcome)
    except BaseException as error:  # it is somebody's object: a half-made outcome, a dict whose methods raise
        return f"the step returned {describe(outcome)}, which cannot be read: {StepError.of(error)}"


def _is_plain(outcome: Any) -> bool:
    """Whether it is an outcome of the commonest kind, which needs no closer look."""
    return (
        type(outcome) is StepOutcome
        and outcome.structured is None
        and outcome.output.isascii()
        and outcome.task_id.isascii()
        and outcome.session_id.isascii()
        and outcome.agent.isascii()
        and isinstance(outcome.success, bool)
    )


def _closer_look(outcome: Any) -> str | None:
    if not isinstance(outcome, StepOutcome):
        return f"the step returned {describe(outcome)}, expected a StepOutcome"
    try:
        for name in ("task_id", "session_id", "agent", "output"):
            check_text(getattr(outcome, name), name)
        check_json(outcome.structured, "structured")
    except WireError as error:
        return printable(f"the step returned an outcome that the wire cannot carry: {error}")
    success: Any = outcome.success
    return None if isinstance(success, bool) else f"success is {describe(success)}, expected a bool"
