"""One attempt at one step, on any backend. Whatever the step does, short of ending its process, gives a `Report`."""

from __future__ import annotations

import inspect
import os
from time import perf_counter, time
from typing import TYPE_CHECKING

from attrs import evolve

from .. import forks
from ..checks import not_negative_seconds
from ..events.senders import EventSender
from ..formatting import printable
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec, StepOutcome
from .answers import FinalOutcome, InvalidOutcome, RefusedStep, SchemaFault, carried
from .async_steps import CodeCancelled, CodeOverdue
from .clock import clock
from .current_step import RunningStep, running_step
from .executor import AgentExecutor

if TYPE_CHECKING:
    from ..retry.policy import RetryRule


def run_attempt(  # noqa: C901 - in one piece, as each step takes this path
    executor: AgentExecutor,
    step: RunningStep,
    event_tx: EventSender | None,
    worker: str | int,
    rule: RetryRule | None = None,
) -> Report:
    """Run `step` on `executor` in this thread and report how it ended; raises nothing.

    If the step forks, this does not return in the child: the report and all other steps belong to the parent.
    """
    forks_before = forks.count
    spec, index, attempt, _, deadline, _, _ = step
    note = ""
    checked = error = retry_in = retry_after = None
    running_step.set(step)
    started = time()
    began = perf_counter()
    try:
        if spec.output_schema is not None:
            from .structured.checked import Checked  # imported lazily: slow, and most specs have no schema

            executor = checked = Checked(executor, step)
        outcome = executor.execute_step(spec, event_tx)
        if type(outcome) is not StepOutcome and inspect.isawaitable(outcome):
            from .async_code import complete  # imported lazily: slow, and few executors are async

            outcome = complete(outcome, step)
        duration_s = perf_counter() - began
        is_late = deadline is not None and clock.has_reached(deadline)
    except BaseException as raised:
        # A step must not end its worker, not even by SystemExit or KeyboardInterrupt. Only the text of the exception
        # is kept: its frames would stay alive, and it may not pickle.
        duration_s = perf_counter() - began
        is_late = deadline is not None and clock.has_reached(deadline)
        if isinstance(raised, CodeCancelled):
            cancelled = StepError("CancelledError", "the run was given up before the step was done")
            return failure(index, spec, "cancelled", cancelled, started, duration_s, worker)
        note = raised.note if isinstance(raised, CodeOverdue) else ""
        error, retry_after = _described(raised)
        retry_in, error = _ask_rule(rule if forks_before == forks.count else None, spec, attempt, None, raised, error)
    if forks_before != forks.count:
        os._exit(0)
    if is_late:
        return timed_out(step, started, duration_s, worker, note)
    if error is not None:
        output = None if checked is None else checked.output_of(error)
        report = failure(index, spec, "raised", error, started, duration_s, worker, output)
        report.retry_in, report.retry_after = retry_in, retry_after
        return report
    outcome, invalid = carried(spec, outcome)
    if invalid is not None:
        return _invalid(step, invalid, started, duration_s, worker)
    if type(outcome) is FinalOutcome:
        outcome = outcome.plain()
    elif rule is not None and rule.looks_at_outcomes:
        retry_in, error = _ask_rule(rule, spec, attempt, outcome, None, None)
    return Report(
        index, "succeeded" if outcome.success else "failed", outcome, error, started, duration_s, worker, retry_in
    )


def _described(raised: BaseException) -> tuple[StepError, float | None]:
    """Describe what a step raised; of a `RetryAfter` also return its seconds."""
    from ..retry.policy import RetryAfter, reason_of  # imported lazily: most workers never see a step fail

    error = StepError.of(raised)
    if not isinstance(raised, RetryAfter):
        return error, None
    if (reason := reason_of(raised)) is not None:
        error = evolve(StepError.of(reason), traceback=error.traceback)
    try:
        return error, not_negative_seconds("seconds of RetryAfter", raised.seconds)
    except BaseException:  # from a subclass of the caller's own with unusable seconds; the retry rule reports it
        return error, None


def _ask_rule(
    rule: RetryRule | None,
    spec: AgentStepSpec,
    attempt: int,
    outcome: StepOutcome | None,
    raised: BaseException | None,
    error: StepError | None,
) -> tuple[float | None, StepError | None]:
    if rule is None:
        return None, error
    try:
        return rule.wait_after(spec, attempt, outcome, raised), error
    except BaseException as second:  # from a strategy of the caller: it costs the step only its other attempts
        from ..retry.policy import report_strategy_error

        note = report_strategy_error(second)
        return None, None if error is None else evolve(error, message=f"{error.message}{note}")


def _invalid(
    step: RunningStep, invalid: InvalidOutcome, started: float, duration_s: float, worker: str | int
) -> Report:
    """Return the report of a step that has returned an invalid outcome, or could not run."""
    spec, index, _, _, _, _, _ = step
    kind = "InvalidSchema" if isinstance(invalid, SchemaFault) else "InvalidOutcome"
    error, output = StepError(kind, invalid.reason), printable(invalid.output)
    if isinstance(invalid, RefusedStep):  # it has not begun, so it is not tried again
        return failure(index, spec, "invalid", error, output=output)
    report = failure(index, spec, "invalid", error, started, duration_s, worker, output=output)
    report.outcome = evolve(report.outcome, session_id=invalid.session_id)
    return report


def timed_out(step: RunningStep, started: float, duration_s: float, worker: str | int, note: str = "") -> Report:
    """Return the report of a step that exceeded its timeout.

    Args:
        step: The step.
        started: When it began, in seconds since the epoch.
        duration_s: Seconds since then.
        worker: Thread name or process id.
        note: A text to add to the message, such as what happens to the worker.
    """
    spec, index, _, timeout_s, _, _, _ = step
    error = StepError("TimeoutError", f"timed out after {timeout_s:g} s{note}")
    return failure(index, spec, "timed_out", error, started, duration_s, worker)
