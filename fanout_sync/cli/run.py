"""`fanout-sync run`: run the steps of a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any, Literal, NoReturn

import click

from ..checks import NAMES_ELSEWHERE, positive_amount, positive_seconds
from ..engine.stream import latest_status
from ..engine.warn import warnings_shown_by
from ..errors import ExecutorNotPicklable, FanoutError, FanoutInterrupted, JournalError, OptionError, RunSoFar
from ..interrupts import InterruptScope
from ..records.status import Status
from ..records.steps import StepOutcome
from ..runner.runner import Runner
from .executor_choice import PRESETS, ExecutorChoice
from .inputs import Inputs, input_options
from .limits import Limits
from .lines_file import EventsFile, LinesFile, lines_to
from .output import INTERRUPTED, SOME_FAILED, say_last, write_error, write_line
from .resume import resume_line
from .same_file import JournalFile, refuse_same_file
from .shown_progress import ShownProgress
from .steps_file import StepsFile
from .summary import Summary


def _checked(check: Callable[[str, Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that checks the value of an option; errors name the option as the user typed it."""
    return lambda _, option, value: None if value is None else check(max(option.opts, key=len), value)


def _not_empty(name: str, value: str) -> str:
    if not value:
        raise OptionError(f"{name} must not be empty")
    return value


class _RunCommand(click.Command):
    """A command that knows what other programs call its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name.replace("_", "-") not in _JOBS_ELSEWHERE:
                raise
            message = f"No such option {error.option_name!r}. Did you mean '--jobs'?"
            raise click.UsageError(message, ctx) from None  # `NoSuchOption` shows only similar words


_JOBS_ELSEWHERE = {
    f"--{name.replace('_', '-')}" for name, option in NAMES_ELSEWHERE.items() if option == "max_concurrency"
} | {"--max-concurrency"}


@click.command(cls=_RunCommand)
@input_options
@click.option(
    "--executor",
    "target",
    metavar="TARGET",
    help="What runs the steps: package.module:name or path/file.py:name, where the name is an executor, an executor "
    "class or a function that makes one, or a dict of functions.",
)
@click.option(
    "--command",
    metavar="'PROGRAM ARG …'",
    help="Or a program that gets each prompt on its standard input; split as by a shell, and run without one.",
)
@click.option("--preset", type=click.Choice(PRESETS), help="Or a coding agent that is installed.")
@click.option(
    "--model", metavar="M", callback=_checked(_not_empty), help="The model of the preset.  [default: its own]"
)
@click.option(
    "--backend", type=click.Choice(["thread", "process"]), default="thread", show_default=True, help="Where steps run."
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="How many run at once.  [default: what TARGET says]"
)
@click.option("-o", "--output", default="-", metavar="OUT.jsonl", help="Where outcomes go.  [default: standard output]")
@click.option("--events", metavar="EVENTS.jsonl", help="Where events go, live.  [default: nowhere]")
@click.option(
    "--journal",
    metavar="RUN.db",
    callback=_checked(_not_empty),
    help="Where outcomes are kept, so that the same command resumes a run that was cut short.  [default: nowhere]",
)
@click.option(
    "--workflow", metavar="NAME", callback=_checked(_not_empty), help='Under what name.  [default: "default"]'
)
@click.option(
    "--on-conflict",
    type=click.Choice(["refuse", "rerun"]),
    help="What to do if steps have changed since they were journalled: refuse the run, or run them again.  "
    "[default: refuse]",
)
@click.option(
    "--retry", type=click.IntRange(min=1), metavar="N", help="How often a step is tried altogether.  [default: 1]"
)
@click.option(
    "--timeout",
    type=float,
    metavar="S",
    callback=_checked(positive_seconds),
    help="How many seconds a try may take.  [default: any]",
)
@click.option(
    "--rpm",
    type=float,
    metavar="N",
    callback=_checked(positive_amount),
    help="How many tries may start a minute.  [default: any]",
)
@click.option(
    "--tpm", type=click.IntRange(min=1), metavar="N", help="How many tokens steps may take a minute.  [default: any]"
)
@click.option(
    "--max-cost",
    type=float,
    metavar="USD",
    callback=_checked(positive_amount),
    help="What all steps together may cost, as far as they report it.  [default: any]",
)
@click.option(
    "--max-failures",
    type=click.IntRange(min=1),
    metavar="N",
    help="After so many failed steps no more are started.  [default: any]",
)
@click.option(
    "--progress/--no-progress",
    default=True,
    show_default=True,
    help="Show how far the run is, on the standard error: live on a terminal, elsewhere a line every ten seconds and "
    "at the end.",
)
def run(
    steps: str | None,
    prompts: str | None,
    template: str | None,
    rows: str | None,
    target: str | None,
    command: str | None,
    preset: str | None,
    model: str | None,
    backend: Literal["thread", "process"],
    jobs: int | None,
    output: str,
    events: str | None,
    progress: bool,
    **limits: Any,
) -> None:
    """Run the steps of a file; "-" is the standard input.

    The steps are JSON Lines, or prompts, one a line, if the name of the file ends in .txt.

    Writes one outcome for each step, in the order of the steps, each as soon as all before it are written, and a
    summary to the standard error. All steps are checked before the first one runs.

    With --journal, the same command resumes: steps that have succeeded do not run again, and all outcomes are written
    again. The summary ends with that command if there is anything left to do.

    Exits with 0 if all steps succeeded, 1 if some did not, 2 if nothing was run, 130 if it was interrupted (Ctrl-C or
    SIGTERM); the outcomes of steps that were done are written then, too.
    """
    asked = Limits(**limits)
    if output == events == "-":
        raise OptionError("outcomes and events cannot both go to the standard output; name a file with -o")
    inputs, choice = Inputs(steps, prompts, template, rows), ExecutorChoice(target, command, preset, model)
    workflow, budget = asked.journal_workflow(), asked.budget()
    with ExitStack() as files:
        source = files.enter_context(inputs.open())
        outcomes = files.enter_context(lines_to(output))
        event_lines = None if events is None else files.enter_context(lines_to(events))
        refuse_same_file(
            {
                "the steps": source,
                "the template": inputs.template_file(),
                "the outcomes": outcomes,
                "the events": event_lines,
                "the journal": None if asked.journal is None else JournalFile(asked.journal),
            }
        )
        source.check(before_first=outcomes.begin)
        event_tx = None if event_lines is None else EventsFile(event_lines)
        shown_progress = ShownProgress.on_stderr([outcomes, event_lines]) if progress else None
        runner = Runner(
            choice.executor(source.agents),
            backend=backend,
            max_concurrency=jobs,
            timeout=asked.timeout,
            retry=asked.retry,
            rate_limit=asked.rate_limit(),
            budget=budget,
            max_failures=asked.max_failures,
            journal=workflow,
            event_tx=event_tx,
            progress=None if shown_progress is None else shown_progress.as_option(),
        )
        summary = Summary(len(source), "standard output" if output == "-" else output)
        resume = None if workflow is None else resume_line(inputs.paths, [outcomes, event_lines])
        with (
            _sigterm_as_ctrl_c(),
            warnings_shown_by(lambda text: click.echo(f"warning: {text}", err=True)),
            InterruptScope(encloses_others=True) as scope,
        ):
            with _errors_say(resume), shown_progress or nullcontext():
                cancelled = _write_outcomes(runner, source, outcomes, summary, scope)
            if scope.is_interrupted:
                text = summary.interrupted(cancelled, None if source.journal is None else resume)
            else:
                reused = 0 if source.journal is None else source.journal.reused
                text = summary.text(reused, [] if budget is None else [budget.summary_line()], resume)
            say_last(text)
        if scope.is_interrupted:
            raise click.exceptions.Exit(INTERRUPTED)
        if event_tx is not None and event_tx.error is not None:
            raise write_error(event_tx.lines, event_tx.error, "events")
    if summary.unsuccessful:
        raise click.exceptions.Exit(SOME_FAILED)


def _write_outcomes(
    runner: Runner,
    source: StepsFile,
    outcomes: LinesFile,
    summary: Summary,
    scope: InterruptScope,
) -> list[str] | None:
    """Write the outcome of each step, and those of an interrupted run that were done.

    Returns:
        The task ids of the steps of an interrupted run that were read and cancelled; `None` if that is not known.

    Raises:
        ClickException, Exit, FanoutError: The run ended early, and not because of an interrupt.
    """

    def take(outcome: StepOutcome, status: Status) -> None:
        write_line(outcomes, outcome.to_json(), "outcomes")
        summary.add(outcome, status)

    cancelled: list[str] | None = None
    try:
        with closing(runner.stream(source)) as stream:
            for outcome in stream:
                take(outcome, latest_status(stream))
    except FanoutInterrupted as interrupted:
        scope.note()
        cancelled = _cancelled_of(interrupted.run)
        try:
            _take_done(interrupted.run, take)
        except (KeyboardInterrupt, click.exceptions.Exit, click.ClickException):
            # Another Ctrl-C, because writing takes long; or the reader of a pipe was interrupted as well.
            cancelled = None
    except KeyboardInterrupt:  # a second Ctrl-C, because writing takes long
        scope.note()
    except FanoutError as error:
        _end_with(error, take, summary)
    except (click.exceptions.Exit, click.ClickException):  # the outcomes cannot be written
        if not scope.is_interrupted:
            raise
    return cancelled


def _end_with(error: FanoutError, take: Callable[[StepOutcome, Status], None], summary: Summary) -> NoReturn:
    """Write the outcomes of steps that were done, and raise the error that ended the run."""
    if isinstance(error, (JournalError, ExecutorNotPicklable)) and error.run is not None:
        _take_done(error.run, take)
    if isinstance(error, JournalError):
        error = JournalError(error.reason.replace("on_conflict='rerun'", "--on-conflict rerun"))
    if not summary.done:
        raise error from None
    raise click.ClickException(f"{error}; {summary.progress()}") from None


@contextmanager
def _errors_say(resume: str | None) -> Iterator[None]:
    """Say how to resume a run that an error cuts short, or a reader that leaves; `None` if that is not possible."""
    try:
        yield
    except click.exceptions.Exit:  # the reader of the outcomes, such as `head`, needs no more of them
        if resume is not None:
            say_last(resume)
        raise
    except click.ClickException as error:
        if resume is None:
            raise
        raise click.ClickException(f"{error.message}\n  {resume}") from None


def _cancelled_of(run: RunSoFar) -> list[str]:
    ends = zip(run, run.records, strict=True)
    return [outcome.task_id for outcome, record in ends if record.status == "cancelled"]


def _take_done(run: RunSoFar, take: Callable[[StepOutcome, Status], None]) -> None:
    """Pass the outcomes of a run that ended early to `take`, except those of cancelled steps."""
    for outcome, record in zip(run, run.records, strict=True):
        if record.status != "cancelled":
            take(outcome, record.status)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
