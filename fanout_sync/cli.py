"""The command line: `fanout-sync`, which is `python -m fanout_sync` too."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Literal, NoReturn

import click

from .errors import FanoutError, FanoutInterrupted, OptionError, WireError
from .interrupts import Guard
from .line_files import EventsFile, LinesFile, StepsFile, lines_to, refuse_same_file
from .runner import Runner
from .steps import StepOutcome
from .target import resolve_target

SOME_FAILED = 1
NOTHING_WAS_RUN = 2
INTERRUPTED = 130  # what a shell says of a program that SIGINT ended

MAX_FAILURES_SHOWN = 20
MAX_REASON_CHARS = 200
MAX_CANCELLED_SHOWN = 5


class _Commands(click.Group):
    """Ends with a message and an exit status where something went wrong that is no fault of this program."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except FanoutError as error:
            # What is wrong with a line starts with its place, as editors want it.
            has_place = isinstance(error, WireError) and error.line is not None
            click.echo(f"{error}" if has_place else f"Error: {error}", err=True)
            raise click.exceptions.Exit(NOTHING_WAS_RUN) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fanout_sync", prog_name="fanout-sync")
def main() -> None:
    """Run many agent steps at once, and get every outcome back in order.

    Steps and outcomes are JSON Lines: one step, or one outcome, a line.
    """


@main.command()
@click.argument("steps", metavar="STEPS.jsonl")
@click.option(
    "--executor",
    "target",
    metavar="TARGET",
    required=True,
    help="What runs the steps: package.module:name or path/file.py:name, where the name is an executor, an executor "
    "class or a function that makes one, or a dict of functions.",
)
@click.option(
    "--backend", type=click.Choice(["thread", "process"]), default="thread", show_default=True, help="Where steps run."
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="How many run at once.  [default: what TARGET says]"
)
@click.option("-o", "--output", default="-", metavar="OUT.jsonl", help="Where outcomes go.  [default: standard output]")
@click.option("--events", metavar="EVENTS.jsonl", help="Where events go, live.  [default: nowhere]")
def run(
    steps: str,
    target: str,
    backend: Literal["thread", "process"],
    jobs: int | None,
    output: str,
    events: str | None,
) -> None:
    """Run the steps of a file; "-" is the standard input.

    Writes one outcome for each step, in the order of the steps, each as soon as all before it are written, and a
    summary to the standard error. All is checked before the first step runs.

    Exits with 0 if all steps succeeded, 1 if some did not, 2 if nothing was run, 130 if it was interrupted (Ctrl-C or
    SIGTERM): outcomes of steps that were done are written then, too.
    """
    if output == events == "-":
        raise OptionError("outcomes and events cannot both go to the standard output; name a file with -o")
    with ExitStack() as files:
        source = files.enter_context(StepsFile(steps))
        outcomes = files.enter_context(lines_to(output))
        event_lines = None if events is None else files.enter_context(lines_to(events))
        refuse_same_file(source, outcomes, event_lines)
        event_tx = None if event_lines is None else EventsFile(event_lines)
        runner = Runner(resolve_target(target), backend=backend, max_concurrency=jobs, event_tx=event_tx)
        source.check(before_first=outcomes.begin)
        summary = Summary(len(source))
        _run(runner, source, outcomes, summary)
        click.echo(summary.text(), err=True)
        if event_tx is not None and event_tx.error is not None:
            raise _write_error(event_tx.lines, event_tx.error, "events")
    if summary.failed:
        raise click.exceptions.Exit(SOME_FAILED)


@main.command()
@click.argument("steps", metavar="STEPS.jsonl")
def validate(steps: str) -> None:
    """Check that every line of a file is a step; "-" is the standard input.

    Exits with 0 if so; otherwise with 2, and says what is wrong with the first line that is none.
    """
    with StepsFile(steps) as source:
        count = source.count()
    click.echo(f"{count} step{' is' if count == 1 else 's are'} valid")


def _run(runner: Runner, source: StepsFile, outcomes: LinesFile, summary: Summary) -> None:
    def take(outcome: StepOutcome) -> None:
        _write(outcomes, outcome)
        summary.add(outcome)

    try:
        with _terminated_like_interrupted():
            try:
                _take_all(runner.stream(source), take)
            except FanoutInterrupted as interrupted:
                _tell_interrupt(interrupted, take, summary)
    except FanoutError as error:
        if not summary.done:
            raise
        raise click.ClickException(f"{error}; {summary.progress()}") from None


def _take_all(stream: Generator[StepOutcome, None, None], take: Callable[[StepOutcome], None]) -> None:
    with closing(stream):
        try:
            for outcome in stream:
                take(outcome)
        except FanoutInterrupted:
            raise
        except KeyboardInterrupt as interrupt:  # not while it waited for an outcome: there may be more of them
            stream.throw(interrupt)


def _tell_interrupt(interrupted: FanoutInterrupted, take: Callable[[StepOutcome], None], summary: Summary) -> NoReturn:
    """Write what was done, say what was not, and exit. One more interrupt counts only if that takes long."""
    ends = list(zip(interrupted.run, interrupted.run.records, strict=True))
    cancelled = [outcome.task_id for outcome, record in ends if record.status == "cancelled"]
    with suppress(KeyboardInterrupt), Guard() as guard:
        guard.note()
        for outcome, record in ends:
            if record.status != "cancelled":
                take(outcome)
    click.echo(f"Interrupted: {summary.progress()}{summary.cancelled(cancelled)}", err=True)
    raise click.exceptions.Exit(INTERRUPTED)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(outcomes: LinesFile, outcome: StepOutcome) -> None:
    line = outcome.to_json()
    try:
        outcomes.write(line)
    except BrokenPipeError:  # whoever read them, such as `head`, has what it wanted
        raise click.exceptions.Exit(SOME_FAILED) from None
    except OSError as error:
        raise _write_error(outcomes, error, "outcomes") from None


def _write_error(lines: LinesFile, error: OSError, what: str) -> click.ClickException:
    reason = error.strerror or str(error)
    return click.ClickException(f"cannot write {what} to {lines.name}: {reason}; {lines.written} were written")


# Telling --------------------------------------------------------------------------------------------------------------


class Summary:
    """What came of a run, for people; it holds no more of the outcomes than it shows."""

    def __init__(self, total: int) -> None:
        self.succeeded = 0
        self.failed = 0
        self._total = total
        self._began = time.monotonic()
        self._failures: list[str] = []

    @property
    def done(self) -> int:
        """How many outcomes were added."""
        return self.succeeded + self.failed

    def add(self, outcome: StepOutcome) -> None:
        if outcome.success:
            self.succeeded += 1
            return
        self.failed += 1
        if len(self._failures) < MAX_FAILURES_SHOWN:
            task, agent, reason = map(_shown, (outcome.task_id, outcome.agent, outcome.output))
            self._failures.append(f"  {task} ({agent}): {reason}")

    def progress(self) -> str:
        """Say how far a run came that did not come to its end."""
        return f"{self.done} of {self._total} outcomes were written"

    def cancelled(self, known: list[str]) -> str:
        """Say which steps were not done.

        Args:
            known: Those that had been read.
        """
        names = ", ".join(map(_shown, known[:MAX_CANCELLED_SHOWN]))
        more = self._total - self.done - min(len(known), MAX_CANCELLED_SHOWN)
        told = " and ".join(filter(None, (names, f"{more} {'more' if names else 'steps'}" if more else "")))
        return f"; cancelled: {told}" if told else ""

    def text(self) -> str:
        counts = [f"{self.succeeded} succeeded"] * bool(self.succeeded) + [f"{self.failed} failed"] * bool(self.failed)
        elapsed = time.monotonic() - self._began
        steps = "1 step" if self.done == 1 else f"{self.done} steps"
        lines = [f"{steps} in {elapsed:.1f} s: {', '.join(counts) or 'nothing to do'}", *self._failures]
        if self.failed > len(self._failures):
            lines.append(f"  … and {self.failed - len(self._failures)} more")
        return "\n".join(lines)


def _shown(text: str) -> str:
    """Return the first line of any text, not too long, and with nothing in it that a terminal would obey."""
    line, _, rest = text[: MAX_REASON_CHARS + 1].partition("\n")
    is_cut = bool(rest) or len(text) > MAX_REASON_CHARS
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[:MAX_REASON_CHARS])
    return f"{line} …" if is_cut else line
