"""From what a program has written, and how it has ended, to the outcome of its step."""

from __future__ import annotations

import signal

from attrs import evolve

from ...formatting import with_output_tail
from ...records.steps import AgentStepSpec, StepOutcome, session_id_of
from ...retry.policy import RetryAfter
from ..answers import FinalOutcome, InvalidOutcome, outcome_of
from ..current_step import current_step, running_step
from .answer import Answer, Failure
from .command import Command
from .masking import Masker
from .output_readers import AnswerNotFound, LineOutput, WholeOutput, answer_in_json
from .program_errors import ProgramFailed

FIRST_WAIT_S = 5.0
"""Seconds until the next attempt after a first refusal that does not say how long to wait; each doubles the wait."""

LONGEST_WAIT_S = 60.0


def concluded(
    command: Command, spec: AgentStepSpec, status: int | None, output: WholeOutput, masker: Masker
) -> StepOutcome:
    """Return the outcome of a step whose program has ended.

    Args:
        command: How the program was run.
        spec: The step.
        status: Its exit status; negative if a signal has ended it, and `None` if it was killed after its answer.
        output: What it has written.
        masker: Masks secrets.

    Raises:
        ProgramFailed: There is no answer, and another attempt may bring one.
        RetryAfter: The server that the program asks wants to be left alone for a while.
    """
    if isinstance(output, LineOutput):
        answer = _masked(output.preset_reader.answer(status, output.masked_stderr()), masker)
        _report_usage(answer)
        if answer.failure is not None:
            return _failed(answer.failure, answer.session_id, command, spec, status, output)
    if status:
        raise _failure(_ended(command, status), command, status, output)
    if isinstance(output, LineOutput):
        outcome = _completed(spec, answer)
    elif command.output == "json":
        outcome = _of_json(command, spec, output, masker)
    elif command.output == "text":
        outcome = StepOutcome.completed(spec, output.masked_stdout().rstrip("\r\n"))
    else:
        assert callable(command.output)
        outcome = outcome_of(spec, command.output(output.masked_stdout()))
    if outcome.success and outcome.structured is None and not outcome.output.strip():
        raise _no_answer(command, output)
    return outcome


def _of_json(command: Command, spec: AgentStepSpec, output: WholeOutput, masker: Masker) -> StepOutcome:
    """Return the outcome of a program that writes JSON; it is invalid without an answer that an outcome can hold."""
    if output.stdout.is_empty:
        raise _no_answer(command, output)
    try:
        outcome = _completed(spec, answer_in_json(output.stdout.text(), command.answer, masker))
    except AnswerNotFound as error:
        cut = f" (it was longer than max_output_bytes={command.max_output_bytes})" if output.stdout.is_cut else ""
        reason = masker(f"{command.name}: {error}{cut}")
    else:
        if not isinstance(outcome, InvalidOutcome):
            return outcome
        reason = outcome.reason
    return InvalidOutcome.because(spec, reason, output.masked_stdout())


def _completed(spec: AgentStepSpec, answer: Answer) -> StepOutcome:
    if answer.structured is None:
        outcome = StepOutcome.completed(spec, answer.text)
    else:
        outcome = outcome_of(spec, answer.structured)
        if answer.text and outcome.success:
            outcome = evolve(outcome, output=answer.text)
    return outcome if answer.session_id is None else evolve(outcome, session_id=answer.session_id)


def _failed(
    failure: Failure,
    session_id: str | None,
    command: Command,
    spec: AgentStepSpec,
    status: int | None,
    output: WholeOutput,
) -> StepOutcome:
    # The reader of the preset has read stdout, which is no text for people.
    error = ProgramFailed(failure.message, status or 0, command.name, "", output.masked_stderr())
    if failure.kind == "rate_limited":
        raise RetryAfter(_wait_s(failure)) from error
    if failure.kind in ("overloaded", "network", "program"):
        raise error
    message = with_output_tail(failure.message, output.masked_stderr())
    return FinalOutcome(spec.task_id, session_id or session_id_of(spec.task_id), spec.agent, message, False)


def _wait_s(failure: Failure) -> float:
    if failure.wait_s is not None:
        return max(0.0, failure.wait_s)
    step = running_step.get()
    attempt = 1 if step is None else step[2]
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 10))


def _report_usage(answer: Answer) -> None:
    if running_step.get() is not None and (answer.prompt_tokens or answer.completion_tokens or answer.cost_usd):
        current_step().add_usage(
            prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, cost_usd=answer.cost_usd
        )


def _masked(answer: Answer, masker: Masker) -> Answer:
    failure = answer.failure
    return evolve(
        answer,
        text=masker(answer.text),
        structured=masker.in_json(answer.structured),
        failure=None if failure is None else evolve(failure, message=masker(failure.message)),
    )


def _ended(command: Command, status: int) -> str:
    if status > 0:
        return f"{command.name} has ended with exit status {status}"
    return f"{command.name} was ended by {_signal_name(-status)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _no_answer(command: Command, output: WholeOutput) -> ProgramFailed:
    return _failure(f"{command.name} has ended with exit status 0, but without an answer", command, 0, output)


def _failure(message: str, command: Command, status: int, output: WholeOutput) -> ProgramFailed:
    return ProgramFailed(message, status, command.name, output.masked_stdout(), output.masked_stderr())
