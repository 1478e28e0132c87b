"""One attempt at a step whose agent is a program."""

from __future__ import annotations

import math

from ...events.senders import EventSender
from ...formatting import with_output_tail
from ...records.steps import AgentStepSpec, StepOutcome
from ..async_steps import CodeCancelled, CodeOverdue
from ..current_step import Cancelled, RunningStep, StopSignal, running_step
from ..stopping import promise_to_stop
from .command import Command
from .conclusion import concluded
from .invocation import environment_of, invocation_of, schema_file, why_not_started
from .masking import Masker, secrets_in
from .output_readers import LineOutput, TellText, WholeOutput, is_whole_answer
from .own_programs import OwnPrograms
from .program import Idle, Overdue, Patience, Program
from .program_errors import ProgramIdle
from .start_interval import start_times


def run_command(
    command: Command, spec: AgentStepSpec, event_tx: EventSender | None, programs: OwnPrograms
) -> StepOutcome:
    """Run the program of a step and return its outcome.

    Args:
        command: How the program is run.
        spec: The step, which the command does not refuse.
        event_tx: Takes the events; `None` if nobody listens.
        programs: Counts the program.

    Raises:
        ProgramFailed: It has ended without an answer.
        ProgramIdle: It was killed, having written nothing for too long.
        RetryAfter: The server that it asks wants to be left alone for a while.
        CodeOverdue, CodeCancelled: It was killed, because the timeout of the step was over, or the run was given up.
        OSError: It cannot be started.
    """
    step = running_step.get()
    if step is not None:
        promise_to_stop(step)
    _await_start(command, step)
    return _run(command, spec, event_tx, programs, step)


def _run(
    command: Command,
    spec: AgentStepSpec,
    event_tx: EventSender | None,
    programs: OwnPrograms,
    step: RunningStep | None,
) -> StepOutcome:
    with (
        programs.one_more() as (mark, folders),
        schema_file(command, spec, folders.make_parent) as schema_path,
        environment_of(command, spec, folders) as environment,
    ):
        invocation = invocation_of(command, spec, schema_path)
        masker = Masker(secrets_in(environment))
        output = _output_of(command, spec, event_tx, masker)
        try:
            program = Program(invocation.arguments, environment, command.cwd, invocation.stdin, mark)
        except OSError as error:
            raise type(error)(error.errno, masker(why_not_started(error, command, invocation.arguments[0]))) from None
        status = _status_of(program, command, step, output)
    return concluded(command, spec, status, output, masker)


def _await_start(command: Command, step: RunningStep | None) -> None:
    """Wait until the command may be started."""
    wait_s = start_times.reserve(command, command.start_interval) if command.start_interval else 0.0
    cancelled = Cancelled(StopSignal(), None) if step is None else Cancelled(step[5], step[4])
    if wait_s > 0:
        cancelled.wait(wait_s)
    if step is not None and step[5].is_set():
        raise CodeCancelled
    if cancelled:
        raise CodeOverdue(f"; {command.name} was not started, because of its start_interval" if wait_s > 0 else "")


def _output_of(command: Command, spec: AgentStepSpec, event_tx: EventSender | None, masker: Masker) -> WholeOutput:
    """Return what takes the output of the program."""
    tell = None if event_tx is None else TellText(spec, event_tx, masker)
    if command._preset is not None:
        return LineOutput(command.max_output_bytes, masker, command._preset.reader(spec), event_tx, tell)
    if command.output != "json":
        return WholeOutput(command.max_output_bytes, masker, tell)
    return WholeOutput(
        command.max_output_bytes, masker, finds_answer=lambda text: is_whole_answer(text, command.answer)
    )


def _status_of(program: Program, command: Command, step: RunningStep | None, output: WholeOutput) -> int | None:
    """Return the exit status of a program, when it and all that it has started has ended."""
    deadline = None if step is None else step[4]
    idle_timeout_s = math.inf if command.idle_timeout is None else command.idle_timeout
    patience = Patience(math.inf if deadline is None else deadline, idle_timeout_s, command.exit_grace)
    stop = StopSignal() if step is None else step[5]
    stop.listen(program.cancel)
    try:
        status = program.communicate(output, patience, stop)
    except Overdue:
        output.end()
        killed = f"; {command.name} (process {program.pid}) and all that it had started were killed"
        raise CodeOverdue(with_output_tail(killed, output.masked_stderr(), output.masked_stdout())) from None
    except Idle:
        output.end()
        raise ProgramIdle(command.name, idle_timeout_s, output.masked_stdout(), output.masked_stderr()) from None
    finally:
        stop.unlisten(program.cancel)
    output.end()
    return status
