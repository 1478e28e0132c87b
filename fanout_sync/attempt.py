"""One try at one step, wherever it runs: whatever the step does short of killing its process ends in a `Report`."""

from __future__ import annotations

import os
from time import perf_counter, time
from typing import Any, NamedTuple

from .errors import WireError
from .executor import AgentExecutor, EventSender
from .records import Status, StepError
from .steps import AgentStepSpec, StepOutcome
from .strict_json import check_json, check_text
from .wording import describe, printable


class Report(NamedTuple):
    """How one attempt ended. A tuple, because one is made for every step.

    Attributes:
        ticket: The number under which the runner started the attempt.
        status: How it ended.
        outcome: What the caller gets.
        error: Why, unless the executor returned an outcome.
        started: Seconds since the epoch; `None` if it never began.
        duration_s: Seconds; `None` if it never began.
        worker: Thread name or process id; `None` if it never began.
    """

    ticket: int
    status: Status
    outcome: StepOutcome
    error: StepError | None
    started: float | None
    duration_s: float | None
    worker: str | int | None


def run_attempt(
    executor: AgentExecutor, ticket: int, spec: AgentStepSpec, event_tx: EventSender | None, worker: str | int
) -> Report:
    """Run `spec` on `executor` in this thread and report how it ended; raises nothing.

    Does not return in a child that the step forked: the report, and all other steps, are its parent's.
    """
    forks = _forks
    error = None
    started = time()
    clock = perf_counter()
    try:
        outcome = executor.execute_step(spec, event_tx)
    except BaseException as raised:
        # A step must not end its worker, not even by SystemExit or KeyboardInterrupt; only text of the
        # exception is kept, so that neither its frames nor an object that does not pickle outlives it.
        error = StepError.of(raised)
    duration_s = perf_counter() - clock
    if forks != _forks:
        os._exit(0)
    if error is not None:
        return failure(ticket, spec, "raised", error, started, duration_s, worker)
    fault = _fault_of(outcome)
    if fault is not None:
        return failure(ticket, spec, "invalid", StepError("InvalidOutcome", fault), started, duration_s, worker)
    return Report(ticket, "succeeded" if outcome.success else "failed", outcome, None, started, duration_s, worker)


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
